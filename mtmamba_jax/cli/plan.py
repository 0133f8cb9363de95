"""The command `plan`: checks whether a program fits on accelerators."""

import argparse
import contextlib
import pathlib

from mtmamba_jax import config as configuration
from mtmamba_jax.cli.console import describe_program
from mtmamba_jax.files.paths import check_writable
from mtmamba_jax.planning import topology as topologies
from mtmamba_jax.planning.report import plan_json, report_plan


def run(options: argparse.Namespace) -> int:
    """Compiles a program for absent accelerators and reports whether it fits."""
    config = configuration.load(options.config, options.overrides)
    if options.trace:
        if options.json:
            raise ValueError("--trace does not go with --json.")
        folder = pathlib.Path(options.trace).parent
        if not folder.is_dir():
            raise ValueError(f"--trace={options.trace}: there is no folder {folder}.")
        check_writable(folder, f"--trace={options.trace} cannot be written", "give another --trace")
    topology = topologies.find(options.topology)
    effort = topologies.optimizing_less() if options.quick else contextlib.nullcontext()
    with effort:
        if options.json:
            text, fits = plan_json(options.what, config, topology, estimated=options.profile)
            print(text)
            return 0 if fits else 1
        print(
            f"Compiling {describe_program(options.what, config)}, for {topology.name}: a minute "
            "for a small model, several for Swin-Large",
            flush=True,
        )
        fits = report_plan(
            options.what, config, topology, trace=options.trace, profile=options.profile
        )
    if options.quick and topology.devices[0].platform == "tpu":
        print("--quick: a run's program on TPUs needs a few percent more memory and is faster.")
    return 0 if fits else 1
