"""The command `benchmark`: times parts of the model and of the input pipeline."""

import argparse
import pathlib
import sys

import jax

from mtmamba_jax import config as configuration
from mtmamba_jax.benchmarks.devices import report_devices
from mtmamba_jax.benchmarks.input import report_input
from mtmamba_jax.benchmarks.kernel_times import Kernel, Profile, profile_table
from mtmamba_jax.benchmarks.programs import MODEL_PROGRAMS, check_ss2d, model_record
from mtmamba_jax.benchmarks.report import model_table, report_ss2d, write_records
from mtmamba_jax.cli.console import announce, describe_program
from mtmamba_jax.config import Config
from mtmamba_jax.files.paths import check_writable
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER


def run(options: argparse.Namespace) -> int:
    """Times the scan, a training step, inference, several devices or the input pipeline."""
    output = pathlib.Path(options.output or f"benchmark_{options.what}.json")
    if not output.parent.is_dir():
        raise ValueError(f"--output={output}: there is no folder {output.parent}.")
    check_writable(output.parent, f"--output={output} cannot be written", "give another --output")
    names = ("spec", "implementation", "dtype", "config")
    given = [name for name in names if getattr(options, name) is not None]
    for name in [*given, *(f"config.{key}" for key in options.overrides)]:
        if name.startswith("config") == (options.what == "ss2d"):
            raise ValueError(f"--{name} does not go with --what={options.what}.")
    if options.profile and options.what not in MODEL_PROGRAMS:
        raise ValueError(f"--profile does not go with --what={options.what}.")
    if options.profile and jax.default_backend() != "gpu":
        raise ValueError("--profile needs a GPU: it lists the kernels that a GPU runs.")
    if options.repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {options.repeats}.")
    measure = {"ss2d": _ss2d, "input": _input}.get(options.what, _model)
    code = measure(options, output)
    print(f"\nWrote every number to {output}")
    return code


def _ss2d(options: argparse.Namespace, output: pathlib.Path) -> int:
    specs = options.spec.split(",") if options.spec else list(DECODER)
    implementations = options.implementation.split(",") if options.implementation else []
    dtype = options.dtype or "bfloat16"
    check_ss2d(specs, implementations, dtype)
    announce(f"Timing LN(ss2d(x, ...)), {dtype}, median of {options.repeats}")
    errors = report_ss2d(specs, implementations, dtype, options.repeats, output)
    for error in errors:
        print(f"error: {error}", file=sys.stderr)
    return 1 if errors else 0


def _model(options: argparse.Namespace, output: pathlib.Path) -> int:
    config, settings = _load(options)
    what = describe_program(options.what, config, "random ")
    announce(f"Timing {what}, median of {options.repeats}")
    if options.what == "devices":
        report_devices(config, options.repeats, output, settings)
        return 0
    record = model_record(options.what, config, options.repeats, traced=options.profile)
    print(f"\n{model_table(record)}")
    if options.profile:
        kernels = [Kernel(**kernel) for kernel in record["kernels"]]
        found = Profile(kernels, record["span_seconds"])
        print(f"\nOne call, traced:\n\n{profile_table(found)}")
    write_records(output, options.what, settings, [record])
    return 0


def _input(options: argparse.Namespace, output: pathlib.Path) -> int:
    config, settings = _load(options)
    print(
        f"Timing training batches of {options.config or 'synthetic'}, batch size "
        f"{config.train.batch_size}, {options.repeats} samples",
        flush=True,
    )
    report_input(config, options.repeats, output, settings)
    return 0


def _load(options: argparse.Namespace) -> tuple[Config, dict[str, object]]:
    """Returns the configuration of the flags, and the settings to note in the JSON file."""
    name = options.config or "synthetic"
    config = configuration.load(name, options.overrides)
    return config, {"repeats": options.repeats, "config_name": name, "config": config.flat()}
