"""The boundary benchmark of a model's test set, while it predicts."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from mtmamba_jax.data_pipelines.parallel import available_cores, in_order
from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.metrics.boundaries.contours import thin
from mtmamba_jax.metrics.boundaries.counts import MAX_DISTANCE
from mtmamba_jax.metrics.boundaries.folders import (
    count_against_file,
    count_prediction,
    excluded_ids,
)
from mtmamba_jax.metrics.boundaries.report import scoring_settings
from mtmamba_jax.readout import to_levels
from mtmamba_jax.tasks import Task

READING_OF_OWN: Mapping[str, str] = {"nyudv2": "regions"}
"""How published figures read a dataset's own edge labels; of others they are contours."""

_DISTANCE = MAX_DISTANCE["pascal_context"]  # where none is published: the stricter one


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """How the contours of a test set are scored.

    Attributes:
      task: whose predictions they are.
      dataset: `config.data.name`.
      reading: of true contours, one of `folders.READINGS`.
      max_distance: as a share of the diagonal.
      labels: folder of NAME.png or NAME.mat; None takes the test set's labels.
      left_out: ids that are not scored.
      num_workers: processes that count; 0 counts in this one.
    """

    task: Task
    dataset: str
    reading: str
    max_distance: float
    labels: pathlib.Path | None
    left_out: frozenset[str]
    num_workers: int

    @property
    def settings(self) -> dict[str, object]:
        """What scores depend on beside the model, for reports."""
        return scoring_settings(
            self.dataset,
            self.reading,
            self.max_distance,
            labels=self.labels,
            only_published_images=bool(self.left_out),
        )

    def describe(self) -> str:
        """Returns the settings in words."""
        own = "" if self.dataset in MAX_DISTANCE else f" (none is published for {self.dataset})"
        return (
            f"Boundary benchmark: {self.reading} of labels {self.labels or 'of the test set'}, "
            f"within {self.max_distance} of the diagonal{own}"
        )


def choose_benchmark(
    dataset: str,
    tasks: Sequence[Task],
    *,
    labels: pathlib.Path | None = None,
    every: bool = False,
    num_workers: int | None = None,
) -> Benchmark:
    """Returns how a run's contours are scored, as published for its dataset where it is.

    Args:
      dataset: `config.data.name`.
      tasks: of the run.
      labels: folder of NAME.png or NAME.mat, NAME an example's id, whose regions give the true
        contours: of PASCAL-Context's LabelMap published figures are. None takes the test set's.
      every: score the images too that published figures leave out.
      num_workers: processes that count; None is one a core.

    Raises:
      ValueError: no task of edges, no such folder, or fewer than 0 workers.
      RuntimeError: the extra "data" is not installed.
    """
    edges = [task for task in tasks if task.metric == "edge"]
    if not edges:
        raise ValueError(
            "--odsf scores the task edge, which this run has not: it has "
            f"{', '.join(task.name for task in tasks)}."
        )
    if labels is not None and not labels.is_dir():
        raise ValueError(
            f"--boundary_labels wants a folder of NAME.png or NAME.mat; {labels} is none."
        )
    if num_workers is not None and num_workers < 0:
        raise ValueError(f"--workers: wanted 0 or more, got {num_workers}.")
    thin(np.zeros((1, 1), bool))  # what is not installed is said now
    return Benchmark(
        task=edges[0],
        dataset=dataset,
        reading=READING_OF_OWN.get(dataset, "contours") if labels is None else "regions",
        max_distance=MAX_DISTANCE.get(dataset, _DISTANCE),
        labels=labels,
        left_out=frozenset() if every else excluded_ids(dataset),
        num_workers=available_cores() if num_workers is None else num_workers,
    )


def count_test_set(benchmark: Benchmark, predictions: Iterable[Prediction]) -> Iterator[np.ndarray]:
    """Yields `count_matches` of the images that are scored; few are in memory at once.

    Beside `benchmark.left_out` are left out, with the test set's labels, images of which nothing
    is labelled.

    Raises:
      ValueError: labels that are missing or wrong (`DataError`).
      RuntimeError: a worker was killed.
    """
    settings = benchmark.reading, benchmark.max_distance
    if benchmark.labels is None:
        ignore = benchmark.task.ignore
        work = (
            (levels, label, *settings, ignore)
            for _, levels, label in _scored(benchmark, predictions)
            if (label != ignore).any()
        )
        return in_order(count_prediction, work, benchmark.num_workers)
    work = (
        (name, levels, benchmark.labels, *settings)
        for name, levels, _ in _scored(benchmark, predictions)
    )
    return in_order(count_against_file, work, benchmark.num_workers)


def _scored(
    benchmark: Benchmark, predictions: Iterable[Prediction]
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yields id, levels and label, both uint8 [h w], of images that are not left out."""
    name = benchmark.task.name
    for prediction in predictions:
        if prediction.id not in benchmark.left_out:
            label = prediction.labels[name][..., 0].astype(np.uint8)
            yield prediction.id, to_levels(prediction.values[name]), label
