"""The steps of a run, and what happens between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtmamba_jax.checkpoints.save import Checkpoints
from mtmamba_jax.data_pipelines.pipeline import Batches
from mtmamba_jax.devices.processes import highest
from mtmamba_jax.devices.sharding import put_batch
from mtmamba_jax.evaluation.evaluate import Evaluator, score_table
from mtmamba_jax.metrics.multitask import delta_m, headline
from mtmamba_jax.tasks import Task
from mtmamba_jax.training.clock import Clock
from mtmamba_jax.training.nonfinite import Guard
from mtmamba_jax.training.optimizer import learning_rate
from mtmamba_jax.training.pauses import keep_replaced, leave_out_of_collections
from mtmamba_jax.training.profile import Profile
from mtmamba_jax.training.report import Report
from mtmamba_jax.training.state import TrainState
from mtmamba_jax.training.stopping import StoppedError, StopSignals
from mtmamba_jax.visualization.panels import example_panel


@dataclasses.dataclass(frozen=True)
class Watch:
    """What a run is watched with: its numbers, its speed, its trace."""

    report: Report
    clock: Clock
    profile: Profile


class Steps:
    """Trains, and evaluates, saves and says what the configuration wants in between.

    Args:
      config: of the run.
      tasks: that the model learns.
      checkpoints: of the run.
      evaluator: of the model on the test set.
      watch: where numbers go.
      best: details of the best checkpoint so far; None where there is none.

    Attributes:
      constants: the best constant prediction's score for each task.
    """

    def __init__(
        self,
        config: ConfigDict,
        tasks: Sequence[Task],
        checkpoints: Checkpoints,
        evaluator: Evaluator,
        watch: Watch,
        best: Mapping[str, object] | None,
    ):
        self._settings, self._tasks = config.train, tasks
        self._checkpoints, self._evaluator = checkpoints, evaluator
        self._report, self._clock, self._profile = watch.report, watch.clock, watch.profile
        self._rate = learning_rate(config.optimizer, config.train.steps)
        skips = config.on_nonfinite == "skip"
        self._guard = Guard(skips, checkpoints.last_on_disk, watch.report.say)
        self.constants = evaluator.constants()
        self._baselines = dict(config.tasks.baselines) or self.constants
        delta_m(tasks, self._baselines, self._baselines)  # an unusable baseline stops us now
        if watch.report.start_step == 0:
            watch.report.numbers(0, "constant", self.constants)
        self._best = np.nan if best is None else best["delta_m"]

    def run(
        self, state: TrainState, train_step, batches: Batches, mesh: Mesh, stops: StopSignals
    ) -> TrainState:
        """Trains to the last step.

        Raises:
          StoppedError: a signal came; what is done is saved.
          SavingError: a checkpoint could not be written.
          NonFiniteError: a loss or gradient is not finite.
        """
        settings, clock, guard, profile = self._settings, self._clock, self._guard, self._profile
        train_step = keep_replaced(train_step, self._checkpoints.is_writing)
        first = step = int(state.step)
        self._catch_up(step, state)
        if step < settings.steps:
            self._report.say("Compiling the training step: a minute or more.")
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
            self._checkpoints.check()
            stop = None if step == settings.steps else stops.noticed(step)
            log = self._is_due(settings.log_every, step)
            # There may be little time: the next start evaluates.
            evaluate = self._is_due(settings.eval_every, step) and not stop
            save = self._is_due(settings.checkpoint_every, step) or stop is not None
            if log or evaluate or save:
                guard.check()
            if log:
                self._log(step, numbers)
            if evaluate:
                self._evaluate(step, state)
            if save:
                self._save(state)
            if stop:
                self._checkpoints.wait()
                raise StoppedError(step, stop)
            if evaluate or step == first + 1:  # the first of each compiles
                leave_out_of_collections()
            if log or evaluate or save or step == first + 1:
                clock.restart(step)
        return state

    def _is_due(self, every: int, step: int) -> bool:
        return step == self._settings.steps or step % every == 0

    def _log(self, step: int, numbers) -> None:
        values = {name: value.item() for name, value in jax.device_get(numbers).items()}
        # The schedule counts the updates that were made before.
        values["learning_rate"] = float(self._rate(step - 1 - values.get("skipped", 0)))
        self._report.numbers(step, "train", values | self._clock.numbers(step))

    def _save(self, state: TrainState) -> None:
        self._report.flush()
        # The numbers up to a step belong beside it, in a bucket too.
        self._checkpoints.save_latest(state, before=self._report.workdir.sync)

    def _catch_up(self, step: int, state: TrainState) -> None:
        """Evaluates the step that a run goes on from, where it was stopped before it could, or
        where the best checkpoint was lost."""
        if step == 0 or not self._is_due(self._settings.eval_every, step):
            return
        written = bool(highest(self._report.has_scores))
        if written and not np.isnan(self._best):
            return
        scores, gain = self._score(step, state)
        # Once the scores are written this is not done again.
        self._checkpoints.wait()
        if not written:
            self._write(step, state, scores, gain)

    def _evaluate(self, step: int, state: TrainState) -> None:
        scores, gain = self._score(step, state)
        self._write(step, state, scores, gain)

    def _score(self, step: int, state: TrainState) -> tuple[dict, float]:
        """Returns the scores and delta_m of a state, which is saved if it is the best so far."""
        scores = self._evaluator.scores(state.parameters)
        gain = delta_m(self._tasks, headline(self._tasks, scores), self._baselines)
        if np.isnan(self._best) or gain > self._best:  # NaN: there is none that can be compared
            self._best = gain
            self._checkpoints.save_best(state, {"delta_m": gain, "scores": scores})
        return scores, gain

    def _write(self, step: int, state: TrainState, scores: dict, gain: float) -> None:
        flat = {f"{task}/{name}": v for task, named in scores.items() for name, v in named.items()}
        self._report.numbers(step, "test", flat | {"delta_m": gain})
        self._report.say(
            f"step {step}, test set, delta_m {gain:+.2f} %\n"
            + score_table(self._tasks, scores, self.constants)
        )
        for example, logits in self._evaluator.predictions(state.parameters, 1):
            picture = example_panel(self._tasks, example, logits)
            self._report.picture(step, "predictions", picture)
