"""Traces some steps of a run, for TensorBoard's profiler or Perfetto."""

import pathlib
import re

import jax


class Profile:
    """Traces some steps of a run.

    Args:
      steps: The first and the last step to trace; None traces nothing.
      folder: The folder to create `profile/` in.
    """

    def __init__(self, steps: tuple[int, int] | None, folder: pathlib.Path):
        self._first, self._last = steps or (None, None)
        self._folder, self._running = folder / "profile", False

    def before(self, step: int) -> None:
        """Starts the trace if it begins with this step."""
        if step == self._first:
            jax.profiler.start_trace(str(self._folder))
            self._running = True

    def after(self, step: int, numbers: object) -> None:
        """Ends the trace if it ends with this step, after waiting for the step's `numbers`."""
        if self._running and step == self._last:
            jax.block_until_ready(numbers)
            self.close()

    def close(self) -> None:
        """Ends the trace if one is running."""
        if self._running:
            self._running = False
            jax.profiler.stop_trace()


def parse_steps(text: str, steps: int) -> tuple[int, int]:
    """Parses START:STOP; raises ValueError unless these are two of the run's `steps`, in order."""
    found = re.fullmatch(r"(\d+):(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]) <= steps:
        raise ValueError(
            f"--profile wants START:STOP, steps of the run from 1 to {steps} such as 10:12; "
            f"got {text!r}."
        )
    return int(found[1]), int(found[2])
