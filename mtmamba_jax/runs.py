"""Finding the runs below a folder, and what the finished ones scored."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence

from etils import epath
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.metrics.multitask import headline
from mtmamba_jax.tasks import Task
from mtmamba_jax.training.checkpoints import KINDS, steps_saved
from mtmamba_jax.training.run import CONFIG_FILE, is_finished, saved_details


@dataclasses.dataclass(frozen=True)
class FinishedRun:
    """A run that took all its steps.

    Attributes:
      workdir: of the run.
      config: that it was trained with.
      tasks: of the run.
      scores: of its best checkpoint on the test set, each task's `Task.score`.
    """

    workdir: pathlib.Path
    config: ConfigDict
    tasks: tuple[Task, ...]
    scores: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Found:
    """The runs below a folder: those that are finished, and the places of the others."""

    finished: Sequence[FinishedRun]
    unfinished: Sequence[pathlib.Path]


def find_runs(folder: pathlib.Path) -> Found:
    """Returns the runs in a folder and below it, in the order of their paths.

    Raises:
      ValueError: there is no such folder, or a run cannot be read.
    """
    if not folder.is_dir():
        raise ValueError(f"--runs wants a folder of work directories; there is no folder {folder}.")
    finished, unfinished = [], []
    for place, folders, files in os.walk(folder):
        if CONFIG_FILE in files and set(folders) & set(KINDS):
            folders.clear()  # checkpoints are many files, and no run is in another
            workdir = pathlib.Path(place)
            config = configuration.read(workdir / CONFIG_FILE)
            if is_finished(epath.Path(workdir), config):
                finished.append(_finished_run(workdir, config))
            else:
                unfinished.append(workdir)
        folders.sort()
    return Found(finished, unfinished)


def _finished_run(workdir: pathlib.Path, config: ConfigDict) -> FinishedRun:
    tasks = configuration.tasks(config)
    checkpoint = epath.Path(workdir) / "best" / str(steps_saved(workdir, "best")[-1])
    try:
        scores = headline(tasks, saved_details(checkpoint)["scores"])
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"The scores in {checkpoint} cannot be read ({type(error).__name__}: {error}). The "
            f"command train, with --workdir={workdir}, mends it."
        ) from error
    return FinishedRun(workdir, config, tasks, scores)
