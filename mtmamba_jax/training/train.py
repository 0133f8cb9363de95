"""Assembles a training run, from its configuration to its best checkpoint."""

import contextlib
import dataclasses
import signal
from collections.abc import Callable, Mapping

from etils import epath
from flax import nnx
from jax.sharding import Mesh

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.resume import Resumed, resume
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.run_lock import LockedRunDirectory, lock
from mtmamba_jax.checkpoints.save import CheckpointWriter, check_room
from mtmamba_jax.checkpoints.warm_start import check_sources, warm_start
from mtmamba_jax.config import Config
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.devices.processes import fail_together, is_first
from mtmamba_jax.devices.sharding import create_mesh
from mtmamba_jax.evaluation.evaluate import Evaluator
from mtmamba_jax.metrics import Scores
from mtmamba_jax.training.batches import open_batches
from mtmamba_jax.training.clock import Clock, seconds_at_peak
from mtmamba_jax.training.loop import Loop, Monitors
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.profile import Profile
from mtmamba_jax.training.report import Report
from mtmamba_jax.training.state import TrainState, create_state
from mtmamba_jax.training.step import create_train_step
from mtmamba_jax.training.stopping import StopSignals
from mtmamba_jax.visualization.panels import write_panels


@dataclasses.dataclass(frozen=True)
class Result:
    """The outcome of a completed run.

    Attributes:
      step: The step of the best checkpoint, of which `scores` and `panels` are.
      constants: The score of the best constant prediction, by task.
      stop: The signal that arrived after the last step, None if there was none.
    """

    step: int
    scores: Scores
    constants: Mapping[str, float]
    panels: list[epath.Path]
    stop: signal.Signals | None


def train(
    config: Config,
    workdir: epath.PathLike,
    profile: tuple[int, int] | None = None,
    *,
    extend: bool = False,
) -> Result:
    """Trains and evaluates a model and keeps the best checkpoint; resumes an interrupted run.

    The initial weights are those of the latest checkpoint in `workdir`, else those of
    `config.init`, else random. The best checkpoint is the one with the highest delta_m against
    `config.tasks.baselines` or, without them, against the best constant predictions.

    Args:
      config: The run's configuration.
      workdir: A folder, or a place in a bucket (gs://BUCKET/NAME).
      profile: The first and last step to trace, into `profile/` of the work directory.
      extend: Whether `config.train.steps` may be larger than that of the checkpoints. Parameters
        and optimizer state are kept; the learning rate follows the schedule of the longer run.

    Raises:
      ValueError: If the configuration cannot work, or differs from that of the checkpoints in
        `workdir`.
      NonFiniteError: If a loss or gradient is not finite, or too many such steps are skipped.
      StoppedError: If SIGTERM or Ctrl-C arrived; the state is saved.
      OSError: If `workdir` cannot be read or written, or another run is writing there.
      ExampleError, WorkerError: If an example cannot be read, or a worker process died.
      RuntimeError: If another process of the run failed before the first step.
    """
    # Building the model takes a while: first check what a user can get wrong.
    with fail_together():
        directory = RunDirectory(workdir)
        tasks = config.tasks.selected
        source = open_source(config.data, tasks, "train")
        # Their number determines their order, and a resumed run must find the same one.
        config = config.replace(data={"train_examples": len(source)})
    mesh = create_mesh(
        config.train.batch_size // config.train.microbatches,
        config.eval.batch_size,
        data=config.mesh.data,
        fsdp=config.mesh.fsdp,
    )
    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(lock(directory))
        with fail_together():
            check_start(config, directory, extend)
        optimizer = create_optimizer(config.optimizer, config.train.steps)
        graph, state, layout = create_state(config.model, tasks, config.seed, optimizer, mesh)
        train_step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
        with fail_together():
            evaluator = Evaluator(
                config.data, config.eval.batch_size, graph, tasks, mesh, layout.parameters
            )
        resumed = resume(directory, state.to_items())
        state = _start_or_resume(config, graph, state, directory, resumed)
        start, best_so_far = (resumed.step, resumed.best) if resumed else (0, None)
        checkpoints = CheckpointWriter(
            directory, config.train.keep_checkpoints, config=config.flat(), best=best_so_far
        )
        _close_at_end(stack, checkpoints.close)
        if resumed and best_so_far and resumed.best_is_missing:
            checkpoints.save_best({"parameters": state.parameters}, start, best_so_far)
        batches = open_batches(config, source, start)
        _close_at_end(stack, batches.close)
        monitors = _open_monitors(stack, config, mesh, directory, start, profile)
        stops = stack.enter_context(StopSignals())
        best_delta_m = best_so_far["delta_m"] if best_so_far else None
        loop = Loop(config, checkpoints, evaluator, monitors, best_delta_m)
        state = loop.run(state, train_step, batches, mesh, stops)
        best = directory.checkpoint("best", checkpoints.best_step())
        parameters = best.read({"parameters": state.parameters})["parameters"]
        panels = write_panels(
            directory / "panels",
            tasks,
            evaluator.examples_with_logits(parameters, config.eval.panels),
        )
        scores = best.read_details()["scores"]
    return Result(best.step, scores, loop.constants, panels, stops.found)


