"""Scores across tasks: the main score of each task, and delta_m, their mean relative gain."""

from collections.abc import Mapping, Sequence

import numpy as np

from mtmamba_jax.tasks.table import Task


def headline(tasks: Sequence[Task], scores: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Returns the main score of each task (`Task.score`), by task name."""
    return {task.name: scores[task.name][task.score] for task in tasks}


def delta_m(
    tasks: Sequence[Task], scores: Mapping[str, float], baselines: Mapping[str, float]
) -> float:
    """Returns delta_m, the mean relative gain over the baselines, in percent.

    delta_m = 100 / T * sum_t (-1)^(lower is better) * (M_t - S_t) / S_t, with M_t a task's score
    and S_t its baseline. A NaN score gives NaN. The paper truncates it to 0.01.

    Args:
      tasks: The T tasks; `lower_is_better` gives the signs.
      scores: M_t by task name, as from `headline`.
      baselines: S_t by task name: scores of single-task models or of the best constants.

    Raises:
      ValueError: If there is no task, if a task has no score or baseline, or if a baseline is zero
        or not finite.
    """
    if not tasks:
        raise ValueError("delta_m needs at least one task; got none.")
    gains = []
    for task in tasks:
        for what, values in (("score", scores), ("baseline", baselines)):
            if task.name not in values:
                raise ValueError(
                    f"delta_m needs a {what} ({task.score}) for task {task.name!r}; got {what}s "
                    f"for: {', '.join(values) or 'no task'}."
                )
        score, baseline = scores[task.name], baselines[task.name]
        if not is_baseline(baseline):
            raise ValueError(
                f"delta_m divides by each task's baseline, but the baseline of {task.name!r} "
                f"({task.score}) is {baseline}. Give a finite value other than 0."
            )
        sign = -1.0 if task.lower_is_better else 1.0
        gains.append(sign * (score - baseline) / baseline)
    return 100.0 * float(np.mean(gains))


def is_baseline(score: float) -> bool:
    """Returns whether delta_m can divide by a score: it is finite and not 0."""
    return bool(np.isfinite(score)) and score != 0


def left_out(tasks: Sequence[Task], baselines: Mapping[str, float]) -> dict[str, str]:
    """Returns {task name: reason} for tasks that delta_m cannot include.

    These are tasks whose best constant prediction has no score, or one of 0, by which delta_m would
    divide.

    Args:
      tasks: The tasks.
      baselines: Scores of the best constant predictions, by task name.
    """
    reasons = {}
    for task in tasks:
        baseline = baselines[task.name]
        if is_baseline(baseline):
            continue
        if not np.isfinite(baseline):
            reasons[task.name] = "no pixel of the test set is labelled for it"
        else:
            cause = "all its labels are equal" if task.lower_is_better else "no label is positive"
            reasons[task.name] = (
                f"its best constant prediction has {task.score} 0 because {cause} in the test set"
            )
    return reasons
