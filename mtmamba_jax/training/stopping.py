"""Stops a run cleanly on SIGTERM, as schedulers send before they take a machine, and on Ctrl-C."""

import contextlib
import os
import signal
import threading
from typing import Self

import jax
from jax.experimental import multihost_utils


class StoppedError(Exception):
    """A run was stopped by the signal `number`; its state after `step` is saved."""

    def __init__(self, step: int, number: signal.Signals):
        super().__init__(
            f"Stopped by {number.name} after step {step}, which is saved. The same command resumes "
            "from there."
        )
        self.step, self.number = step, number


class StopSignals:
    """Notices signals inside a `with` block; a second Ctrl-C interrupts immediately.

    In a command, `cli.interrupts` has ended the process by then.

    With several processes, JAX's preemption service notices SIGTERM: when one process gets it, all
    stop after the same step. Ctrl-C is turned into a SIGTERM there.

    Attributes:
      found: The signal that this process noticed, None if there was none.
    """

    def __init__(self):
        self.found: signal.Signals | None = None
        self._before = {}
        self._alone = jax.process_count() == 1

    def __enter__(self) -> Self:
        # Python handles signals in the main thread only; SIGTERM of several processes is JAX's.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM) if self._alone else (signal.SIGINT,):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *error) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _notice(self, number: int, frame) -> None:
        if self.found == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.found = signal.Signals(number)
        # Not by print, which may be what was interrupted.
        with contextlib.suppress(OSError):
            os.write(
                2, b"\nStopping after this step, to save it. Ctrl-C again stops immediately.\n"
            )
        if not self._alone:
            os.kill(os.getpid(), signal.SIGTERM)

    def noticed(self, step: int) -> signal.Signals | None:
        """Returns the signal that the run stops for after this step; call it after every step."""
        if self._alone:
            return self.found
        # All processes stop after the same step, so what one of them noticed does not count yet.
        return signal.SIGTERM if multihost_utils.reached_preemption_sync_point(step) else None
