"""One process at a time: locks on files, freed when their process ends, however it does."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # on Windows
    fcntl = None


class NoLocksError(OSError):
    """A file system has no locks."""


@contextlib.contextmanager
def locked(path: pathlib.Path, what: str, *, wait: bool) -> Iterator[None]:
    """Holds the lock `path` of a file, whose folder is made if need be.

    Args:
      path: of the lock, a file that stays.
      what: another process does while it holds the lock, for messages.
      wait: for it, or raise.

    Raises:
      OSError: another process holds it, or the folder cannot be written.
      NoLocksError: its file system, or the operating system, has no locks.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")  # what its holder wrote there stays
    except OSError as error:
        raise OSError(
            f"{path.parent} cannot be written ({error.strerror}). Choose another folder."
        ) from error
    with file:
        if fcntl is None:
            raise NoLocksError(f"{path.parent} cannot be locked: this system has no such locks.")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            message = f"Another process {what} in {path.parent}"
            if not wait:
                raise OSError(f"{message}. Wait for it, or choose another folder.") from None
            print(f"{message}: waiting for it.", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise NoLocksError(
                f"{path.parent} cannot be locked ({error.strerror}): its file system has no locks. "
                "Choose a folder on another disk."
            ) from error
        yield
