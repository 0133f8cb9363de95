"""Finding the runs below a folder, and what the finished ones scored."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.run import CONFIG_FILE, is_finished
from mtmamba_jax.checkpoints.saved import KINDS, read_details, steps_saved
from mtmamba_jax.metrics.multitask import headline
from mtmamba_jax.tasks import Task

SCORES_FILE = "scores_{}.json"
"""What the command eval writes of a checkpoint, by its kind."""


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
    config: ConfigDict
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
        if CONFIG_FILE in files and set(folders) & set(KINDS):
            folders.clear()  # checkpoints are many files, and no run is in another
            workdir = pathlib.Path(place)
            config = configuration.read(workdir / CONFIG_FILE)
            if is_finished(epath.Path(workdir), config):
                step = steps_saved(workdir, "best")[-1]
                run = _finished_run(workdir, config, step)
                file = workdir / SCORES_FILE.format("best")
                scored = _scored_contours(file)
                if scored and scored.pop("step") != step:
                    outdated.append(file)
                    scored = {}
                finished.append(dataclasses.replace(run, **scored))
            else:
                unfinished.append(workdir)
        folders.sort()
    return Found(finished, unfinished, outdated)


def _finished_run(workdir: pathlib.Path, config: ConfigDict, step: int) -> FinishedRun:
    tasks = configuration.tasks(config)
    checkpoint = epath.Path(workdir) / "best" / str(step)
    try:
        scores = headline(tasks, read_details(checkpoint)["scores"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"The scores in {checkpoint} cannot be read ({type(error).__name__}: {error}). The "
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
