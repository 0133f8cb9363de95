"""Scores of a model on the test set, over all its tasks."""

from collections.abc import Mapping, Sequence

from mtmamba_jax.metrics import create_metric
from mtmamba_jax.metrics.base import Counts
from mtmamba_jax.tasks import Task

Scores = Mapping[str, Mapping[str, float]]
"""Every score of every task: {task name: {score name: value}}."""


def compute_scores(
    tasks: Sequence[Task], totals: Mapping[str, Counts]
) -> dict[str, dict[str, float]]:
    """Returns every score of every task.

    Args:
      tasks: Tasks that were evaluated.
      totals: Sums of each task's metric over a test set, by task name.
    """
    return {task.name: create_metric(task).compute(totals[task.name]) for task in tasks}
