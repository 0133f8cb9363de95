"""Keeps other runs out of a work directory while one writes there."""

import contextlib
import pathlib
import secrets
import shutil
import tempfile
from collections.abc import Iterator

import jax
from etils import epath

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.devices.processes import fail_together, is_first, max_over_processes
from mtmamba_jax.files.locks import NoLocksError, locked
from mtmamba_jax.files.paths import wait_until
from mtmamba_jax.messages import first_line

LOCK_FILE = ".lock"


class LockedRunDirectory(RunDirectory):
    """A work directory that this run holds.

    Attributes:
      local: A folder for files that grow, which buckets do not support: the work directory itself,
        or a temporary folder that `sync` copies to the bucket.
    """

    def __init__(self, path: epath.PathLike, local: pathlib.Path):
        super().__init__(path)
        self.local = local

    def sync(self) -> bool:
        """Copies new contents of `local` to the bucket; returns False with a warning on failure."""
        if not self.is_remote or not is_first():
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
                f"warning: metrics could not be copied to {self} ({first_line(error)}). They are "
                f"kept in {self.local} and copied with the next checkpoint.",
                flush=True,
            )
            return False
        return True

    def close(self) -> None:
        """Copies what is left and removes the temporary folder, unless copying failed."""
        if self.sync() and self.is_remote:
            shutil.rmtree(self.local, ignore_errors=True)


@contextlib.contextmanager
def lock(directory: RunDirectory) -> Iterator[LockedRunDirectory]:
    """Creates a work directory if necessary and keeps other runs out of it.

    Of several processes, the first takes the lock. Buckets and file systems without locks are not
    locked: two runs at once would overwrite each other's files there.

    Raises:
      OSError: If the work directory cannot be written, or if another run is writing there.
      ValueError: If the processes were given different work directories.
    """
    token = max_over_processes(secrets.randbits(31) if is_first() else 0)  # the first process's
    with contextlib.ExitStack() as stack:
        with fail_together():
            if is_first():
                stack.enter_context(_write_token(directory, token))
        with fail_together():
            _check_token(directory, token)
        local = tempfile.mkdtemp(prefix="mtmamba_jax_run_") if directory.is_remote else directory
        locked_directory = LockedRunDirectory(directory.path, pathlib.Path(local))
        stack.callback(locked_directory.close)
        yield locked_directory


@contextlib.contextmanager
def _write_token(directory: RunDirectory, token: int) -> Iterator[None]:
    """Takes the lock, if the file system has locks, and writes a number for the others to see."""
    file = directory / LOCK_FILE
    with contextlib.ExitStack() as stack:
        if not directory.is_remote:
            try:
                stack.enter_context(locked(pathlib.Path(file), "trains", wait=False))
            except NoLocksError as error:
                print(f"warning: {error} Two runs at once would spoil each other.", flush=True)
        try:
            file.write_text(str(token))
        except Exception as error:
            if not directory.is_remote:
                raise
            # Of gcsfs, google.auth or aiohttp: no package, bucket, right or network.
            raise OSError(
                f"{file.parent} cannot be written ({first_line(error)}). Does the bucket exist, "
                'may this machine write there, and is pip install -e ".[data]" done?'
            ) from error
        yield


def _check_token(directory: RunDirectory, token: int) -> None:
    """Checks that this process sees the number that the first one wrote."""
    file = directory / LOCK_FILE
    if not wait_until(lambda: is_first() or (file.exists() and file.read_text() == str(token))):
        raise ValueError(
            f"--workdir={directory} of process {jax.process_index()} is not that of the first. All "
            "processes need the same one: on a disk that they share, or in a bucket "
            "(gs://BUCKET/NAME)."
        )
