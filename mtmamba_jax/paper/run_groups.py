"""Which finished runs are lines of one table, and which row of the paper a line is of.

With `sweep --seeds=0,1` of the single-task row, the multi-task row and MTMamba on a set of two
tasks there are eight runs: they differ in model, tasks and seed alone, so they are one table. Its
lines are three, of four runs (two tasks, two seeds), two and two. The same sweep at another
learning rate makes a second table, and the titles of both then tell `optimizer.learning_rate`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mtmamba_jax.config import FREE_KEYS
from mtmamba_jax.paper.printed import ROWS
from mtmamba_jax.paper.runs import FinishedRun
from mtmamba_jax.tasks import TASK_SETS, Task

ROW_KEYS = ("model.name", "model.encoder", "tasks.names", "init.encoder")
"""Keys in which the rows of one table differ."""

Recipe = tuple[tuple[str, str], ...]


class Place(NamedTuple):
    """A line of a table: the paper's row, by number, its encoder, and the encoder's weights."""

    row: int
    encoder: str
    weights: str | None


Lines = Mapping[Place, Sequence[FinishedRun]]
"""The runs of a table's lines: one for each seed, and for each task where they learn one."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Runs, sorted.

    Attributes:
      tables: the lines of each table.
      different: keys of the configuration in which tables differ.
      others: work directories of runs that are of none of the paper's rows.
      again: those of runs that are what an earlier one is, with its seed.
    """

    tables: Sequence[Lines]
    different: Sequence[str]
    others: Sequence[Path]
    again: Sequence[Path]


def group_runs(runs: Sequence[FinishedRun]) -> Groups:
    """Sorts runs into tables, one for all that differ in their rows and seeds alone."""
    recipes: dict[Recipe, dict[Place, list[FinishedRun]]] = {}
    others, again = [], []
    for run in runs:
        place = _place(run)
        if place is None:
            others.append(run.workdir)
            continue
        line = recipes.setdefault(_recipe(run), {}).setdefault(place, [])
        if any(_is_same(run, counted) for counted in line):
            again.append(run.workdir)
        else:
            line.append(run)
    different = {
        key for one, other in itertools.combinations(recipes, 2) for key, _ in set(one) ^ set(other)
    }
    tables = [lines for _, lines in sorted(recipes.items())]
    return Groups(tables, sorted(different), others, again)


def all_tasks(run: FinishedRun) -> tuple[Task, ...]:
    """Returns the tasks of a run's set as the set has them: without classes that the run names."""
    return TASK_SETS[run.config.tasks.set]


def _place(run: FinishedRun) -> Place | None:
    """Returns which line of a table a run is for, None where it is for none."""
    config = run.config
    single = len(run.tasks) == 1
    if not single and len(run.tasks) < len(all_tasks(run)):
        return None
    for number, row in enumerate(ROWS):
        if (row.model, row.single_task) == (config.model.name, single):
            return Place(number, config.model.encoder, config.init.encoder)
    return None


def _recipe(run: FinishedRun) -> Recipe:
    """Returns all that runs of one table have in common, sortable."""
    left_out = {"seed", *FREE_KEYS, *ROW_KEYS}
    return tuple(
        (key, repr(value))
        for key, value in run.config.flat().items()
        if key not in left_out and not key.startswith("tasks.baselines")
    )


def _is_same(run: FinishedRun, other: FinishedRun) -> bool:
    """Whether two runs of one line differ in nothing: single-task runs of a line do in the task."""
    return run.config.seed == other.config.seed and run.tasks == other.tasks
