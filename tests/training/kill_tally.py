"""Kills a training run at random times; tallies how it resumed and whether its result is the same.

    python -m tests.training.kill_tally [--kills=20] [--seed=N] [--workdir=DIR] [key=value ...]

Trains the tiny model once without interruption and once with `kill -9`; every start is the same
command. The seed repeats the times, as far as the machine is equally fast.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import pathlib
import random
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from tabulate import tabulate

from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.training.report import read_metrics
from tests.tiny import TINY
from tests.training.lives import NEVER, STEPS_A_KILL, Life, draw_moments, live, repeatable

COLUMNS = ("kill", "after", "while", "step", "latest", "best", "next start")
ALIGNMENT = ("right", "right", "left", "right", "left", "left", "left")


@dataclasses.dataclass(frozen=True)
class Tally:
    """The outcome of a run that was killed repeatedly.

    Attributes:
      seed: Seed of the times of the kills.
      kills: Number of kills that were planned.
      settings: {key: text} of the run's configuration.
      lives: The run's processes; the last one ended by itself.
      same: {result of a run: whether it equals that of an uninterrupted run}.
    """

    seed: int
    kills: int
    settings: Mapping[str, str]
    lives: list[Life]
    same: Mapping[str, bool]

    def problems(self) -> list[str]:
        """Returns everything that is wrong."""
        found = [f"{name}: not the same" for name, same in self.same.items() if not same]
        if self._killed() < self.kills:
            found.append(f"the run ended after {self._killed()} of {self.kills} kills")
        for index, life in enumerate(self.lives):
            if life.began not in (None, life.found):
                found.append(
                    f"start {index} began at step {life.began} where there was a checkpoint of "
                    f"step {life.found}"
                )
            if life.code and not life.killed:
                found.append(f"start {index} ended with exit code {life.code}: {life.output}")
        return found

    def report(self) -> str:
        """Returns a table of the kills, the problems and a summary."""
        problems = [f"error: {problem}" for problem in self.problems()]
        return "\n".join((self._table(), "", *problems, self._summary()))

    def _table(self) -> str:
        rows = []
        for index, (life, after) in enumerate(itertools.pairwise(self.lives), 1):
            cells = (
                str(index),
                f"{life.seconds:.1f} s",
                life.doing(int(self.settings["train.eval_every"])),
                str(life.steps[-1]) if life.steps else "-",
                " ".join(map(str, life.latest)) or "-",
                " ".join(map(str, life.best)) or "-",
                {None: "killed too early", 0: "from scratch"}.get(
                    after.began, f"from {after.began}"
                ),
            )
            rows.append(cells)
        return tabulate(rows, COLUMNS, tablefmt="pipe", colalign=ALIGNMENT, disable_numparse=True)

    def _summary(self) -> str:
        began = [life.began for life in self.lives[1:]]
        steps = [step for life in self.lives for step in life.steps]
        same = (f"{name} {'the same' if same else 'DIFFER'}" for name, same in self.same.items())
        return (
            f"seed {self.seed}, {self._killed()} kills, {len(began)} restarts: "
            f"{sum(map(bool, began))} resumed from the newest checkpoint, {began.count(0)} "
            f"started from scratch (there was none), {began.count(None)} killed before either; "
            f"{len(steps) - len(set(steps))} steps trained twice; "
            f"{', '.join(same) or 'NOT FINISHED'}."
        )

    def _killed(self) -> int:
        return sum(life.killed for life in self.lives)


def kill_often(
    whole: pathlib.Path,
    folder: pathlib.Path,
    settings: Mapping[str, str],
    kills: int,
    seed: int,
    *,
    pixel_model: bool = False,
) -> Tally:
    """Trains with kills and compares the result with that of an uninterrupted run.

    Args:
      whole: Work directory of the uninterrupted run.
      folder: Folder for the killed run's work directory and the output of its processes.
      settings: {key: text} of the configuration of both runs.
      kills: Number of kills.
      seed: Seed of their times.
      pixel_model: Whether to train the model that compiles at once.

    Raises:
      TimeoutError: If a process does not end.
    """
    moments = draw_moments(kills, int(settings["train.steps"]), random.Random(seed))
    lives = []
    for index, moment in enumerate([*moments, NEVER]):
        lives.append(
            live(
                folder / "killed",
                folder / f"start_{index}.txt",
                settings,
                moment,
                pixel_model=pixel_model,
            )
        )
        if not lives[-1].killed:
            break
    same = compare(whole, folder / "killed") if lives[-1].code == 0 else {}
    return Tally(seed, kills, settings, lives, same)


def compare(whole: pathlib.Path, killed: pathlib.Path) -> dict[str, bool]:
    """Returns which results of two finished runs are the same, bit for bit."""
    found = {
        f"{kind} parameters": _parameters(whole, kind) == _parameters(killed, kind)
        for kind in ("latest", "best")
    }
    for name, read in (("scores", _scores), ("metrics lines", _metrics), ("files", _files)):
        found[name] = read(whole) == read(killed)
    return found


def _parameters(workdir: pathlib.Path, kind: str) -> tuple:
    run = load_run(workdir, kind)
    leaves, structure = jax.tree.flatten(run.parameters)
    arrays = [np.asarray(leaf) for leaf in leaves]
    return run.step, structure, [(a.shape, a.dtype, a.tobytes()) for a in arrays]


def _scores(workdir: pathlib.Path) -> str:
    return json.dumps(RunDirectory(workdir).newest("best").read_details())


def _metrics(workdir: pathlib.Path) -> list[str]:
    return [json.dumps(line) for line in repeatable(read_metrics(workdir))]


def _files(workdir: pathlib.Path) -> set[pathlib.Path]:
    # TensorBoard gets a file each start, and those in a checkpoint have random names.
    found = [path for pattern in ("*", "*/*") for path in workdir.glob(pattern)]
    return {path.relative_to(workdir) for path in found if path.parent.name != "tensorboard"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a tally; returns 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--workdir", type=pathlib.Path, help="default: a new temporary folder")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="of the configuration")
    options = parser.parse_args(arguments)
    folder = options.workdir or pathlib.Path(tempfile.mkdtemp(prefix="kill_tally_"))
    folder.mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_platforms", "cpu")
    logging.getLogger("absl").setLevel(logging.ERROR)  # as cli/main.py does
    if any(folder.iterdir()):
        parser.error(f"--workdir={folder} is not empty: give a new folder.")
    settings = TINY | {"train.steps": str(max(20, STEPS_A_KILL * options.kills))}
    settings |= dict(pair.split("=", 1) for pair in options.overrides)
    print(f"seed {options.seed}: {options.kills} kills, in {folder}", flush=True)

    start = time.monotonic()
    whole = live(folder / "whole", folder / "whole.txt", settings, NEVER)
    if whole.code:
        print(f"The uninterrupted run ended with exit code {whole.code}:\n{whole.output}")
        return 1
    print(f"Trained {settings['train.steps']} steps without interruption", flush=True)
    tally = kill_often(folder / "whole", folder, settings, options.kills, options.seed)
    print(f"{tally.report()} Took {(time.monotonic() - start) / 60:.1f} minutes.")
    return 1 if tally.problems() else 0


if __name__ == "__main__":
    sys.exit(main())
