"""Prints and parses what several commands share."""

import argparse

import jax

from mtmamba_jax.config import Config, run_name
from mtmamba_jax.devices.compilation_cache import enable_compilation_cache
from mtmamba_jax.devices.processes import check_devices, join
from mtmamba_jax.files.paths import path_inside


def announce(*lines: str) -> None:
    """Prints what is about to run and on which devices, and enables the compilation cache."""
    check_devices()
    enable_compilation_cache()
    devices = jax.devices()
    print("\n".join(lines))
    count = jax.process_count()
    processes = f" of {count} processes" if count > 1 else ""
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    print(f"Devices: {len(devices)} x {kinds}{processes} (jax {jax.__version__})", flush=True)


def describe_program(what: str, config: Config, kind: str = "") -> str:
    """Describes a program; `kind` describes its images, such as "random "."""
    program = "the prediction" if what == "inference" else "a training step"
    height, width = config.data.size
    return (
        f"{program} of {config.model.name} with {config.model.encoder} on {kind}{height}x{width} "
        f"images, {config.model.dtype}"
    )


def default_workdir(config: str) -> str:
    """Returns the work directory of a configuration, given by its name, if there is no --workdir.

    A sweep has its runs' work directories in it.
    """
    return f"runs/{path_inside(run_name(config))}"


def parse_size(text: str) -> tuple[int, int]:
    """Returns the height and width of --size; raises ValueError unless it is HEIGHTxWIDTH."""
    height, _, width = text.partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"--size wants HEIGHTxWIDTH in pixels, such as 448x576; got {text!r}.")
    return int(height), int(width)


def join_processes(options: argparse.Namespace) -> None:
    """Joins the other processes of a run; see `processes.join`."""
    join(options.coordinator, options.num_processes, options.process_id)
    check_devices()
