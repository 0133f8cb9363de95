"""What `eval` says beside the table of scores: IoU of classes, other scores, gains, confusion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from mtmamba_jax.config import Config
from mtmamba_jax.devices.processes import is_first
from mtmamba_jax.metrics import create_metric
from mtmamba_jax.metrics.base import Counts
from mtmamba_jax.metrics.multitask import delta_m, headline
from mtmamba_jax.metrics.scores import Scores, compute_scores
from mtmamba_jax.metrics.segmentation import Segmentation
from mtmamba_jax.paper.printed import DATASET, ROWS, SCORES
from mtmamba_jax.tasks import Task
from mtmamba_jax.visualization.confusion import draw_confusion
from mtmamba_jax.visualization.render import write_png

MOST_LISTED = 60
"""Classes whose IoU is printed; of more they are in the file alone."""

_WIDTH = 100  # characters of a line of the table of classes


def class_ious(tasks: Sequence[Task], totals: Mapping[str, Counts]) -> dict[str, dict[str, float]]:
    """Returns {task: {class: IoU in percent}} of the tasks of classes.

    Args:
      tasks: that were scored.
      totals: of `Evaluator.totals`.
    """
    metrics = {task.name: create_metric(task) for task in tasks}
    return {
        name: metric.per_class(totals[name])
        for name, metric in metrics.items()
        if isinstance(metric, Segmentation)
    }


def details(
    config: Config,
    tasks: Sequence[Task],
    totals: Mapping[str, Counts],
    scores: Scores,
    constants: Mapping[str, float],
) -> str:
    """Returns what is to be read below `evaluate.score_table`.

    Args:
      config: of the run.
      tasks: that were scored.
      totals: of `Evaluator.totals`.
      scores: all scores of each task; more than those of `totals` may be among them.
      constants: of `Evaluator.constants`.
    """
    parts = [
        class_table(name, ious, totals[name]["confusion"])
        for name, ious in class_ious(tasks, totals).items()
    ]
    parts.append(other_scores(tasks, compute_scores(tasks, totals)))
    baselines = dict(config.tasks.baselines)
    parts.append(gains(tasks, scores, constants, baselines, config.data.name))
    return "\n\n".join(filter(None, parts))


def class_table(name: str, ious: Mapping[str, float], confusion: np.ndarray) -> str:
    """Returns a table of a task's IoUs in columns, read downwards.

    Args:
      name: of the task.
      ious: by class, percent.
      confusion: pixels, [labelled predicted]: a class in neither has no IoU, and a - for it.
    """
    if len(ious) > MOST_LISTED:
        return f"{name}: IoU of {len(ious)} classes, in the file of scores"
    seen = confusion.sum(0) + confusion.sum(1) > 0
    values = [f"{v:6.2f}" if s else f"{'-':>6}" for v, s in zip(ious.values(), seen, strict=True)]
    width = max(map(len, ious))
    cells = [f"{c:<{width}} {value}" for c, value in zip(ious, values, strict=True)]
    rows = math.ceil(len(cells) / max(1, _WIDTH // (width + 10)))
    absent = "" if seen.all() else "; -: neither labelled nor predicted, 0 in the mean"
    lines = [f"{name}, IoU in %{absent}"]
    lines += ["   ".join(cells[i::rows]) for i in range(rows)]
    return "\n".join(lines)


def other_scores(tasks: Sequence[Task], scores: Scores) -> str:
    """Returns a line for each task with scores that are not in the table; may be empty."""
    lines = []
    for task in tasks:
        units = create_metric(task).units()
        others = [
            f"{name} {value:.3f} {units.get(name, '')}".rstrip()
            for name, value in scores[task.name].items()
            if name != task.score
        ]
        if others:
            lines.append(f"{task.name:<12} {', '.join(others)}")
    return "\n".join(lines)


def gains(
    tasks: Sequence[Task],
    scores: Scores,
    constants: Mapping[str, float],
    baselines: Mapping[str, float],
    data_name: str,
) -> str:
    """Returns delta_m in lines: against what training takes and, on its data, the paper's scores.

    Of the paper's a task counts if it has the very score here that the paper has: its edge score is
    odsF, and a maxF is no odsF.

    Args:
      tasks: that were scored.
      scores: all scores of each; one that the paper has may be beside `Task.score`.
      constants: of `Evaluator.constants`.
      baselines: `config.tasks.baselines`; empty: the constants are taken.
      data_name: `config.data.name`.
    """
    found = headline(tasks, scores)
    what = "tasks.baselines" if baselines else "the best constant predictions"
    lines = [_gain(tasks, found, baselines or constants, what)]
    if data_name == DATASET:
        lines.append(_gain_on_paper(tasks, scores))
    return "\n".join(lines)


def _gain_on_paper(tasks: Sequence[Task], scores: Scores) -> str:
    same = [task for task in tasks if SCORES.get(task.name) in scores[task.name]]
    others = [task.name for task in tasks if task not in same]
    if not same:
        return "delta_m against the paper's single-task models: none, no score here is the paper's"
    found = {task.name: scores[task.name][SCORES[task.name]] for task in same}
    printed = next(row.scores for row in ROWS if row.single_task)
    what = "the paper's single-task models (Swin-Large)"
    if others:
        what += f", of {', '.join(task.name for task in same)} alone: "
        what += ", ".join(f"{name} has no {SCORES.get(name, 'score there')}" for name in others)
    return _gain(same, found, printed, what)


def _gain(
    tasks: Sequence[Task], found: Mapping[str, float], baselines: Mapping[str, float], what: str
) -> str:
    try:
        return f"delta_m {delta_m(tasks, found, baselines):+.2f} % against {what}"
    except ValueError as error:  # a baseline of 0 or NaN: constants on a set without labels
        return f"delta_m against {what}: none. {error}"


def write_confusions(
    folder: epath.Path, tasks: Sequence[Task], totals: Mapping[str, Counts], suffix: str = ""
) -> list[epath.Path]:
    """Writes `confusion_<task><suffix>.png` for each task of classes and returns the paths.

    Of several processes the first does.
    """
    paths = []
    for task in tasks:
        if isinstance(create_metric(task), Segmentation) and is_first():
            picture = draw_confusion(task.name, task.class_names, totals[task.name]["confusion"])
            paths.append(folder / f"confusion_{task.name}{suffix}.png")
            write_png(paths[-1], np.asarray(picture))
    return paths
