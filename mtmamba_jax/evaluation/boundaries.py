"""Scores the contours that a model predicts for its test set with the boundary benchmark."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mtmamba_jax.data_pipelines.parallel import in_order, worker_count
from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.metrics.boundaries.contours import thin
from mtmamba_jax.metrics.boundaries.counts import MAX_DISTANCE
from mtmamba_jax.metrics.boundaries.folders import (
    count_against_file,
    count_prediction,
    excluded_ids,
)
from mtmamba_jax.metrics.boundaries.report import report_settings
from mtmamba_jax.tasks.readout import to_levels
from mtmamba_jax.tasks.table import Task

LABEL_KIND_OF_TEST_SET: Mapping[str, str] = {"nyudv2": "regions"}
"""What a dataset's own edge labels hold in published figures; contours in other datasets."""

_DISTANCE = MAX_DISTANCE["pascal_context"]  # the stricter one, for datasets without a published one


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How the contours of a test set are scored.

    Attributes:
      task: Task whose predictions are scored.
      dataset: `config.data.name`.
      label_kind: Key of `folders.LABEL_KINDS`.
      max_distance: Maximum distance of matched pixels, as a fraction of the image diagonal.
      labels: Folder of NAME.png or NAME.mat; None for the test set's own labels.
      excluded: IDs that are not scored.
      num_workers: Number of worker processes that count; 0 counts in this process.
    """

    task: Task
    dataset: str
    label_kind: str
    max_distance: float
    labels: pathlib.Path | None
    excluded: frozenset[str]
    num_workers: int

    @property
    def settings(self) -> dict[str, object]:
        """The settings in reports."""
        return report_settings(
            dataset=self.dataset,
            labels=self.labels,
            only_published_images=bool(self.excluded),
            label_kind=self.label_kind,
            max_distance=self.max_distance,
        )

    def describe(self) -> str:
        """Returns the settings in words."""
        note = "" if self.dataset in MAX_DISTANCE else f" (none is published for {self.dataset})"
        return (
            f"Boundary benchmark: {self.label_kind} of labels from "
            f"{self.labels or 'the test set'}, matched within {self.max_distance} of the "
            f"diagonal{note}"
        )


def choose_benchmark(
    dataset: str,
    tasks: Sequence[Task],
    *,
    labels: pathlib.Path | None = None,
    include_all: bool = False,
    num_workers: int | None = None,
) -> Benchmark:
    """Returns how a run's contours are scored: like the published figures of its dataset, if any.

    Args:
      dataset: `config.data.name`.
      tasks: The run's tasks.
      labels: See `Benchmark`. NAME is an example's ID; true contours lie between the regions of
        these labels, as in published figures on PASCAL-Context's LabelMap.
      include_all: Whether to score images that the published figures exclude.
      num_workers: See `Benchmark`; None starts one worker per core.

    Raises:
      ValueError: If no task predicts edges, the folder does not exist or `num_workers` < 0.
      RuntimeError: If the extra "data" is not installed.
    """
    edges = [task for task in tasks if task.metric == "edge"]
    if not edges:
        raise ValueError(
            "--odsf scores the task edge, which this run does not have: it has "
            f"{', '.join(task.name for task in tasks)}."
        )
    if labels is not None and not labels.is_dir():
        raise ValueError(
            f"--boundary_labels must be a folder of NAME.png or NAME.mat; {labels} is not a folder."
        )
    workers = worker_count(num_workers)
    thin(np.zeros((1, 1), bool))  # fails now, not after the evaluation, if scikit-image is missing
    label_kind = LABEL_KIND_OF_TEST_SET.get(dataset, "contours") if labels is None else "regions"
    distance = MAX_DISTANCE.get(dataset, _DISTANCE)
    excluded = frozenset() if include_all else excluded_ids(dataset)
    return Benchmark(edges[0], dataset, label_kind, distance, labels, excluded, workers)


def count_test_set(benchmark: Benchmark, predictions: Iterable[Prediction]) -> Iterator[np.ndarray]:
    """Yields `count_matches` of each scored image, with only a few images in memory.

    Skips the images in `benchmark.excluded` and, with the test set's own labels, images without a
    labelled pixel.

    Raises:
      ValueError: If a label is missing or invalid (`DataError`).
      RuntimeError: If a prediction is NaN, or a worker process was killed.
    """
    name, ignore = benchmark.task.name, benchmark.task.ignore
    settings = benchmark.label_kind, benchmark.max_distance
    scored = ((p, _levels(p, name)) for p in predictions if p.id not in benchmark.excluded)
    if benchmark.labels is not None:
        work = ((p.id, levels, benchmark.labels, *settings) for p, levels in scored)
        return in_order(count_against_file, work, benchmark.num_workers)
    labelled = ((p.labels[name][..., 0].astype(np.uint8), levels) for p, levels in scored)
    work = (
        (levels, label, *settings, ignore) for label, levels in labelled if (label != ignore).any()
    )
    return in_order(count_prediction, work, benchmark.num_workers)


def _levels(prediction: Prediction, name: str) -> np.ndarray:
    """Returns a task's probabilities as levels 0 to 255."""
    prediction.check_finite(name, "--odsf")
    return to_levels(prediction.values[name])
