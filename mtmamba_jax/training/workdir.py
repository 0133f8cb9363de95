"""A run's work directory: a folder or a place in a bucket, which one run writes at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

from etils import epath

from mtmamba_jax.data_pipelines.locks import NoLocksError, locked
from mtmamba_jax.places import is_remote
from mtmamba_jax.processes import is_first

LOCK_FILE = ".lock"


@dataclasses.dataclass(frozen=True)
class WorkDirectory:
    """Where a run writes.

    Attributes:
      path: what the user named.
      local: for files that grow, which buckets do not have: `path`, or a temporary folder in place
        of one in a bucket, which `sync` copies there.
    """

    path: epath.Path
    local: pathlib.Path

    def sync(self) -> None:
        """Brings `path` up to date with `local`."""
        if not is_remote(self.path) or not is_first():
            return
        for file in sorted(self.local.rglob("*")):
            target = self.path / file.relative_to(self.local).as_posix()
            if file.is_file() and not (
                target.exists() and target.stat().length == file.stat().st_size
            ):
                target.write_bytes(file.read_bytes())


@contextlib.contextmanager
def hold(path: epath.PathLike) -> Iterator[WorkDirectory]:
    """Makes a work directory where there is none, and keeps other runs out of it.

    Of several processes the first does. A place in a bucket, or on a file system without locks, is
    not locked: two runs at once would spoil each other there.

    Raises:
      OSError: it cannot be written, or another run writes there.
    """
    path = epath.Path(path)
    with contextlib.ExitStack() as stack:
        if is_remote(path):
            local = pathlib.Path(tempfile.mkdtemp(prefix="mtmamba_jax_run_"))
            stack.callback(shutil.rmtree, local, ignore_errors=True)
            if is_first():
                _check_writable(path)
        else:
            local = pathlib.Path(path)
            if is_first():
                stack.enter_context(_lock(local))
        yield WorkDirectory(path, local)


@contextlib.contextmanager
def _lock(folder: pathlib.Path) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(folder / LOCK_FILE, "trains", wait=False))
        except NoLocksError as error:
            print(f"warning: {error} Two runs there at once would spoil each other.", flush=True)
        yield


def _check_writable(path: epath.Path) -> None:
    """Checks that a place in a bucket can be written.

    Raises:
      OSError: it cannot.
    """
    probe = path / LOCK_FILE
    try:
        probe.write_text("")
    except Exception as error:  # of gcsfs, google.auth, aiohttp: no package, bucket, right, network
        raise OSError(
            f"{path} cannot be written ({type(error).__name__}: {error}). Does the bucket exist, "
            'may this machine write there, and is pip install -e ".[data]" done?'
        ) from error
