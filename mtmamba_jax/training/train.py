"""The training run, from configuration to best checkpoint, in one place."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import signal
from collections.abc import Callable, Mapping, Sequence

import jax
from etils import epath
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.resume import Start, recover
from mtmamba_jax.checkpoints.run import CONFIG_FILE, saved_config
from mtmamba_jax.checkpoints.save import Checkpoints, check_room
from mtmamba_jax.checkpoints.saved import (
    holds_checkpoints,
    read_details,
    read_parameters,
    steps_saved,
)
from mtmamba_jax.checkpoints.warm_start import check_places, warm_start
from mtmamba_jax.checkpoints.workdir import WorkDirectory, hold
from mtmamba_jax.data_pipelines.pipeline import Batches, Source, train_batches
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.devices.processes import is_first, together
from mtmamba_jax.devices.sharding import create_mesh
from mtmamba_jax.evaluation.evaluate import Evaluator
from mtmamba_jax.files.paths import check_writable_scheme
from mtmamba_jax.metrics.scores import Scores
from mtmamba_jax.tasks import Task
from mtmamba_jax.training.clock import Clock, least_seconds
from mtmamba_jax.training.loop import Steps, Watch
from mtmamba_jax.training.optimizer import create_optimizer
from mtmamba_jax.training.profile import Profile
from mtmamba_jax.training.report import Report
from mtmamba_jax.training.state import TrainState, create_state
from mtmamba_jax.training.step import create_train_step
from mtmamba_jax.training.stopping import StopSignals
from mtmamba_jax.visualization.panels import write_panels


@dataclasses.dataclass(frozen=True)
class Result:
    """What a finished run leaves.

    Attributes:
      step: of the best checkpoint.
      scores: of that checkpoint on the test set.
      constants: the best constant prediction's score for each task.
      panels: the pictures that were written.
      stop: the signal that came when there were no steps left to stop before; None where none did.
    """

    step: int
    scores: Scores
    constants: Mapping[str, float]
    panels: list[epath.Path]
    stop: signal.Signals | None


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
      OSError: `workdir` cannot be read or written, or another run writes there.
      ExampleError, WorkerError: an example could not be read, or the process that read it died.
      RuntimeError: another process of the run met an error before the first step.
    """
    # What a user can get wrong comes first: the model takes a while to build.
    with together():
        check_writable_scheme(workdir, "--workdir")
        config, tasks, source = _open(config)
    workdir = epath.Path(workdir)
    part = config.train.batch_size // config.train.microbatches
    mesh = create_mesh(part, config.eval.batch_size, **config.mesh)

    with contextlib.ExitStack() as stack:
        directory = stack.enter_context(hold(workdir))
        with together():
            check_start(config, workdir)
        optimizer = create_optimizer(config.optimizer, config.train.steps)
        graph, state, layout = create_state(config, tasks, optimizer, mesh)
        train_step = create_train_step(config, graph, tasks, optimizer, mesh, layout)
        with together():
            evaluator = Evaluator(config, graph, tasks, mesh, layout.parameters)
        begun = _begin(config, graph, state, workdir)
        state, start = begun.state, int(begun.state.step)
        checkpoints = Checkpoints(
            workdir, config.train.keep_checkpoints, config=configuration.flatten(config)
        )
        _close_at_end(stack, checkpoints.close)
        batches = open_batches(config, source, tasks, start)
        _close_at_end(stack, batches.close)
        watch = _watch(stack, config, mesh, directory, start, profile)
        stops = stack.enter_context(StopSignals())
        steps = Steps(config, tasks, checkpoints, evaluator, watch, begun.best)
        stack.callback(gc.unfreeze)  # what the steps leave out of collections
        state = steps.run(state, train_step, batches, mesh, stops)
        best = checkpoints.best()
        parameters, details = read_parameters(best, like=state.parameters), read_details(best)
        panels = write_panels(
            workdir / "panels", tasks, evaluator.predictions(parameters, config.eval.panels)
        )
    return Result(details["step"], details["scores"], steps.constants, panels, stops.found)


def _open(config: ConfigDict) -> tuple[ConfigDict, tuple[Task, ...], Source]:
    """Returns the configuration, with the number of training examples, the tasks and the source."""
    tasks = configuration.tasks(config)
    configuration.check(config, [task.name for task in tasks])
    source = open_source(config.data, tasks, "train")
    # The order of examples follows from their number: a resumed run must find the same one.
    config = config.copy_and_resolve_references()
    config.data.train_examples = len(source)
    return config, tasks, source


def _close_at_end(stack: contextlib.ExitStack, close: Callable[[], None]) -> None:
    """Calls `close` when the stack ends; its fault does not hide the one that ended the run."""

    def end(kind, error, traceback):
        with contextlib.suppress(Exception) if error else contextlib.nullcontext():
            close()

    stack.push(end)


def _begin(
    config: ConfigDict, graph: nnx.GraphDef, state: TrainState, workdir: epath.Path
) -> Start:
    """Returns what the run goes on from, or the given state with the weights of `config.init`."""
    found = recover(workdir, like=state)
    if found is None:
        check_room(workdir, state)
        weights = warm_start(config.init, graph, state.parameters)
        begun = Start(dataclasses.replace(state, parameters=weights), best=None)
    else:
        begun = found
        step = int(begun.state.step)
        print(f"Going on from step {step} in {workdir}", flush=True)
        if step < config.train.steps:
            check_room(workdir, begun.state)
    if is_first() and (found is None or not (workdir / CONFIG_FILE).exists()):
        configuration.save(config, workdir / CONFIG_FILE)
    return begun


def _watch(
    stack: contextlib.ExitStack,
    config: ConfigDict,
    mesh: Mesh,
    directory: WorkDirectory,
    start: int,
    profile: tuple[int, int] | None,
) -> Watch:
    """Returns what a run that goes on from step `start` is watched with, closed with the stack."""
    clock = Clock(config.train.batch_size, least_seconds(config, mesh))
    _close_at_end(stack, clock.close)
    report = Report(directory, start_step=start, steps=config.train.steps, writes=is_first())
    _close_at_end(stack, report.close)
    if profile and start >= profile[0]:
        report.say(f"warning: step {profile[0]} is done already: nothing is traced.")
    traced = Profile(profile if is_first() else None, directory.local)
    _close_at_end(stack, traced.close)
    return Watch(report, clock, traced)


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


def check_start(config: ConfigDict, workdir: epath.Path) -> None:
    """Checks that a run can begin, or that the checkpoints it would go on from are its own.

    Raises:
      ValueError: `config.init` names no run, or keys of the configuration differ from those of the
        checkpoints; the message lists them.
    """
    if not holds_checkpoints(workdir):
        check_places(config.init)
        return
    if steps_saved(workdir, "best") == [0] and not steps_saved(workdir, "latest"):
        raise ValueError(
            f"{workdir} holds converted weights, not a run to go on with. Give another --workdir, "
            f"and begin with them: --config.init.run={workdir}"
        )
    differing = configuration.differences(saved_config(workdir), config)
    if differing:
        raise ValueError(
            f"{workdir} holds a checkpoint of another configuration. These keys differ "
            "(saved -> wanted):\n  " + "\n  ".join(differing) + "\n"
            "Set them back to go on with that run, or choose another --workdir; there "
            f"--config.init.run={workdir} begins with its weights."
        )
