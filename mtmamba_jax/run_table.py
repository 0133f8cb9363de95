"""The paper's tables, filled in with the scores of finished runs."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mtmamba_jax import config as configuration
from mtmamba_jax.metrics.multitask import delta_m
from mtmamba_jax.models.swin import SWIN_SIZES
from mtmamba_jax.paper import ROWS, SCORES, Row
from mtmamba_jax.paper_cost import count_cost
from mtmamba_jax.runs import FinishedRun
from mtmamba_jax.table_formats import Spread, Table
from mtmamba_jax.tables import short
from mtmamba_jax.tasks import Task, select

ROW_KEYS = ("model.name", "model.encoder", "tasks.names", "init.encoder")
"""Keys in which the rows of one table differ."""

Recipe = tuple[tuple[str, str], ...]


class Place(NamedTuple):
    """A line of a table: the paper's row, by number, its encoder, and the encoder's weights."""

    row: int
    encoder: str
    weights: str | None


def run_tables(runs: Sequence[FinishedRun]) -> tuple[list[Table], list[Path]]:
    """Sorts runs into tables, one for all that differ in their rows and seeds alone.

    Returns:
      The tables, and the work directories of runs that are of none of the paper's rows.
    """
    recipes: dict[Recipe, dict[Place, list[FinishedRun]]] = {}
    others = []
    for run in runs:
        place = place_of(run)
        if place is None:
            others.append(run.workdir)
        else:
            recipes.setdefault(_recipe(run), {}).setdefault(place, []).append(run)
    different = {
        key for one, other in itertools.combinations(recipes, 2) for key, _ in set(one) ^ set(other)
    }
    tables = [_table(lines, different) for _, lines in sorted(recipes.items())]
    return tables, others


def place_of(run: FinishedRun) -> Place | None:
    """Returns which line of a table a run is for, None where it is for none."""
    config = run.config
    single = len(run.tasks) == 1
    if not single and len(run.tasks) < len(_all_tasks(run)):
        return None
    for number, row in enumerate(ROWS):
        if (row.model, row.single_task) == (config.model.name, single):
            return Place(number, config.model.encoder, config.init.encoder)
    return None


def _all_tasks(run: FinishedRun) -> tuple[Task, ...]:
    return select(run.config.tasks.set, (), run.config.tasks.classes)


def _recipe(run: FinishedRun) -> Recipe:
    """Returns all that runs of one table have in common, sortable."""
    left_out = {"seed", *configuration.FREE_KEYS, *ROW_KEYS}
    return tuple(
        (key, repr(value))
        for key, value in configuration.flatten(run.config).items()
        if key not in left_out and not key.startswith("tasks.baselines")
    )


def _table(lines: Mapping[Place, Sequence[FinishedRun]], different: set[str]) -> Table:
    first = next(iter(lines.values()))[0]
    tasks, flat = _all_tasks(first), configuration.flatten(first.config)
    height, width = first.config.data.size
    title = f"{first.config.data.name}, {height}x{width}, {first.config.train.steps} steps"
    title += "".join(f", {key}={flat.get(key)}" for key in sorted(different))
    columns = ["row", "encoder", "runs", *(_score_title(task) for task in tasks)]
    columns += ["delta_m, %", "#Param, M", "FLOPs, G"]
    rows = []
    order = list(SWIN_SIZES)
    for place in sorted(lines, key=lambda p: (p.row, order.index(p.encoder), p.weights or "")):
        rows.append(_cells(place, lines[place], tasks, _baselines(lines, place, tasks)))
        if first.config.data.name == "nyudv2":
            rows += _printed(place, tasks)
    return Table(columns, rows, left=2, title=title)


def _score_title(task: Task) -> str:
    unit = f" ({task.unit})" if task.unit else ""
    return f"{task.name} {task.score}{unit} {'↓' if task.lower_is_better else '↑'}"


def _baselines(
    lines: Mapping[Place, Sequence[FinishedRun]], place: Place, tasks: Sequence[Task]
) -> dict[str, float] | None:
    """Returns the mean scores of single-task models with a line's encoder, None if any lacks."""
    number = next(i for i, row in enumerate(ROWS) if row.single_task)
    found = _by_task(lines.get(place._replace(row=number), ()))
    if set(found) != {task.name for task in tasks}:
        return None
    return {name: sum(values) / len(values) for name, values in found.items()}


def _by_task(runs: Sequence[FinishedRun]) -> dict[str, tuple[float, ...]]:
    found: dict[str, tuple[float, ...]] = {}
    for run in runs:
        for name, score in run.scores.items():
            found[name] = (*found.get(name, ()), score)
    return found


def _cells(
    place: Place,
    runs: Sequence[FinishedRun],
    tasks: Sequence[Task],
    baselines: Mapping[str, float] | None,
) -> list[str | Spread]:
    row, found = ROWS[place.row], _by_task(runs)
    encoder = f"{place.encoder}, given weights" if place.weights else place.encoder
    cells: list[str | Spread] = [row.title, encoder, str(len(runs))]
    for task in tasks:
        values = found.get(task.name)
        cells.append(Spread(values, _digits(task)) if values else "-")
    if baselines is None:
        cells.append("-")
    elif row.single_task:
        cells.append("0")
    else:
        gains = tuple(delta_m(tasks, run.scores, baselines) for run in runs)
        cells.append(Spread(gains, sign=True))
    each = {run.tasks: run.config for run in runs}.values()  # of each task, where they are single
    complete = not row.single_task or len(each) == len(tasks)
    costs = [count_cost(config) for config in each] if complete else []
    cells.append(short(sum(cost.parameters for cost in costs)) if complete else "-")
    cells.append(short(sum(cost.flops for cost in costs)) if complete else "-")
    return cells


def _digits(task: Task) -> int:
    return 4 if task.metric == "depth" else 2


def _printed(place: Place, tasks: Sequence[Task]) -> list[list[str]]:
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
            *(_printed_score(task, each) for task in tasks),
            *("-" if v is None else f"{v:.2f}" for v in (each.gain, each.parameters, each.flops)),
        ]
        for each in same
    ]


def _printed_score(task: Task, row: Row) -> str:
    score = SCORES.get(task.name)
    if score is None:
        return "-"
    text = f"{row.scores[task.name]:.{_digits(task)}f}"
    return text if score == task.score else f"{text} {score}"
