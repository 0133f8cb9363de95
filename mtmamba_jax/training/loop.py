"""The training run, from configuration to best checkpoint, in one place."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import pathlib
import time
from collections.abc import Mapping

import jax
import numpy as np
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.data_pipelines.pipeline import Batches, train_batches
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.evaluate import Evaluator, Scores, score_table
from mtmamba_jax.metrics.multitask import delta_m, headline
from mtmamba_jax.panels import example_panel, write_panels
from mtmamba_jax.processes import is_first
from mtmamba_jax.sharding import create_mesh, put_batch
from mtmamba_jax.training.checkpoints import Checkpoints, holds_checkpoints
from mtmamba_jax.training.optimizer import create_optimizer, learning_rate
from mtmamba_jax.training.report import Report
from mtmamba_jax.training.run import CONFIG_FILE
from mtmamba_jax.training.state import TrainState, create_state
from mtmamba_jax.training.step import create_train_step
from mtmamba_jax.training.stopping import StoppedError, StopSignals


class NonFiniteError(RuntimeError):
    """A loss or gradient was NaN or infinite; the message names step and task."""


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves.

    Attributes:
      step: of the best checkpoint.
      scores: of that checkpoint on the test set.
      constants: the best constant prediction's score for each task.
      panels: the pictures that were written.
    """

    step: int
    scores: Scores
    constants: Mapping[str, float]
    panels: list[pathlib.Path]


