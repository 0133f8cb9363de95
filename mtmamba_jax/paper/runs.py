"""Finds the runs in a folder, and the scores of the finished ones."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from mtmamba_jax.checkpoints.run_directory import CONFIG_FILE, KINDS, RunDirectory
from mtmamba_jax.config import Config
from mtmamba_jax.messages import first_line
from mtmamba_jax.metrics.multitask import headline
from mtmamba_jax.tasks.table import Task


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that was trained to its last step.

    Attributes:
      workdir: The run's work directory.
      config: The run's configuration.
      tasks: The run's tasks.
      scores: Each task's `Task.score` on the test set, for the best checkpoint.
      contours: odsF of that checkpoint, by task name; empty unless the command eval computed it.
      benchmark: Settings that odsF was computed with.
    """

    workdir: pathlib.Path
    config: Config
    tasks: tuple[Task, ...]
    scores: Mapping[str, float]
    contours: Mapping[str, float]
    benchmark: Mapping[str, object]


@dataclasses.dataclass(frozen=True)
class FoundRuns:
    """The runs in a folder.

    Attributes:
      finished: Runs that were trained to their last step.
      unfinished: Work directories of the other runs.
      outdated: Files whose odsF is not from the step of the best checkpoint and thus ignored.
    """

    finished: Sequence[FinishedRun]
    unfinished: Sequence[pathlib.Path]
    outdated: Sequence[pathlib.Path]


def find_runs(folder: pathlib.Path) -> FoundRuns:
    """Returns the runs in a folder and its subfolders, ordered by path.

    Raises:
      ValueError: If the folder does not exist or a run cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(
            f"--runs must be a folder of work directories; there is no folder {folder}."
        )
    finished, unfinished, outdated = [], [], []
    for place, folders, files in os.walk(folder):
        if CONFIG_FILE in files and set(folders) & set(KINDS):
            folders.clear()  # checkpoints have many files, and runs do not nest
            workdir = pathlib.Path(place)
            directory = RunDirectory(workdir)
            config = directory.read_config()
            if not directory.is_finished(config.train.steps):
                unfinished.append(workdir)
                continue
            scores = _read_scores(directory, config.tasks.selected)
            file = pathlib.Path(directory.scores_file("best"))
            found = _read_boundary_scores(file)
            if found and found[0] != directory.steps("best")[-1]:
                outdated.append(file)
                found = None
            _, contours, settings = found or (None, {}, {})
            finished.append(
                FinishedRun(workdir, config, config.tasks.selected, scores, contours, settings)
            )
        folders.sort()
    return FoundRuns(finished, unfinished, outdated)


def _read_scores(directory: RunDirectory, tasks: Sequence[Task]) -> dict[str, float]:
    best = directory.newest("best")
    assert best is not None  # the run is finished
    try:
        return headline(tasks, best.read_details()["scores"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"The scores in {best.path} cannot be read ({first_line(error)}). To repair the run, "
            f"run the command train with --workdir={directory}."
        ) from error


def _read_boundary_scores(path: pathlib.Path) -> tuple[int, dict, dict] | None:
    """Returns step, odsF by task and settings as written by eval; None if it scored no contours."""
    if not path.exists():
        return None
    try:
        written = json.loads(path.read_text())
        if "boundaries" not in written:
            return None
        contours = {
            task: scores["odsF"] for task, scores in written["scores"].items() if "odsF" in scores
        }
        return written["step"], contours, written["boundaries"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({first_line(error)}). Delete it, or write it again: the "
            f"command eval, with --workdir={path.parent}."
        ) from error
