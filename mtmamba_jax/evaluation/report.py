"""Formats what `eval` prints, and writes confusion matrices."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Int

from mtmamba_jax.config import Config
from mtmamba_jax.devices.processes import is_first
from mtmamba_jax.messages import markdown_table, shortened
from mtmamba_jax.metrics import Scores, compute_scores, create_metric
from mtmamba_jax.metrics.base import NONFINITE, Sums
from mtmamba_jax.metrics.multitask import delta_m, headline, left_out
from mtmamba_jax.metrics.segmentation import PRESENT, Segmentation, present_classes
from mtmamba_jax.paper.published import DATASET, ROWS, SCORES
from mtmamba_jax.tasks.table import Task
from mtmamba_jax.visualization.confusion import draw_confusion
from mtmamba_jax.visualization.figures import write_figure

MOST_LISTED = 60
"""Largest number of classes whose IoU is printed; of more classes only the file has it."""

_WIDTH = 100  # characters per line of the table of classes


def class_ious(tasks: Sequence[Task], totals: Mapping[str, Sums]) -> dict[str, dict[str, float]]:
    """Returns {task name: {class name: IoU in percent}}, given `Evaluator.totals`."""
    return {
        task.name: metric.per_class(totals[task.name])
        for task in tasks
        if isinstance(metric := create_metric(task), Segmentation)
    }


def score_table(tasks: Sequence[Task], scores: Scores, constants: Mapping[str, float]) -> str:
    """Returns a table of each task's score and that of the best constant prediction.

    Below it, a line warns of each task with predictions that are not finite, and one gives the
    other reading of a mIoU in which absent classes count as 0.
    """

    def row(task: Task) -> tuple[str, ...]:
        value, constant = scores[task.name][task.score], constants[task.name]
        unit = f" ({task.unit})" if task.unit else ""
        score = f"{task.score}{unit}, {'lower' if task.lower_is_better else 'higher'}"
        ratio = f"{value / constant:.2f}x" if constant else "-"
        return task.name, score, f"{value:.3f}", f"{constant:.3f}", ratio

    columns = ("task", "score", "model", "constant", "ratio")
    notes = [
        f"\nwarning: {task.name} has no score: the prediction is NaN, infinite or too large at "
        f"{scores[task.name][NONFINITE]:,} labelled pixels."
        for task in tasks
        if NONFINITE in scores[task.name]
    ]
    notes += [
        f"\n{task.name}: mIoU counts classes that are neither labelled nor predicted as 0, as "
        f"published; without them ({PRESENT}) it is {scores[task.name][PRESENT]:.3f}."
        for task in tasks
        if scores[task.name].get(PRESENT, math.nan) > scores[task.name][task.score]
    ]
    return markdown_table(columns, map(row, tasks), left=2) + "".join(notes)


def format_details(
    config: Config,
    tasks: Sequence[Task],
    totals: Mapping[str, Sums],
    scores: Scores,
    constants: Mapping[str, float],
) -> str:
    """Returns what is printed below `score_table`: class IoUs, other scores, delta_m.

    `totals` and `constants` are from an `Evaluator`; `scores` may have more than those computed
    from `totals`.
    """
    parts = [
        format_class_ious(name, ious, np.asarray(totals[name]["confusion"]))
        for name, ious in class_ious(tasks, totals).items()
    ]
    parts.append(format_other_scores(tasks, compute_scores(tasks, totals)))
    baselines = dict(config.tasks.baselines)
    parts.append(format_gains(tasks, scores, constants, baselines, config.data.name))
    return "\n\n".join(filter(None, parts))


def format_class_ious(
    name: str, ious: Mapping[str, float], confusion: Int[np.ndarray, "c c"]
) -> str:
    """Returns a table of a task's IoUs in percent, whose columns are read downwards.

    A class that is neither labelled nor predicted in `confusion` is printed as "-". Of many
    classes only those are listed.
    """
    seen = present_classes(confusion)
    absent = [each for each, s in zip(ious, seen, strict=True) if not s]
    if len(ious) > MOST_LISTED:
        listed = f"; neither labelled nor predicted: {shortened(absent, 20)}" if absent else ""
        return f"{name}: IoU of {len(ious)} classes, in the file of scores{listed}"
    values = [f"{v:6.2f}" if s else f"{'-':>6}" for v, s in zip(ious.values(), seen, strict=True)]
    width = max(map(len, ious))
    cells = [f"{c:<{width}} {value}" for c, value in zip(ious, values, strict=True)]
    rows = math.ceil(len(cells) / max(1, _WIDTH // (width + 10)))
    note = f"; -: neither labelled nor predicted, 0 in mIoU, not in {PRESENT}" if absent else ""
    lines = ("   ".join(cells[i::rows]) for i in range(rows))
    return "\n".join([f"{name}, IoU in %{note}", *lines])


def format_other_scores(tasks: Sequence[Task], scores: Scores) -> str:
    """Returns a line for each task with scores besides `Task.score`; may be empty."""
    lines = []
    for task in tasks:
        units = create_metric(task).units
        without = (task.score, NONFINITE)
        values = {name: v for name, v in scores[task.name].items() if name not in without}
        others = [f"{name} {v:.3f} {units.get(name, '')}".rstrip() for name, v in values.items()]
        if others:
            lines.append(f"{task.name:<12} {', '.join(others)}")
    return "\n".join(lines)


def format_gains(
    tasks: Sequence[Task],
    scores: Scores,
    constants: Mapping[str, float],
    baselines: Mapping[str, float],
    data_name: str,
) -> str:
    """Returns lines with delta_m: against the baselines and, on its dataset, against the paper.

    The baselines are `config.tasks.baselines` or, if that is empty, the constants. The comparison
    with the paper includes a task only if it has the very score that the paper reports: for edges
    that is odsF, which maxF cannot stand in for.
    """
    name = "tasks.baselines" if baselines else "the best constant predictions"
    reasons = {} if baselines else left_out(tasks, constants)
    included = [task for task in tasks if task.name not in reasons]
    if reasons:
        why = "; ".join(f"{task}: {reason}" for task, reason in reasons.items())
        kept = f", of {', '.join(task.name for task in included)} only" if included else ""
        name += f"{kept} ({why})"
    lines = [_format_gain(included, headline(tasks, scores), baselines or constants, name)]
    if data_name == DATASET:
        lines.append(_format_gain_on_paper(tasks, scores))
    return "\n".join(lines)


def _format_gain_on_paper(tasks: Sequence[Task], scores: Scores) -> str:
    same = [task for task in tasks if SCORES.get(task.name) in scores[task.name]]
    others = [task.name for task in tasks if task not in same]
    if not same:
        return "delta_m against the paper's single-task models: none, no score here is the paper's"
    values = {task.name: scores[task.name][SCORES[task.name]] for task in same}
    published = next(row.scores for row in ROWS if row.single_task)
    name = "the paper's single-task models (Swin-Large)"
    if others:
        name += f", of {', '.join(task.name for task in same)} only: "
        name += ", ".join(f"{other} has no {SCORES.get(other, 'score there')}" for other in others)
    return _format_gain(same, values, published, name)


def _format_gain(
    tasks: Sequence[Task], scores: Mapping[str, float], baselines: Mapping[str, float], name: str
) -> str:
    without = [task.name for task in tasks if math.isnan(scores[task.name])]
    if without:
        return f"delta_m none against {name}: {', '.join(without)} has no score"
    gain = f"{delta_m(tasks, scores, baselines):+.2f} %" if tasks else "none"
    return f"delta_m {gain} against {name}"


def write_confusions(
    folder: epath.Path, tasks: Sequence[Task], totals: Mapping[str, Sums], suffix: str = ""
) -> list[epath.Path]:
    """Writes `confusion_<task><suffix>.png` for each task with classes; returns the paths.

    With several processes only the first one writes.
    """
    paths = []
    for task in tasks:
        if isinstance(create_metric(task), Segmentation) and is_first():
            confusion = np.asarray(totals[task.name]["confusion"])
            figure = draw_confusion(task.name, task.class_names, confusion)
            paths.append(folder / f"confusion_{task.name}{suffix}.png")
            write_figure(paths[-1], figure)
    return paths
