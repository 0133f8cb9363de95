"""A run's work directory: a folder or a place in a bucket, which one run writes at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator

import jax
from etils import epath

from mtmamba_jax.devices.processes import highest, is_first, together
from mtmamba_jax.files.locks import NoLocksError, locked
from mtmamba_jax.files.paths import is_remote, wait_until

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

    def sync(self) -> bool:
        """Brings `path` up to date with `local`, and says whether it is; if not, warns why."""
        if not is_remote(self.path) or not is_first():
            return True
        try:
            for file in sorted(self.local.rglob("*")):
                target = self.path / file.relative_to(self.local).as_posix()
                if file.is_file() and not (
                    target.exists() and target.stat().length == file.stat().st_size
                ):
                    target.write_bytes(file.read_bytes())
        except Exception as error:  # of gcsfs, aiohttp, google.auth
            print(
                f"warning: metrics could not be copied to {self.path} ({type(error).__name__}: "
                f"{error}). They are in {self.local}, and copied with the next checkpoint.",
                flush=True,
            )
            return False
        return True

    def close(self) -> None:
        """Copies what `path` lacks and removes a temporary folder, unless that failed."""
        if self.sync() and is_remote(self.path):
            shutil.rmtree(self.local, ignore_errors=True)


@contextlib.contextmanager
def hold(path: epath.PathLike) -> Iterator[WorkDirectory]:
    """Makes a work directory where there is none, and keeps other runs out of it.

    Of several processes the first does. A place in a bucket, or on a file system without locks, is
    not locked: two runs at once would spoil each other there.

    Raises:
      OSError: it cannot be written, or another run writes there.
      ValueError: the processes have not the same.
    """
    path = epath.Path(path)
    token = highest(secrets.randbits(31) if is_first() else 0)  # the first process's
    with contextlib.ExitStack() as stack:
        with together():
            if is_first():
                stack.enter_context(_write_token(path, token))
        with together():
            _check_token(path, token)
        local = tempfile.mkdtemp(prefix="mtmamba_jax_run_") if is_remote(path) else path
        directory = WorkDirectory(path, pathlib.Path(local))
        stack.callback(directory.close)
        yield directory


@contextlib.contextmanager
def _write_token(path: epath.Path, token: int) -> Iterator[None]:
    """Leaves a number in the lock file, which is locked meanwhile where that is possible."""
    with contextlib.ExitStack() as stack:
        if is_remote(path):
            _write_remotely(path / LOCK_FILE, str(token))
        else:
            file = pathlib.Path(path) / LOCK_FILE
            try:
                stack.enter_context(locked(file, "trains", wait=False))
            except NoLocksError as error:
                print(f"warning: {error} Two runs at once would spoil each other.", flush=True)
            file.write_text(str(token))
        yield


def _write_remotely(file: epath.Path, text: str) -> None:
    try:
        file.write_text(text)
    except Exception as error:  # of gcsfs, google.auth, aiohttp: no package, bucket, right, network
        raise OSError(
            f"{file.parent} cannot be written ({type(error).__name__}: {error}). Does the bucket "
            'exist, may this machine write there, and is pip install -e ".[data]" done?'
        ) from error


def _check_token(path: epath.Path, token: int) -> None:
    """Checks that this process sees the number that the first one wrote.

    Raises:
      ValueError: it does not.
    """
    file = path / LOCK_FILE
    if not wait_until(lambda: is_first() or (file.exists() and file.read_text() == str(token))):
        raise ValueError(
            f"--workdir={path} of process {jax.process_index()} is not that of the first. All need "
            "the same one: on a disk that they share, or in a bucket (gs://BUCKET/NAME)."
        )