def _close_at_end(stack: contextlib.ExitStack, close: Callable[[], object]) -> None:
    """Calls `close` when the stack ends; its error does not hide the one that ended the run."""

    def end(kind, error, traceback):
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            close()

    stack.push(end)


def _start_or_resume(
    config: Config,
    graph: nnx.GraphDef,
    state: TrainState,
    directory: RunDirectory,
    resumed: Resumed | None,
) -> TrainState:
    """Returns the state of the checkpoint found, else the given one with the weights of
    `config.init`; checks that checkpoints have room and writes the configuration."""
    if resumed:
        print(f"Resuming from step {resumed.step} in {directory}", flush=True)
    if resumed is None or resumed.step < config.train.steps:
        with fail_together():
            check_room(directory, state)
    if resumed:
        state = TrainState.from_items(resumed.items)
    else:
        parameters = warm_start(config.init, graph, state.parameters)
        state = dataclasses.replace(state, parameters=parameters)
    with fail_together():
        if is_first():  # also after resuming, which may change some keys
            directory.write_config(config)
    return state


def _open_monitors(
    stack: contextlib.ExitStack,
    config: Config,
    mesh: Mesh,
    directory: LockedRunDirectory,
    start: int,
    profile: tuple[int, int] | None,
) -> Monitors:
    """Opens the report, the clock and the profiler of a run that starts at a step."""
    clock = Clock(config.train.batch_size, seconds_at_peak(config, mesh))
    _close_at_end(stack, clock.close)
    report = Report(directory, start_step=start, steps=config.train.steps, writes=is_first())
    _close_at_end(stack, report.close)
    if profile and start >= profile[0]:
        report.say(f"warning: step {profile[0]} is done already: nothing is traced.")
    profiler = Profile(profile if is_first() else None, directory.local)
    _close_at_end(stack, profiler.close)
    return Monitors(report, clock, profiler)


def check_start(config: Config, directory: RunDirectory, extend: bool = False) -> None:
    """Checks that a run can start, or that it can resume from the checkpoints it finds.

    Raises:
      ValueError: If `config.init` names no weights, or if the configuration differs from that of
        the checkpoints; the message lists the keys.
    """
    if not directory.has_checkpoints():
        check_sources(config.init)
        return
    saved = directory.read_config()
    if directory.steps("best") == [0] and not directory.steps("latest"):
        raise ValueError(
            f"{directory} holds converted weights, not a run to resume. Choose another --workdir "
            f"and start from them: --config.init.run={directory}"
        )
    steps, wanted = saved.train.steps, config.train.steps
    if extend and wanted > steps:
        print(
            f"Extending the run from {steps} to {wanted} steps: from here on, the learning rate "
            f"follows the schedule of {wanted} steps."
        )
        saved = saved.replace(train={"steps": wanted})
    differing = configuration.differences(saved, config)
    if differing:
        hint = " --extend resumes with a larger train.steps." if wanted > steps else ""
        raise ValueError(
            f"{directory} holds a checkpoint of another configuration. These keys differ "
            "(saved -> wanted):\n  " + "\n  ".join(differing) + "\n"
            "Set them back to resume that run, or choose another --workdir; "
            f"--config.init.run={directory} starts from its weights.{hint}"
        )