def train(config: ConfigDict, workdir: pathlib.Path) -> Result:
    """Trains, evaluates and keeps the best, in `workdir`; goes on where an earlier run stopped.

    The best checkpoint is the one with the highest delta_m against `config.tasks.baselines`, or
    against the best constant prediction where there are none.

    Raises:
      ValueError: a configuration that cannot work, or one that differs from that of the
        checkpoints in `workdir`.
      NonFiniteError: a loss or the gradient was not finite.
      StoppedError: SIGTERM or Ctrl-C came; the state is saved.
    """
    # What a user can get wrong comes first: the model takes a while to build.
    tasks = configuration.tasks(config)
    configuration.check(config, [task.name for task in tasks])
    augment = AugmentSettings(**config.augment)
    train_source = open_source(config.data, tasks, "train")
    # The order of examples follows from their number: a resumed run must find the same one.
    config = config.copy_and_resolve_references()
    config.data.train_examples = len(train_source)
    check_same_run(config, workdir)
    part = config.train.batch_size // config.train.microbatches
    mesh = create_mesh(part, config.eval.batch_size, **config.mesh)
    optimizer = create_optimizer(config.optimizer, config.train.steps)
    graph, state, layout = create_state(config, tasks, optimizer, mesh)
    train_step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
    evaluator = Evaluator(config, graph, tasks, mesh, layout.parameters)
    workdir.mkdir(parents=True, exist_ok=True)

    with contextlib.ExitStack() as stack:
        checkpoints = Checkpoints(workdir, config.train.keep_checkpoints)
        stack.callback(checkpoints.close)
        if checkpoints.step("latest") is not None:
            state = checkpoints.state(like=state)
            checkpoints.forget_best_after(int(state.step))
            print(f"Going on from step {int(state.step)} in {workdir}")
        elif is_first():
            configuration.save(config, workdir / CONFIG_FILE)

        batches = train_batches(
            train_source,
            tasks,
            crop_size=config.data.size,
            batch_size=config.train.batch_size,
            seed=config.seed,
            augment=augment,
            label_scale=config.data.label_scale,
            start_step=int(state.step),
            num_workers=config.data.num_workers,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        stack.callback(batches.close)
        report = Report(
            workdir, start_step=int(state.step), steps=config.train.steps, writes=is_first()
        )
        stack.callback(report.close)
        run = _Run(config, tasks, checkpoints, evaluator, report)
        stops = stack.enter_context(StopSignals())
        state = run.steps(state, train_step, batches, mesh, stops)

    checkpoints = Checkpoints(workdir, read_only=True)
    parameters = checkpoints.parameters("best", like=state.parameters)
    details = checkpoints.details("best")
    checkpoints.close()
    panels = write_panels(
        workdir / "panels", tasks, evaluator.predictions(parameters, config.eval.panels)
    )
    return Result(details["step"], details["scores"], run.constants, panels)


def check_same_run(config: ConfigDict, workdir: pathlib.Path) -> None:
    """Checks that the checkpoints in a work directory, if any, are of this configuration.

    Raises:
      ValueError: they are not; the message lists the keys that differ.
    """
    if not holds_checkpoints(workdir):
        return
    differing = configuration.differences(configuration.read(workdir / CONFIG_FILE), config)
    if differing:
        raise ValueError(
            f"{workdir} holds a checkpoint of another configuration. These keys differ "
            "(saved -> wanted):\n  " + "\n  ".join(differing) + "\n"
            "Set them back to go on with that run, or choose another --workdir."
        )


class _Clock:
    """Measures steps from when it is made, and how long the devices had none for want of a batch.

    Args:
      step: the last one before.
      watcher: one thread, which waits for steps to end.
    """

    def __init__(self, step: int, watcher: concurrent.futures.Executor):
        self._start, self._step, self._waited = time.monotonic(), step, 0.0
        self._watcher, self._end = watcher, None

    def next(self, batches: Batches) -> dict[str, np.ndarray]:
        """Returns the next batch; the devices wait for it once the step before has ended."""
        start = time.monotonic()
        batch = next(batches)
        arrived = time.monotonic()
        if self._end is None:
            self._waited += arrived - start
        elif self._end.done():
            self._waited += max(0.0, arrived - max(start, self._end.result()))
        return batch

    def started(self, numbers: object) -> None:
        """Notes a step that was given to the devices, and the numbers that come out of it."""
        self._end = self._watcher.submit(_end_of, numbers)

    def numbers(self, step: int) -> dict[str, float]:
        """Returns the mean time of the steps since, and the share of it that was waiting."""
        seconds = time.monotonic() - self._start
        return {
            "seconds_per_step": seconds / (step - self._step),
            "input_wait": self._waited / seconds,
        }


def _end_of(numbers: object) -> float:
    jax.block_until_ready(numbers)
    return time.monotonic()


class _Run:
    """The steps of a run, and what happens between them."""

    def __init__(self, config, tasks, checkpoints: Checkpoints, evaluator, report: Report):
        self._config, self._tasks = config, tasks
        self._checkpoints, self._evaluator, self._report = checkpoints, evaluator, report
        self.constants = evaluator.constants()
        self._baselines = dict(config.tasks.baselines) or self.constants
        delta_m(tasks, self._baselines, self._baselines)  # an unusable baseline stops us now
        if report.start_step == 0:
            report.numbers(0, "constant", self.constants)
        has_best = checkpoints.step("best") is not None
        self._best = checkpoints.details("best")["delta_m"] if has_best else np.nan
        self._watcher = concurrent.futures.ThreadPoolExecutor(1)

    def steps(
        self, state: TrainState, train_step, batches: Batches, mesh, stops: StopSignals
    ) -> TrainState:
        """Trains to the last step.

        Raises:
          StoppedError: a signal came; what is done is saved.
        """
        settings = self._config.train
        rate = learning_rate(self._config.optimizer, settings.steps)
        first = step = int(state.step)
        pending, clock = None, _Clock(step, self._watcher)
        while step < settings.steps:
            state, numbers = train_step(state, put_batch(clock.next(batches), mesh))
            clock.started(numbers)
            step += 1
            # One step late, so that the device is never idle for it.
            loss = self._check(*pending) if pending else None
            pending = (step, numbers)
            self._report.advance(loss)
            last = step == settings.steps
            log, evaluate, save = (
                last or step % every == 0
                for every in (settings.log_every, settings.eval_every, settings.checkpoint_every)
            )
            stop = None if last else stops.noticed(step)
            save = save or stop is not None
            if log or evaluate or save:
                self._check(step, numbers)
            if log:
                values = {name: float(value) for name, value in numbers.items()}
                values["learning_rate"] = float(rate(step - 1))  # counts the steps before
                self._report.numbers(step, "train", values | clock.numbers(step))
            if evaluate:
                self._evaluate(step, state)
            if save:
                self._checkpoints.save_latest(state)
            if stop:
                raise StoppedError(step, stop)
            if log or evaluate or save or step == first + 1:  # the first step compiles
                clock = _Clock(step, self._watcher)
        return state

    def _check(self, step: int, numbers: Mapping[str, jax.Array]) -> float:
        """Returns the loss.

        Raises:
          NonFiniteError: it, a task's part of it or the gradient is not finite.
        """
        bad = [name for name, value in numbers.items() if not np.isfinite(value)]
        if bad:
            latest = self._checkpoints.step("latest")
            found = (
                "There is no checkpoint yet."
                if latest is None
                else f"The last checkpoint is of step {latest}."
            )
            raise NonFiniteError(
                f"Step {step}: not finite: {', '.join(bad)}. {found} "
                "A lower optimizer.learning_rate may help."
            )
        return float(numbers["loss"])

    def _evaluate(self, step: int, state: TrainState) -> None:
        scores = self._evaluator.scores(state.parameters)
        gain = delta_m(self._tasks, headline(self._tasks, scores), self._baselines)
        flat = {f"{task}/{name}": v for task, named in scores.items() for name, v in named.items()}
        self._report.numbers(step, "test", flat | {"delta_m": gain})
        self._report.say(
            f"step {step}, test set, delta_m {gain:+.2f} %\n"
            + score_table(self._tasks, scores, self.constants)
        )
        for example, logits in self._evaluator.predictions(state.parameters, 1):
            picture = example_panel(self._tasks, example, logits)
            self._report.picture(step, "predictions", picture)
        if np.isnan(self._best) or gain > self._best:  # NaN: there is none that can be compared
            self._best = gain
            self._checkpoints.save_best(state, {"delta_m": gain, "scores": scores})
