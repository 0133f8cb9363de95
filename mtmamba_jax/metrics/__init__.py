"""Metrics of every kind of task; `base` explains how they are summed over a test set."""

from collections.abc import Callable, Mapping

from mtmamba_jax.messages import check_name
from mtmamba_jax.metrics.base import ConstantBaseline, Metric
from mtmamba_jax.metrics.depth import Depth, DepthConstant
from mtmamba_jax.metrics.edges import Edge, EdgeConstant
from mtmamba_jax.metrics.multitask import delta_m, headline
from mtmamba_jax.metrics.normals import Normals, NormalsConstant
from mtmamba_jax.metrics.saliency import Saliency, SaliencyConstant
from mtmamba_jax.metrics.segmentation import Segmentation, SegmentationConstant
from mtmamba_jax.tasks import Task

METRICS: Mapping[str, Callable[[Task], Metric]] = {
    "segmentation": Segmentation,
    "depth": Depth,
    "normals": Normals,
    "edge": Edge,
    "saliency": Saliency,
}
"""Metric classes by `Task.metric`."""

CONSTANTS: Mapping[str, Callable[[Task], ConstantBaseline]] = {
    "segmentation": SegmentationConstant,
    "depth": DepthConstant,
    "normals": NormalsConstant,
    "edge": EdgeConstant,
    "saliency": SaliencyConstant,
}
"""Best constant predictions by `Task.metric`."""

__all__ = [
    "CONSTANTS",
    "METRICS",
    "ConstantBaseline",
    "Metric",
    "create_constant",
    "create_metric",
    "delta_m",
    "headline",
]


def create_metric(task: Task) -> Metric:
    """Returns the metric of a task.

    Raises:
      ValueError: If `task.metric` is unknown; the message lists the valid names.
    """
    return _lookup(METRICS, task)(task)


def create_constant(task: Task) -> ConstantBaseline:
    """Returns the best constant prediction under a task's metric.

    Raises:
      ValueError: If `task.metric` is unknown; the message lists the valid names.
    """
    return _lookup(CONSTANTS, task)(task)


def _lookup(table, task):
    check_name(f"metric of task {task.name!r}", task.metric, table)
    return table[task.metric]
