"""The command `train`: trains a model."""

import argparse
import signal
import time

from mtmamba_jax import config as configuration
from mtmamba_jax.cli.console import announce, default_workdir, join_processes
from mtmamba_jax.config import Config
from mtmamba_jax.evaluation.report import score_table
from mtmamba_jax.messages import command, counted
from mtmamba_jax.training.profile import parse_steps
from mtmamba_jax.training.stopping import StoppedError
from mtmamba_jax.training.train import train


def run(options: argparse.Namespace) -> int:
    """Trains a model, evaluates it and draws predictions."""
    config = configuration.load(options.config, options.overrides)
    workdir = options.workdir or default_workdir(options.config)
    profile = options.profile and parse_steps(options.profile, config.train.steps)
    join_processes(options)
    try:
        stop = train_once(config, workdir, profile, extend=options.extend)
    except StoppedError as stopped:
        print(stopped, flush=True)
        stop = stopped.number
    return exit_code(stop)


def exit_code(stop: signal.Signals | None) -> int:
    """Returns the exit code of a command that a signal stopped after saving, or that ended."""
    return 130 if stop == signal.SIGINT else 0


def train_once(
    config: Config, workdir: str, profile: tuple[int, int] | None = None, *, extend: bool = False
) -> signal.Signals | None:
    """Trains, prints the result and returns the signal that came after the last step, if any.

    Raises:
      StoppedError: If a signal stopped the run before its last step; the state is saved.
    """
    rate, warmup = config.optimizer.learning_rate, config.optimizer.warmup_steps
    never = (
        f"note: the learning rate never reaches {rate:g}: optimizer.warmup_steps={warmup} is not "
        f"below train.steps={config.train.steps}"
    )
    announce(
        f"Training {config.model.name} with {config.model.encoder} on {config.data.name}: "
        f"{', '.join(task.name for task in config.tasks.selected)}",
        f"{counted(config.train.steps, 'step')} of batch {config.train.batch_size}, "
        f"{config.data.size[0]}x{config.data.size[1]} pixels, {config.model.dtype}",
        f"Writing to {workdir}",
        *([never] if warmup >= config.train.steps else []),
    )
    start = time.monotonic()
    result = train(config, workdir, profile, extend=extend)
    panels = counted(len(result.panels), "test image")
    print(
        f"\nBest model: step {result.step}. On the test set, beside the best constant prediction:\n"
        f"{score_table(config.tasks.selected, result.scores, result.constants)}\n"
        f"\nTook {(time.monotonic() - start) / 60:.1f} minutes. Wrote to {workdir}:"
        f"\n  panels/         {panels} with predictions, labels and errors"
        "\n  metrics.jsonl   all logged numbers"
        "\n  tensorboard/    the same with images, for TensorBoard: pip install tensorboard"
        "\n  best/, latest/  checkpoints\n"
        "\nNext:"
        f"\n  {command('predict', f'--workdir={workdir}', 'PHOTO_OR_FOLDER...')}"
        f"\n  {command('eval', f'--workdir={workdir}')}"
    )
    return result.stop
