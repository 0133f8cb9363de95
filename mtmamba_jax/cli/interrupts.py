"""Ends a command at the second Ctrl-C, whatever it is doing."""

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from typing import Self

_PATIENCE = 1.0  # seconds in which a command that can stop at once has done so

# Forked processes get the parent's Ctrl-C too, and must not count it a second time.
os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class Interrupts:
    """Counts Ctrl-C inside a `with` block; the second one ends the process at once.

    Python handles signals only between two steps of the main thread: not while XLA compiles. What
    it raises in a callback of a library may be lost. Here a thread reads the signals from a pipe,
    which Python writes them to as they arrive. If the command is still running a second later, the
    thread prints what it waits for.

    Args:
      message: Line to print as the process ends.

    Attributes:
      count: The number of Ctrl-C so far.
    """

    def __init__(self, message: str):
        self.count, self._last = 0, 2
        self._message = f"\n{message}\n".encode()
        self._write: int | None = None

    def __enter__(self) -> Self:
        # Python accepts signals in the main thread only.
        if threading.current_thread() is threading.main_thread():
            read, self._write = os.pipe()
            os.set_blocking(self._write, False)
            self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
            threading.Thread(target=self._watch, args=(read,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        if self._write is not None:
            signal.set_wakeup_fd(self._before)
            os.close(self._write)  # ends the thread

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Makes the first Ctrl-C end the process, where an exception could crash it.

        That is so in imports: one that breaks off in the middle of jaxlib's libraries ended one
        process in ten by a segmentation fault (jaxlib 0.10.2).
        """
        if self._write is None or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            yield
            return
        before = signal.signal(signal.SIGINT, lambda *_: None)
        self._last = 1
        try:
            yield
        finally:
            self._last = 2
            signal.signal(signal.SIGINT, before)

    def _watch(self, read: int) -> None:
        with open(read, "rb", buffering=0) as signals:
            wait = None
            while True:
                if not select.select([signals], [], [], wait)[0]:
                    again, wait = "again" if self.count else "twice", None
                    _print(
                        "\nWaiting for what cannot be interrupted, such as a compilation, or for a "
                        f"step to be saved. Ctrl-C {again} stops immediately.\n".encode()
                    )
                    continue
                number = signals.read(1)
                if not number:
                    return
                if number[0] in (signal.SIGINT, signal.SIGTERM):
                    wait = _PATIENCE
                self.count += number[0] == signal.SIGINT
                if self.count >= self._last:
                    _print(self._message)
                    os._exit(130)


def _print(text: bytes) -> None:
    """Prints to stderr, not by `print`, which may be what was interrupted."""
    with contextlib.suppress(OSError):
        os.write(2, text)
