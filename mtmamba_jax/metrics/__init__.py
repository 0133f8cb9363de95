"""Metrics of every kind of task; `base` explains how they are summed over a test set."""

from collections.abc import Callable, Mapping, Sequence

from mtmamba_jax.messages import check_name
from mtmamba_jax.metrics.base import ConstantBaseline, Metric, Sums
from mtmamba_jax.metrics.depth import Depth, DepthConstant
from mtmamba_jax.metrics.edges import Edge, EdgeConstant
from mtmamba_jax.metrics.normals import Normals, NormalsConstant
from mtmamba_jax.metrics.saliency import Saliency, SaliencyConstant
from mtmamba_jax.metrics.segmentation import Segmentation, SegmentationConstant
from mtmamba_jax.tasks.table import Task

METRICS: Mapping[str, tuple[Callable[[Task], Metric], Callable[[Task], ConstantBaseline]]] = {
    "segmentation": (Segmentation, SegmentationConstant),
    "depth": (Depth, DepthConstant),
    "normals": (Normals, NormalsConstant),
    "edge": (Edge, EdgeConstant),
    "saliency": (Saliency, SaliencyConstant),
}
"""Classes of the metric and of the best constant prediction, by `Task.metric`."""

Scores = Mapping[str, Mapping[str, float]]
"""Every score of every task: {task name: {score name: value}}."""


def create_metric(task: Task) -> Metric:
    """Returns the metric of a task.

    Raises:
      ValueError: If `task.metric` is unknown; the message lists the valid names.
    """
    return _classes(task)[0](task)


def create_constant(task: Task) -> ConstantBaseline:
    """Returns the best constant prediction under a task's metric; raises like `create_metric`."""
    return _classes(task)[1](task)


def _classes(task: Task):
    check_name(f"metric of task {task.name!r}", task.metric, METRICS)
    return METRICS[task.metric]


def compute_scores(
    tasks: Sequence[Task], totals: Mapping[str, Sums]
) -> dict[str, dict[str, float]]:
    """Returns every score of every task, given each metric's sums over a test set."""
    return {task.name: create_metric(task).compute(totals[task.name]) for task in tasks}
