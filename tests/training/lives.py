"""The processes of one run, each killed at a different time."""

import dataclasses
import math
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping

from mtmamba_jax.checkpoints.run_directory import KINDS

ROOT = pathlib.Path(__file__).parents[2]
STEPS_A_KILL = 5  # of a run: what a start may train before the next kill
AFTER = 1.0  # seconds after a step: an evaluation, or two checkpoints, take about as long
START_UP = 15.0  # seconds: about what a start takes to its first step
START_UPS = 0.3  # share of kills that come at any time of it
LIMIT = 600.0  # seconds that no start takes
MEASURED = (
    "seconds_per_step", "images_per_second", "input_wait", "flops_utilisation",
    "device_memory_gib",
)  # fmt: skip
"""What `Clock.numbers` measures, which differs from run to run."""


@dataclasses.dataclass(frozen=True)
class Moment:
    """When a process is killed: whichever comes first.

    Attributes:
      step: The step that it must have logged, and
      after: Seconds since then.
      within: Seconds since its start.
    """

    step: float
    after: float
    within: float


NEVER = Moment(math.inf, 0, math.inf)


def draw_moments(kills: int, steps: int, generator: random.Random) -> list[Moment]:
    """Draws times spread over the steps of a run and over the life of a process."""
    last = steps - STEPS_A_KILL  # so that no process ends before it is killed
    return [
        Moment(
            step,
            generator.uniform(0, AFTER),
            generator.uniform(0, START_UP) if generator.random() < START_UPS else math.inf,
        )
        for step in sorted(generator.choices(range(1, last + 1), k=kills))
    ]


@dataclasses.dataclass(frozen=True)
class Life:
    """A process of a run, from its start to its end.

    Attributes:
      code: Exit code.
      seconds: Seconds from start to end.
      output: Everything that it printed.
      found: Step of the newest checkpoint when it started, 0 if there was none.
      latest: Steps of the latest checkpoints at its end; `best` of the best ones.
      saving: Checkpoints that it was writing when it ended.
    """

    code: int
    seconds: float
    output: str
    found: int
    latest: list[int]
    best: list[int]
    saving: list[str]

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def steps(self) -> list[int]:
        """Steps that it logged."""
        return logged(self.output)

    @property
    def began(self) -> int | None:
        """The step that it resumed from, 0 from scratch, None if it was killed before."""
        told = re.search(r"^Resuming from step (\d+) in", self.output, re.M)
        if told:
            return int(told[1])
        return 0 if self.steps else None

    def doing(self, eval_every: int) -> str:
        """Returns what it was doing when it ended."""
        if not self.steps:
            return "starting"
        step = self.steps[-1]
        evaluated = step % eval_every or f"step {step}, test set" in self.output
        found = [] if evaluated else ["evaluating"]
        return ", ".join(found + [f"saving {name}" for name in self.saving]) or "training"


def repeatable(lines: Iterable[Mapping[str, object]]) -> list[dict[str, object]]:
    """Returns lines of metrics.jsonl without what is measured."""
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def logged(output: str) -> list[int]:
    """Returns the steps in what a run prints."""
    return [int(step) for step in re.findall(r"^step (\d+)/", output, re.M)]


def live(
    workdir: pathlib.Path,
    output: pathlib.Path,
    settings: Mapping[str, str],
    moment: Moment,
    *,
    pixel_model: bool = False,
) -> Life:
    """Starts or resumes a run, until its end or until it is killed.

    Raises:
      TimeoutError: it does not end.
    """
    found, left = max(finished_on_disk(workdir, "latest"), default=0), saving_on_disk(workdir)
    pairs = [f"{key}={value}" for key, value in settings.items()]
    # As in the other tests: see conftest.py. Starts need not compile again.
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(output.parent / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    } | os.environ
    with output.open("w") as file:
        start = time.monotonic()
        process = subprocess.Popen(
            [
                *(sys.executable, "-u", "-m", "tests.training.killed_run"),
                *(str(workdir), "pixel" if pixel_model else "tiny", *pairs),
            ],
            cwd=ROOT,
            env=environment,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        try:
            wait(process, output, moment)
        finally:
            process.kill()
        code = process.wait()
    return Life(
        code,
        time.monotonic() - start,
        output.read_text(),
        found,
        *(finished_on_disk(workdir, kind) for kind in ("latest", "best")),
        # What an earlier process left is as it was.
        [name for name, changed in saving_on_disk(workdir).items() if left.get(name) != changed],
    )


def wait(process: subprocess.Popen, output: pathlib.Path, moment: Moment) -> None:
    """Waits until a process ends or its moment has come."""
    start, end = time.monotonic(), math.inf
    while process.poll() is None:
        now = time.monotonic()
        if end == math.inf and max(logged(output.read_text()), default=0) >= moment.step:
            end = now + moment.after
        if now >= min(end, start + moment.within):
            return
        if now > start + LIMIT:
            raise TimeoutError(f"A start did not end within {LIMIT:.0f} s: see {output}.")
        time.sleep(0.01)


def finished_on_disk(workdir: pathlib.Path, kind: str) -> list[int]:
    """Returns the steps of finished checkpoints."""
    return sorted(int(path.name) for path in (workdir / kind).glob("*") if path.name.isdigit())


def saving_on_disk(workdir: pathlib.Path) -> dict[str, int]:
    """Returns the checkpoints that are not finished, and when each was changed."""
    paths = [path for kind in KINDS for path in (workdir / kind).glob("*.orbax-checkpoint-tmp*")]
    return {f"{path.parent.name}/{path.stem}": path.stat().st_ctime_ns for path in paths}
