"""The command `plan`: checks whether a program fits on accelerators."""

import argparse
import contextlib

from mtmamba_jax import config as configuration
from mtmamba_jax.cli.console import describe_program
from mtmamba_jax.planning import topology as topologies
from mtmamba_jax.planning.report import plan_json, report_plan


def run(options: argparse.Namespace) -> int:
    """Compiles a program for absent accelerators and reports whether it fits."""
    config = configuration.load(options.config, options.overrides)
    topology = topologies.find(options.topology)
    effort = topologies.optimizing_less() if options.quick else contextlib.nullcontext()
    with effort:
        if options.json:
            text, fits = plan_json(options.what, config, topology)
            print(text)
            return 0 if fits else 1
        print(
            f"Compiling {describe_program(options.what, config)}, for {topology.name}: a minute "
            "for a small model, several for Swin-Large",
            flush=True,
        )
        fits = report_plan(options.what, config, topology)
    if options.quick:
        print("--quick: a run's program on TPUs needs a few percent more memory and is faster.")
    return 0 if fits else 1
