"""Scores of every kind of task; see `base` for how they are summed over a set."""

from __future__ import annotations

from collections.abc import Mapping

from mtmamba_jax.messages import check_name
from mtmamba_jax.metrics.base import ConstantBaseline, Metric
from mtmamba_jax.metrics.depth import Depth, DepthConstant
from mtmamba_jax.metrics.edges import Edge, EdgeConstant
from mtmamba_jax.metrics.multitask import delta_m, headline
from mtmamba_jax.metrics.normals import Normals, NormalsConstant
from mtmamba_jax.metrics.saliency import Saliency, SaliencyConstant
from mtmamba_jax.metrics.segmentation import Segmentation, SegmentationConstant
from mtmamba_jax.tasks import Task

METRICS: Mapping[str, type[Metric]] = {
    "segmentation": Segmentation,
    "depth": Depth,
    "normals": Normals,
    "edge": Edge,
    "saliency": Saliency,
}
"""The metric class for each value of `Task.metric`."""

CONSTANTS: Mapping[str, type[ConstantBaseline]] = {
    "segmentation": SegmentationConstant,
    "depth": DepthConstant,
    "normals": NormalsConstant,
    "edge": EdgeConstant,
    "saliency": SaliencyConstant,
}
"""The best constant prediction under each metric."""

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
    """Returns the metric that `task.metric` names.

    Raises:
      ValueError: no such metric; the message gives the valid names.
    """
    return _lookup(METRICS, task)(task)


def create_constant(task: Task) -> ConstantBaseline:
    """Returns the best constant prediction under the metric that `task.metric` names.

    Raises:
      ValueError: no such metric; the message gives the valid names.
    """
    return _lookup(CONSTANTS, task)(task)


def _lookup(table, task):
    check_name(f"metric of task {task.name!r}", task.metric, table)
    return table[task.metric]
