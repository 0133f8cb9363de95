"""Losses and gradients that are not finite: reports them and stops the run."""

from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import jax
import numpy as np

from mtmamba_jax.messages import shortened

MOST_SKIPS = 100
"""The number of consecutive steps that may be skipped."""


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite; the message names step, task and last checkpoint."""


class NonFiniteGuard:
    """Checks the numbers of each step once.

    Args:
      skips: Whether the training step skips updates that are not finite (`config.on_nonfinite`);
        the run then stops only after `MOST_SKIPS` in a row.
      last_checkpoint: Returns the step of the latest checkpoint on disk, or None.
      say: Prints a line.
    """

    def __init__(
        self, skips: bool, last_checkpoint: Callable[[], int | None], say: Callable[[str], None]
    ):
        self._skips, self._last_checkpoint, self._say = skips, last_checkpoint, say
        self._pending: tuple[int, Mapping[str, jax.Array], Sequence[str]] | None = None
        self._in_a_row = 0

    def started(self, step: int, numbers: Mapping[str, jax.Array], ids: Sequence[str]) -> None:
        """Registers a step that was launched, its future numbers and this process's example IDs."""
        self._pending = step, numbers, ids

    def check(self) -> float | None:
        """Waits for the last registered step and returns its loss, None if it was checked already.

        Raises:
          NonFiniteError: If the loss, a task's loss or a gradient is not finite.
        """
        if self._pending is None:
            return None
        (step, numbers, ids), self._pending = self._pending, None
        values = jax.device_get(numbers)
        bad = [
            name
            for name, value in values.items()
            # A batch without a label for a task has no loss for it: that is not a fault.
            if not np.isfinite(value) and values.get(f"labelled/{name.removeprefix('loss/')}") != 0
        ]
        if not bad:
            self._in_a_row = 0
            return float(values["loss"])
        self._in_a_row += 1
        what = f"not finite: {', '.join(bad)}; examples {shortened(ids)}"
        if not self._skips:
            self._stop(
                f"Step {step}: {what}.",
                "A lower optimizer.learning_rate may help; with --config.on_nonfinite=skip the "
                "same command resumes and skips such steps.",
            )
        if self._in_a_row > MOST_SKIPS:
            self._stop(
                f"Step {step}: {what}, as in each of the {MOST_SKIPS} steps before.",
                "They were skipped; skipping more would learn nothing. A lower "
                "optimizer.learning_rate may help.",
            )
        self._say(f"warning: step {step} is skipped: {what} (skipped so far: {values['skipped']})")
        return None

    def _stop(self, what: str, remedy: str) -> NoReturn:
        step = self._last_checkpoint()
        saved = f"The last good checkpoint is of step {step}"
        saved = "There is no checkpoint yet" if step is None else saved
        raise NonFiniteError(f"{what} {saved}. {remedy}")
