"""Being told to stop: SIGTERM, as schedulers send before they take a machine away, and Ctrl-C."""

from __future__ import annotations

import signal
import threading

import jax
from jax.experimental import multihost_utils


class StoppedError(Exception):
    """A run was told to stop; its state is saved.

    Attributes:
      step: that is saved.
      number: the signal.
    """

    def __init__(self, step: int, number: signal.Signals):
        super().__init__(f"Stopped by {number.name} after step {step}, which is saved.")
        self.step, self.number = step, number


class StopSignals:
    """Notices signals while it is entered; a second Ctrl-C interrupts at once.

    In several processes JAX's preemption service notices SIGTERM: when one process gets it, all
    stop after the same step. Ctrl-C is left as it is there.
    """

    def __init__(self):
        self._found: signal.Signals | None = None
        self._before = {}

    def __enter__(self) -> StopSignals:
        # Signals can be handled in the main thread only, and those of several processes are JAX's.
        alone = jax.process_count() == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._notice)
        return self

    def __exit__(self, *error) -> None:
        while self._before:
            signal.signal(*self._before.popitem())

    def _notice(self, number: int, frame) -> None:
        if self._found == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._found = signal.Signals(number)

    def noticed(self, step: int) -> signal.Signals | None:
        """Returns the signal that a run is to stop for after this step; ask after each."""
        if jax.process_count() > 1 and multihost_utils.reached_preemption_sync_point(step):
            return signal.SIGTERM
        return self._found
