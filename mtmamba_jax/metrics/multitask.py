"""Several tasks at once: the score that speaks for each, and delta_m, their mean relative gain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtmamba_jax.tasks import Task


def headline(tasks: Sequence[Task], scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Picks, of every task's scores, the one that speaks for it (`Task.score`)."""
    return {task.name: scores[task.name][task.score] for task in tasks}


def delta_m(
    tasks: Sequence[Task], scores: Mapping[str, float], baselines: Mapping[str, float]
) -> float:
    """Returns the mean relative gain over the baselines, percent (delta_m of the paper's tables).

    delta_m = 100 / T * sum_t (-1)^(lower is better) * (M_t - S_t) / S_t, with M_t a task's score
    and S_t its baseline. A NaN score gives NaN. The paper prints it cut, not rounded, to 0.01.

    Args:
      tasks: the T tasks; `lower_is_better` gives the signs.
      scores: M_t, each task's `Task.score`, by task name (see `headline`).
      baselines: S_t, the same of single-task models or of the best constants.

    Raises:
      ValueError: no task; a task without score or baseline; a baseline that is zero or not finite.
    """
    if not tasks:
        raise ValueError("delta_m wanted at least one task, got none.")
    gains = []
    for task in tasks:
        for what, values in (("score", scores), ("baseline", baselines)):
            if task.name not in values:
                raise ValueError(
                    f"delta_m wanted a {what} ({task.score}) for task {task.name!r}, got "
                    f"{what}s for: {', '.join(values) or 'no task'}."
                )
        score, baseline = scores[task.name], baselines[task.name]
        if baseline == 0 or not np.isfinite(baseline):
            raise ValueError(
                f"delta_m divides by the baseline of each task, but that of {task.name!r} "
                f"({task.score}) is {baseline}. Give one that is finite and not 0."
            )
        sign = -1.0 if task.lower_is_better else 1.0
        gains.append(sign * (score - baseline) / baseline)
    return 100.0 * float(np.mean(gains))
