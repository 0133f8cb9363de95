"""What `benchmark --what=saving` measures: training steps with checkpoints and without."""

from __future__ import annotations

import contextlib
import gc
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.benchmarks.programs import Record, train_program
from mtmamba_jax.checkpoints.save import Checkpoints
from mtmamba_jax.devices.timing import WARM_UPS, check_repeats
from mtmamba_jax.messages import gib, markdown_table
from mtmamba_jax.training.pauses import keep_replaced, leave_out_of_collections
from mtmamba_jax.training.state import TrainState

EVERY = 100
"""Steps between two checkpoints."""


def saving_record(config: ConfigDict, repeats: int, folder: pathlib.Path) -> Record:
    """Times stretches of training steps, with a checkpoint after the first step and without.

    The two take turns, and the background work of a checkpoint is over before the next stretch. The
    batch is random and already on the devices. A stretch with a checkpoint includes handing it over
    and whatever its writing takes from the steps beside it.

    Args:
      config: gives the model, the size of images and the batch.
      repeats: stretches of each kind.
      folder: on the disk to write to; what is written is deleted again.

    Raises:
      ValueError: a configuration that cannot work, or no repeats.
    """
    check_repeats(repeats)
    tasks = configuration.tasks(config)
    configuration.check(config, [task.name for task in tasks])
    with contextlib.ExitStack() as stack:
        workdir = stack.enter_context(
            tempfile.TemporaryDirectory(dir=folder, prefix=".benchmark_saving_")
        )
        checkpoints = Checkpoints(workdir, config=configuration.flatten(config))
        stack.callback(checkpoints.close)
        program = train_program(
            config, tasks, around=lambda step: keep_replaced(step, checkpoints.is_writing)
        )
        stretch(program.call, WARM_UPS)
        stretch(program.call, 1, checkpoints.save_latest)  # makes the folders, starts the threads
        checkpoints.wait()
        leave_out_of_collections()  # as training does
        stack.callback(gc.unfreeze)
        without, saving, handing, writing = [], [], [], []
        for _ in range(repeats):
            without.append(stretch(program.call, EVERY)[0])
            seconds, handed = stretch(program.call, EVERY, checkpoints.save_latest)
            start = time.perf_counter()
            checkpoints.wait()
            saving.append(seconds)
            handing.append(handed)
            writing.append(time.perf_counter() - start)
    return {
        "batch_size": program.batch_size,
        "devices": program.devices,
        "state_bytes": program.state_bytes,
        "steps": EVERY,
        "without_seconds": without,
        "saving_seconds": saving,
        "handing_over_seconds": handing,
        "still_writing_seconds": writing,
    } | program.compiling


def stretch(
    call: Callable[[], tuple[TrainState, object]],
    steps: int,
    save: Callable[[TrainState], None] | None = None,
) -> tuple[float, float]:
    """Returns the seconds of some training steps, and those of `save` after the first of them."""
    start, handed = time.perf_counter(), 0.0
    for step in range(steps):
        state, _ = call()
        if step == 0 and save is not None:
            jax.block_until_ready(state)
            begun = time.perf_counter()
            save(state)
            handed = time.perf_counter() - begun
    jax.block_until_ready(state)
    return time.perf_counter() - start, handed


def saving_table(record: Record) -> str:
    """Returns the table of `saving_record`, medians, one line a quantity."""
    without, saving = (
        statistics.median(record[f"{name}_seconds"]) for name in ("without", "saving")
    )
    steps = record["steps"]
    return markdown_table(
        ("batch", str(record["batch_size"])),
        {
            "devices": str(record["devices"]),
            "state, GiB": gib(record["state_bytes"]),
            f"ms a step, of {steps} without saving": f"{1e3 * without / steps:.2f}",
            f"ms a step, of {steps} with one checkpoint": f"{1e3 * saving / steps:.2f}",
            "more, %": f"{100 * (saving / without - 1):.2f}",
            "handing it over, s": f"{statistics.median(record['handing_over_seconds']):.3f}",
            "still writing afterwards, s": (
                f"{statistics.median(record['still_writing_seconds']):.3f}"
            ),
        }.items(),
    )
