"""Losses and gradients that are not finite: what is said, and when a run stops for them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np

MOST_SKIPS = 100
"""Steps in a row that may be skipped."""

_SHOWN = 8  # examples in a message


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite; the message names step, task and last checkpoint."""


class Guard:
    """Looks at each step's numbers once, when asked to.

    Args:
      skips: whether the step leaves out what is not finite (`config.on_nonfinite`); the run then
        goes on until `MOST_SKIPS` in a row.
      last_checkpoint: returns the step of the latest that is on disk, or None.
      say: prints a line.
    """

    def __init__(
        self, skips: bool, last_checkpoint: Callable[[], int | None], say: Callable[[str], None]
    ):
        self._skips, self._last_checkpoint, self._say = skips, last_checkpoint, say
        self._pending: tuple[int, Mapping[str, jax.Array], Sequence[str]] | None = None
        self._in_a_row = 0

    def started(self, step: int, numbers: Mapping[str, jax.Array], ids: Sequence[str]) -> None:
        """Notes a step, the numbers that come out of it and this process's examples in it."""
        self._pending = step, numbers, ids

    def check(self) -> float | None:
        """Waits for the step that was noted last and returns its loss; None if that was done.

        Raises:
          NonFiniteError: the loss, a task's part of it or a gradient is not finite.
        """
        if self._pending is None:
            return None
        (step, numbers, ids), self._pending = self._pending, None
        values = jax.device_get(numbers)
        bad = [name for name, value in values.items() if not np.isfinite(value)]
        if not bad:
            self._in_a_row = 0
            return float(values["loss"])
        self._in_a_row += 1
        what = f"not finite: {', '.join(bad)}; examples {_listed(ids)}"
        if not self._skips:
            self._stop(
                f"Step {step}: {what}.",
                "A lower optimizer.learning_rate may help; with --config.on_nonfinite=skip the "
                "same command goes on and leaves such steps out.",
            )
        if self._in_a_row > MOST_SKIPS:
            self._stop(
                f"Step {step}: {what}, as in each of the {MOST_SKIPS} steps before.",
                "They were skipped; skipping more would learn nothing. A lower "
                "optimizer.learning_rate may help.",
            )
        self._say(f"warning: step {step} is skipped: {what} (skipped so far: {values['skipped']})")
        return None

    def _stop(self, what: str, remedy: str) -> None:
        step = self._last_checkpoint()
        saved = (
            "There is no checkpoint yet"
            if step is None
            else f"The last good checkpoint is of step {step}"
        )
        raise NonFiniteError(f"{what} {saved}. {remedy}")


def _listed(ids: Sequence[str]) -> str:
    shown = ", ".join(str(name) for name in ids[:_SHOWN])
    return shown + (", ..." if len(ids) > _SHOWN else "")
