"""The training run, from configuration to best checkpoint, in one place."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.data_pipelines.pipeline import Batches, Source, train_batches
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.evaluate import Evaluator, Scores, score_table
from mtmamba_jax.metrics.multitask import delta_m, headline
from mtmamba_jax.panels import example_panel, write_panels
from mtmamba_jax.processes import is_first
from mtmamba_jax.sharding import create_mesh, put_batch
from mtmamba_jax.tasks import Task
from mtmamba_jax.training.checkpoints import Checkpoints, holds_checkpoints
from mtmamba_jax.training.clock import Clock, least_seconds
from mtmamba_jax.training.guard import Guard
from mtmamba_jax.training.optimizer import create_optimizer, learning_rate
from mtmamba_jax.training.profile import Profile
from mtmamba_jax.training.report import Report
from mtmamba_jax.training.run import CONFIG_FILE
from mtmamba_jax.training.state import TrainState, create_state
from mtmamba_jax.training.step import create_train_step
from mtmamba_jax.training.stopping import StoppedError, StopSignals
from mtmamba_jax.training.warm_start import warm_start
from mtmamba_jax.training.workdir import hold


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
    panels: list[epath.Path]


def train(
    config: ConfigDict, workdir: epath.PathLike, profile: tuple[int, int] | None = None
) -> Result:
    """Trains, evaluates and keeps the best, in `workdir`; goes on where an earlier run stopped.

    Weights begin, in this order, as those of the latest checkpoint in `workdir`, of `config.init`,
    or at random. The best checkpoint is the one with the highest delta_m against
    `config.tasks.baselines`, or against the best constant prediction where there are none.

    Args:
      config: of the run.
      workdir: a folder, or a place in a bucket (gs://...).
      profile: first and last step to trace, into `profile/` of the work directory.

    Raises:
      ValueError: a configuration that cannot work, or one that differs from that of the
        checkpoints in `workdir`.
      NonFiniteError: a loss or the gradient was not finite.
      StoppedError: SIGTERM or Ctrl-C came; the state is saved.
      OSError: `workdir` cannot be written, or another run writes there.
    """
    # What a user can get wrong comes first: the model takes a while to build.
    tasks = configuration.tasks(config)
    configuration.check(config, [task.name for task in tasks])
    source = open_source(config.data, tasks, "train")
    # The order of examples follows from their number: a resumed run must find the same one.
    config = config.copy_and_resolve_references()
    config.data.train_examples = len(source)
    workdir = epath.Path(workdir)
    check_same_run(config, workdir)
    part = config.train.batch_size // config.train.microbatches
    mesh = create_mesh(part, config.eval.batch_size, **config.mesh)

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(hold(workdir))
        optimizer = create_optimizer(config.optimizer, config.train.steps)
        graph, state, layout = create_state(config, tasks, optimizer, mesh)
        train_step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
        evaluator = Evaluator(config, graph, tasks, mesh, layout.parameters)
        checkpoints = Checkpoints(
            workdir, config.train.keep_checkpoints, config=configuration.flatten(config)
        )
        _close_at_end(stack, checkpoints.close)
        checkpoints.check_room(state)
        state = _begin(config, state, checkpoints, workdir)
        start = int(state.step)
        batches = open_batches(config, source, tasks, start)
        _close_at_end(stack, batches.close)
        clock = Clock(config.train.batch_size, least_seconds(config, mesh))
        _close_at_end(stack, clock.close)
        report = Report(directory, start_step=start, steps=config.train.steps, writes=is_first())
        _close_at_end(stack, report.close)
        if profile and start >= profile[0]:
            report.say(f"warning: step {profile[0]} is done already: nothing is traced.")
        traced = Profile(profile if is_first() else None, directory.local)
        _close_at_end(stack, traced.close)
        stops = stack.enter_context(StopSignals())
        run = _Run(config, tasks, checkpoints, evaluator, report, clock, traced)
        state = run.steps(state, train_step, batches, mesh, stops)
        checkpoints.wait()
        parameters = checkpoints.parameters("best", like=state.parameters)
        details = checkpoints.details("best")
        panels = write_panels(
            workdir / "panels", tasks, evaluator.predictions(parameters, config.eval.panels)
        )
    return Result(details["step"], details["scores"], run.constants, panels)


def _close_at_end(stack: contextlib.ExitStack, close: Callable[[], None]) -> None:
    """Calls `close` when the stack ends; its fault does not hide the one that ended the run."""

    def end(kind, error, traceback):
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            close()

    stack.push(end)


def _begin(
    config: ConfigDict, state: TrainState, checkpoints: Checkpoints, workdir: epath.Path
) -> TrainState:
    """Returns the state of the latest checkpoint, or the given one with `config.init`'s weights."""
    if checkpoints.step("latest") is not None:
        state = checkpoints.state(like=state)
        checkpoints.forget_best_after(int(state.step))
        print(f"Going on from step {int(state.step)} in {workdir}", flush=True)
        return state
    state = dataclasses.replace(state, parameters=warm_start(config.init, state.parameters))
    if is_first():
        configuration.save(config, workdir / CONFIG_FILE)
    return state


def open_batches(
    config: ConfigDict, source: Source, tasks: Sequence[Task], start_step: int
) -> Batches:
    """Returns this process's share of a run's batches, from the one after `start_step`."""
    return train_batches(
        source,
        tasks,
        crop_size=config.data.size,
        batch_size=config.train.batch_size,
        seed=config.seed,
        augment=AugmentSettings(**config.augment),
        label_scale=config.data.label_scale,
        start_step=start_step,
        num_workers=config.data.num_workers,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def check_same_run(config: ConfigDict, workdir: epath.Path) -> None:
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


class _Run:
    """The steps of a run, and what happens between them."""

    def __init__(
        self,
        config: ConfigDict,
        tasks: Sequence[Task],
        checkpoints: Checkpoints,
        evaluator: Evaluator,
        report: Report,
        clock: Clock,
        profile: Profile,
    ):
        self._config, self._tasks = config, tasks
        self._checkpoints, self._evaluator = checkpoints, evaluator
        self._report, self._clock, self._profile = report, clock, profile
        skips = config.on_nonfinite == "skip"
        self._guard = Guard(skips, lambda: checkpoints.step("latest"), report.say)
        self.constants = evaluator.constants()
        self._baselines = dict(config.tasks.baselines) or self.constants
        delta_m(tasks, self._baselines, self._baselines)  # an unusable baseline stops us now
        if report.start_step == 0:
            report.numbers(0, "constant", self.constants)
        has_best = checkpoints.step("best") is not None
        self._best = checkpoints.details("best")["delta_m"] if has_best else np.nan

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
        clock, guard, profile = self._clock, self._guard, self._profile
        clock.restart(step)
        while step < settings.steps:
            batch = clock.next(batches)
            profile.before(step + 1)
            state, numbers = train_step(state, put_batch(batch, mesh))
            clock.started(numbers)
            step += 1
            profile.after(step, numbers)
            # One step late, so that the device is never idle for it.
            self._report.advance(guard.check())
            guard.started(step, numbers, batch["id"])
            last = step == settings.steps
            log, evaluate, save = (
                last or step % every == 0
                for every in (settings.log_every, settings.eval_every, settings.checkpoint_every)
            )
            stop = None if last else stops.noticed(step)
            save = save or stop is not None
            if log or evaluate or save:
                guard.check()
            if log:
                values = {name: value.item() for name, value in jax.device_get(numbers).items()}
                # The schedule counts the updates that were made before.
                values["learning_rate"] = float(rate(step - 1 - values.get("skipped", 0)))
                self._report.numbers(step, "train", values | clock.numbers(step))
            if evaluate:
                self._evaluate(step, state)
            if save:
                self._report.sync()
                self._checkpoints.save_latest(state)
            if stop:
                self._checkpoints.wait()
                raise StoppedError(step, stop)
            if log or evaluate or save or step == first + 1:  # the first step compiles
                clock.restart(step)
        return state

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
