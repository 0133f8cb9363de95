"""Finding the runs below a folder, and what the finished ones scored."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from mtmamba_jax.checkpoints.run_directory import KINDS, RunDirectory
from mtmamba_jax.config import Config
from mtmamba_jax.metrics.multitask import headline
from mtmamba_jax.tasks import Task


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that took all its steps.

    Attributes:
      workdir: of the run.
      config: that it was trained with.
      tasks: of the run.
      scores: of its best checkpoint on the test set, each task's `Task.score`.
      contours: odsF of that checkpoint, by task; none where the command eval has not scored it.
      benchmark: how odsF was scored, by name of the setting.
    """

    workdir: pathlib.Path
    config: Config
    tasks: tuple[Task, ...]
    scores: Mapping[str, float]
    contours: Mapping[str, float] = dataclasses.field(default_factory=dict)
    benchmark: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Found:
    """The runs below a folder.

    Attributes:
      finished: those that took all their steps.
      unfinished: the places of the others.
      outdated: files with an odsF of another step than the best checkpoint's, which is not taken.
    """

    finished: Sequence[FinishedRun]
    unfinished: Sequence[pathlib.Path]
    outdated: Sequence[pathlib.Path]


def find_runs(folder: pathlib.Path) -> Found:
    """Returns the runs in a folder and below it, in the order of their paths.

    Raises:
      ValueError: there is no such folder, or a run cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"--runs wants a folder of work directories; there is no folder {folder}.")
    finished, unfinished, outdated = [], [], []
    for place, folders, files in os.walk(folder):
        if "config.json" in files and set(folders) & set(KINDS):
            folders.clear()  # checkpoints are many files, and no run is in another
            workdir = pathlib.Path(place)
            directory = RunDirectory(workdir)
            config = directory.read_config()
            if directory.is_finished(config.train.steps):
                run = _finished_run(workdir, directory, config)
                file = pathlib.Path(directory.scores_file("best"))
                scored = _scored_contours(file)
                if scored and scored.pop("step") != directory.steps("best")[-1]:
                    outdated.append(file)
                    scored = {}
                finished.append(dataclasses.replace(run, **scored))
            else:
                unfinished.append(workdir)
        folders.sort()
    return Found(finished, unfinished, outdated)


def _finished_run(workdir: pathlib.Path, directory: RunDirectory, config: Config) -> FinishedRun:
    tasks, best = config.tasks.selected, directory.newest("best")
    assert best is not None  # the run is finished
    try:
        scores = headline(tasks, best.read_details()["scores"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"The scores in {best.path} cannot be read ({type(error).__name__}: {error}). The "
            f"command train, with --workdir={workdir}, mends it."
        ) from error
    return FinishedRun(workdir, config, tasks, scores)


def _scored_contours(path: pathlib.Path) -> dict:
    """Returns the step of which the command eval scored contours, `contours` and `benchmark`.

    Empty where it has not.

    Raises:
      ValueError: its file cannot be read.
    """
    if not path.exists():
        return {}
    try:
        written = json.loads(path.read_text())
        if "boundaries" not in written:
            return {}
        contours = {
            task: scores["odsF"] for task, scores in written["scores"].items() if "odsF" in scores
        }
        step, settings = written["step"], written["boundaries"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} cannot be read ({type(error).__name__}: {error}). Delete it, or have the "
            f"command eval, with --workdir={path.parent}, write it anew."
        ) from error
    return {"step": step, "contours": contours, "benchmark": settings}
