"""Lock files that keep other processes out; freed when the process ends, however it ends."""

import contextlib
import pathlib
from collections.abc import Iterator

import filelock


class NoLocksError(OSError):
    """The file system or the operating system does not support locks."""


@contextlib.contextmanager
def locked(path: pathlib.Path, activity: str, *, wait: bool) -> Iterator[None]:
    """Holds a lock file, whose folder is created if needed.

    The file's contents are left alone, and the file remains.

    Args:
      path: The lock file.
      activity: Activity of the lock's holder, such as "trains", for messages.
      wait: Whether to wait while another process holds the lock, or to raise.

    Raises:
      OSError: If another process holds the lock, or the folder cannot be written.
      NoLocksError: If the file system or the operating system does not support locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise OSError(
            f"{path.parent} cannot be written ({error.strerror}). Choose another folder."
        ) from error
    with file:
        # Not a FileLock: where flock is missing, that one falls back to a marker file, which a
        # killed process leaves behind.
        try:
            acquired = filelock.lock_descriptor(file.fileno(), blocking=False)
        except OSError as error:
            raise NoLocksError(
                f"{path.parent} cannot be locked ({error.strerror}): its file system has no locks. "
                "Choose a folder on another disk."
            ) from error
        if not acquired:
            message = f"Another process {activity} in {path.parent}"
            if not wait:
                raise OSError(f"{message}. Wait for it, or choose another folder.")
            print(f"{message}: waiting for it.", flush=True)
            filelock.lock_descriptor(file.fileno())
        yield
