"""Runs the training loop: steps, and the logging, evaluation and saving between them."""

import dataclasses
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh

from mtmamba_jax.checkpoints.save import CheckpointWriter
from mtmamba_jax.config import Config
from mtmamba_jax.data_pipelines.pipeline import Batches
from mtmamba_jax.devices.processes import max_over_processes
from mtmamba_jax.devices.sharding import put_batch
from mtmamba_jax.evaluation.evaluate import Evaluator
from mtmamba_jax.evaluation.report import score_table
from mtmamba_jax.metrics.multitask import delta_m, headline, left_out
from mtmamba_jax.training.clock import Clock
from mtmamba_jax.training.nonfinite import NonFiniteGuard
from mtmamba_jax.training.optimizer import learning_rate
from mtmamba_jax.training.profile import Profile
from mtmamba_jax.training.report import Report
from mtmamba_jax.training.state import TrainState
from mtmamba_jax.training.step import TrainStep
from mtmamba_jax.training.stopping import StoppedError, StopSignals
from mtmamba_jax.visualization.panels import example_panel


@dataclasses.dataclass(frozen=True)
class Monitors:
    """What observes a run: its numbers, its speed and its trace."""

    report: Report
    clock: Clock
    profile: Profile


class Loop:
    """Trains; evaluates, saves and logs as often as the configuration asks for.

    Args:
      best_delta_m: The delta_m of the best checkpoint so far, None if there is none.

    Attributes:
      constants: The score of the best constant prediction, by task.
    """

    def __init__(
        self,
        config: Config,
        checkpoints: CheckpointWriter,
        evaluator: Evaluator,
        monitors: Monitors,
        best_delta_m: float | None,
    ):
        self._settings, self._tasks = config.train, config.tasks.selected
        self._checkpoints, self._evaluator = checkpoints, evaluator
        self._report, self._monitors = monitors.report, monitors
        self._rate = learning_rate(config.optimizer, config.train.steps)
        skips = config.on_nonfinite == "skip"
        self._guard = NonFiniteGuard(skips, checkpoints.last_on_disk, self._report.say)
        self.constants = evaluator.constants()
        self._baselines = config.tasks.baselines or self.constants
        reasons = left_out(self._tasks, self._baselines)
        self._compared = [task for task in self._tasks if task.name not in reasons]
        for name, reason in reasons.items():
            self._report.say(
                f"warning: delta_m leaves out {name}: {reason}. --config.tasks.baselines.{name}="
                "SCORE, with those of all other tasks, includes it."
            )
        if not self._compared:
            self._report.say(
                "warning: delta_m has no task to compare, so the best checkpoint is the last one "
                "that is evaluated."
            )
        if self._report.start_step == 0:
            self._report.numbers(0, "constant", self.constants)
        self._best = np.nan if best_delta_m is None else best_delta_m

    def run(
        self,
        state: TrainState,
        train_step: TrainStep,
        batches: Batches,
        mesh: Mesh,
        stops: StopSignals,
    ) -> TrainState:
        """Trains up to the last step and returns the final state.

        Raises:
          StoppedError: If a signal arrived; the state is saved.
          SavingError: If a checkpoint could not be written.
          NonFiniteError: If a loss or gradient is not finite, or too many steps are skipped.
        """
        settings, guard = self._settings, self._guard
        clock, profile = self._monitors.clock, self._monitors.profile
        first = step = int(state.step)
        self._catch_up(step, state)
        if step < settings.steps:
            self._report.say(
                "Compiling the training step: a minute or more. XLA may print that this is very "
                "slow; that is not an error."
            )
        clock.restart(step)
        while step < settings.steps:
            batch = clock.next(batches)
            profile.before(step + 1)
            state, numbers = train_step(state, put_batch(batch, mesh))
            clock.started(numbers)
            step += 1
            profile.after(step, numbers)
            # One step late, so that the device never waits for it.
            self._report.advance(guard.check())
            guard.started(step, numbers, batch["id"].tolist())
            self._checkpoints.check()
            stop = None if step == settings.steps else stops.noticed(step)
            log = self._is_due(settings.log_every, step)
            # After a signal there may be little time: the next start evaluates.
            evaluate = self._is_due(settings.eval_every, step) and not stop
            save = self._is_due(settings.checkpoint_every, step) or stop is not None
            # The first step compiles, so its time does not count.
            waits = log or evaluate or save or step == first + 1
            if waits:
                guard.check()
            if log:
                self._log(step, numbers)
            if evaluate:
                self._write(step, state, *self._score(step, state))
            if save:
                self._save(step, state)
            if stop:
                self._checkpoints.wait()
                raise StoppedError(step, stop)
            if waits:
                clock.restart(step)
        return state

    def _is_due(self, every: int, step: int) -> bool:
        return step == self._settings.steps or step % every == 0

    def _log(self, step: int, numbers: Mapping[str, jax.Array]) -> None:
        values = {name: value.item() for name, value in jax.device_get(numbers).items()}
        # The schedule counts the updates before this one.
        rate = self._rate(step - 1 - values.get("skipped", 0))
        values["learning_rate"] = float(np.asarray(rate))
        self._report.numbers(step, "train", values | self._monitors.clock.numbers(step))

    def _save(self, step: int, state: TrainState) -> None:
        # A checkpoint in a bucket is not newer than the metrics beside it.
        self._report.flush()
        self._report.directory.sync()
        self._checkpoints.save_latest(state.to_items(), step)

    def _catch_up(self, step: int, state: TrainState) -> None:
        """Evaluates the step that a run resumes from, if it was stopped before it could or if the
        best checkpoint was lost."""
        if step == 0 or not self._is_due(self._settings.eval_every, step):
            return
        written = bool(max_over_processes(self._report.has_scores))
        if written and not np.isnan(self._best):
            return
        scores, gain = self._score(step, state)
        # Once the scores are written, this is not done again.
        self._checkpoints.wait()
        if not written:
            self._write(step, state, scores, gain)

    def _score(self, step: int, state: TrainState) -> tuple[dict, float]:
        """Returns the scores and delta_m of a state, and saves its weights if it is the best."""
        scores = self._evaluator.scores(state.parameters)
        found, gain = headline(self._tasks, scores), np.nan
        if self._compared:
            gain = delta_m(self._compared, found, self._baselines)
        if np.isnan(self._best) or gain > self._best:  # NaN: nothing to compare with
            self._best = gain
            details = {"delta_m": gain, "scores": scores}
            self._checkpoints.save_best({"parameters": state.parameters}, step, details)
        return scores, gain

    def _write(self, step: int, state: TrainState, scores: dict, gain: float) -> None:
        flat = {f"{task}/{name}": v for task, named in scores.items() for name, v in named.items()}
        self._report.numbers(step, "test", flat | {"delta_m": gain})
        self._report.say(
            f"step {step}, test set, delta_m {gain:+.2f} %\n"
            + score_table(self._tasks, scores, self.constants)
        )
        for example, logits in self._evaluator.examples_with_logits(state.parameters, 1):
            self._report.image(step, "predictions", example_panel(self._tasks, example, logits))
