"""Groups finished runs into tables, and matches each run with a row of the paper.

Example: `sweep --seeds=0,1` trains the single-task row, the multi-task row and MTMamba on a set of
two tasks. The eight runs differ only in model, tasks and seed, so they form one table of three
lines, with four runs (two tasks, two seeds), two and two. The same sweep with another learning rate
forms a second table, and then both titles show `optimizer.learning_rate`.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mtmamba_jax.config import FREE_KEYS
from mtmamba_jax.paper.published import ROWS
from mtmamba_jax.paper.runs import FinishedRun
from mtmamba_jax.tasks.table import TASK_SETS, Task

ROW_KEYS = ("model.name", "model.encoder", "tasks.names", "init.encoder")
"""Config keys in which the lines of one table differ."""


class LineKey(NamedTuple):
    """Identifies a line of a table: index of the paper's row, encoder, and encoder weights."""

    row: int
    encoder: str
    weights: str | None


Lines = Mapping[LineKey, Sequence[FinishedRun]]
"""The runs of each line of a table: one per seed and, in the single-task row, per task."""


@dataclasses.dataclass(frozen=True)
class Groups:
    """Runs grouped into tables.

    Attributes:
      tables: The lines of each table.
      differing_keys: Config keys in which the tables differ.
      unmatched: Work directories of runs that match no row of the paper.
      duplicates: Work directories of runs that repeat an earlier run and its seed.
    """

    tables: Sequence[Lines]
    differing_keys: Sequence[str]
    unmatched: Sequence[Path]
    duplicates: Sequence[Path]


def group_runs(runs: Sequence[FinishedRun]) -> Groups:
    """Groups runs into tables: runs that differ only in row and seed share a table."""
    recipes: dict[tuple[tuple[str, str], ...], dict[LineKey, list[FinishedRun]]] = {}
    unmatched, duplicates = [], []
    for run in runs:
        key = _line_key(run)
        if key is None:
            unmatched.append(run.workdir)
            continue
        line = recipes.setdefault(_recipe(run), {}).setdefault(key, [])
        if any((run.config.seed, run.tasks) == (each.config.seed, each.tasks) for each in line):
            duplicates.append(run.workdir)
        else:
            line.append(run)
    differing = {key for a, b in itertools.combinations(recipes, 2) for key, _ in set(a) ^ set(b)}
    tables = [lines for _, lines in sorted(recipes.items())]
    return Groups(tables, sorted(differing), unmatched, duplicates)


def all_tasks(run: FinishedRun) -> tuple[Task, ...]:
    """Returns all tasks of a run's task set, without the classes that the run names."""
    return TASK_SETS[run.config.tasks.set]


def _line_key(run: FinishedRun) -> LineKey | None:
    """Returns the line that a run belongs to, or None if it matches no row."""
    config = run.config
    single = len(run.tasks) == 1
    if not single and len(run.tasks) < len(all_tasks(run)):
        return None
    for index, row in enumerate(ROWS):
        if (row.model, row.single_task) == (config.model.name, single):
            return LineKey(index, config.model.encoder, config.init.encoder)
    return None


def _recipe(run: FinishedRun) -> tuple[tuple[str, str], ...]:
    """Returns the sorted (config key, value) pairs that all runs of a table share."""
    excluded = {"seed", *FREE_KEYS, *ROW_KEYS}
    return tuple(
        (key, repr(value))
        for key, value in run.config.flat().items()
        if key not in excluded and not key.startswith("tasks.baselines")
    )
