"""One of the paper's tables, filled in with the scores of finished runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from mtmamba_jax.messages import short
from mtmamba_jax.metrics.multitask import delta_m
from mtmamba_jax.models.swin import SWIN_SIZES
from mtmamba_jax.paper.cost import count_cost
from mtmamba_jax.paper.printed import DATASET, ROWS, SCORES, Row
from mtmamba_jax.paper.run_groups import Lines, Place, all_tasks
from mtmamba_jax.paper.runs import FinishedRun
from mtmamba_jax.paper.table_formats import Spread, Table
from mtmamba_jax.tasks import Task

CONTOURS = "odsF"
"""The score of `FinishedRun.contours`; higher is better."""

Column = tuple[Task, str]
"""A column of scores: the task, and the score's name."""


def run_table(lines: Lines, told: Sequence[str]) -> Table:
    """Returns the table of some lines; on the paper's dataset its own are below them.

    Args:
      lines: of `group_runs`.
      told: keys of the configuration that the title tells, beside data, size and steps.

    Raises:
      ValueError: odsF was not scored alike.
    """
    runs = [run for found in lines.values() for run in found]
    config = runs[0].config
    tasks, flat = all_tasks(runs[0]), config.flat()
    height, width = config.data.size
    title = f"{config.data.name}, {height}x{width}, {config.train.steps} steps"
    title += "".join(f", {key}={flat.get(key)}" for key in told)
    _check_contours(runs)
    scores, (gain_title, lead) = _score_columns(tasks, runs), _lead(tasks, runs)
    columns = ["row", "encoder", "runs", *(_score_title(*column) for column in scores)]
    columns += [gain_title, "#Param, M", "FLOPs, G"]
    rows = []
    order = list(SWIN_SIZES)
    for place in sorted(lines, key=lambda p: (p.row, order.index(p.encoder), p.weights or "")):
        rows.append(_cells(place, lines[place], scores, _gain(place, lines, tasks, lead)))
        if config.data.name == DATASET:
            rows += _printed(place, scores)
    return Table(columns, rows, left=2, title=title)


def _check_contours(runs: Sequence[FinishedRun]) -> None:
    """Raises ValueError where odsF was not scored alike."""
    ways = {}
    for run in runs:
        if run.contours:
            way = [
                f"{key}={run.benchmark.get(key)}" for key in ("reading", "max_distance", "images")
            ]
            # Not the folder's path, which differs between machines.
            own = run.benchmark.get("labels") is None
            way.append(f"labels of {'the test set' if own else 'a folder'}")
            ways.setdefault(", ".join(way), run.workdir)
    if len(ways) > 1:
        told = "".join(f"\n    {way}: {workdir}" for way, workdir in ways.items())
        raise ValueError(
            f"The odsF of runs of one table was scored in different ways:{told}\nScore them alike: "
            "the command eval, with --odsf."
        )


def _score_columns(tasks: Sequence[Task], runs: Sequence[FinishedRun]) -> list[Column]:
    """Returns each task's score, and odsF beside it where a run has it."""
    return [
        (task, score)
        for task in tasks
        for score in (task.score, CONTOURS)
        if score == task.score or any(task.name in run.contours for run in runs)
    ]


def _lead(
    tasks: Sequence[Task], runs: Sequence[FinishedRun]
) -> tuple[str, Callable[[FinishedRun], Mapping[str, float]]]:
    """Returns the title of delta_m, and which of a run's scores it is of.

    As in the paper of odsF, once every run with such a task has it.
    """
    scored = [task for task in tasks if any(task.name in run.contours for run in runs)]
    if not scored:
        return "delta_m, %", lambda run: run.scores
    names = {task.name for task in scored}
    if all(names & run.scores.keys() <= run.contours.keys() for run in runs):
        return f"delta_m with {CONTOURS}, %", lambda run: {**run.scores, **run.contours}
    own = " and ".join(task.score for task in scored)
    return f"delta_m with {own}, %", lambda run: run.scores


def _score_title(task: Task, score: str) -> str:
    own = score == task.score
    unit = f" ({task.unit})" if own and task.unit else ""
    return f"{task.name} {score}{unit} {'↓' if own and task.lower_is_better else '↑'}"


def _gain(
    place: Place,
    lines: Lines,
    tasks: Sequence[Task],
    lead: Callable[[FinishedRun], Mapping[str, float]],
) -> str | Spread:
    """Returns a line's delta_m against single-task models with its encoder, - if any lacks."""
    number = next(i for i, row in enumerate(ROWS) if row.single_task)
    found: dict[str, list[float]] = {}
    for run in lines.get(place._replace(row=number), ()):
        for name, score in lead(run).items():
            found.setdefault(name, []).append(score)
    if set(found) != {task.name for task in tasks}:
        return "-"
    if ROWS[place.row].single_task:
        return "0"
    baselines = {name: sum(values) / len(values) for name, values in found.items()}
    return Spread(tuple(delta_m(tasks, lead(run), baselines) for run in lines[place]), sign=True)


def _cells(
    place: Place, runs: Sequence[FinishedRun], scores: Sequence[Column], gain: str | Spread
) -> list[str | Spread]:
    row = ROWS[place.row]
    encoder = f"{place.encoder}, given weights" if place.weights else place.encoder
    cells: list[str | Spread] = [row.title, encoder, str(len(runs))]
    cells += [_score_cell(task, score, runs) for task, score in scores]
    cells.append(gain)
    each = {run.tasks: run.config for run in runs}.values()  # of each task, where they are single
    complete = not row.single_task or len(each) == len({task for task, _ in scores})
    costs = [count_cost(config) for config in each] if complete else []
    cells.append(short(sum(cost.parameters for cost in costs)) if complete else "-")
    cells.append(short(sum(cost.flops for cost in costs)) if complete else "-")
    return cells


def _score_cell(task: Task, score: str, runs: Sequence[FinishedRun]) -> str | Spread:
    """Returns the scores of a line's runs; - where there are none, or some lack odsF."""
    found = [
        run.scores if score == task.score else run.contours
        for run in runs
        if task.name in run.scores
    ]
    values = tuple(scores[task.name] for scores in found if task.name in scores)
    return Spread(values, _digits(task)) if values and len(values) == len(found) else "-"


def _digits(task: Task) -> int:
    return 4 if task.metric == "depth" else 2


def _printed(place: Place, scores: Sequence[Column]) -> list[list[str]]:
    """Returns the paper's line for the same row, none where it has none."""
    row = ROWS[place.row]
    same: list[Row] = [
        each
        for each in ROWS
        if (each.model, each.single_task, each.encoder)
        == (row.model, row.single_task, place.encoder)
    ]
    return [
        [
            *("the paper's", place.encoder, ""),
            *(_printed_score(column, each, scores) for column in scores),
            *("-" if v is None else f"{v:.2f}" for v in (each.gain, each.parameters, each.flops)),
        ]
        for each in same
    ]


def _printed_score(column: Column, row: Row, columns: Sequence[Column]) -> str:
    """Returns the paper's score; in the column of another one where it has none of its own."""
    task, score = column
    printed = SCORES.get(task.name)
    if printed is None or (score != printed and (task, printed) in columns):
        return "-"
    text = f"{row.scores[task.name]:.{_digits(task)}f}"
    return text if score == printed else f"{text} {printed}"
