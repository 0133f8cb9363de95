"""The command `convert`."""

from __future__ import annotations

import argparse
import shlex

from mtmamba_jax.cli.console import program_name
from mtmamba_jax.convert.weight_files import SAFETENSORS, read_weights
from mtmamba_jax.export.model_card import public_name
from mtmamba_jax.export.torch_run import (
    Converted,
    check_target,
    convert,
    describe_weights,
    write_file,
    write_run,
)


def run(options: argparse.Namespace) -> int:
    """Turns PyTorch weights into a run, or into a file that needs no PyTorch."""
    check_target(options.to)
    name = public_name(options.source)
    converted = convert(read_weights(options.source), options.config, options.overrides)
    print(
        f"{options.source} holds {converted.contents}\n{describe_weights(converted.model)}",
        flush=True,
    )
    if options.to.endswith(SAFETENSORS):
        write_file(converted, options.to, name)
        key = "run" if converted.config else "encoder"
        following = _train(converted, f"--config.init.{key}={options.to}")
    else:
        write_run(converted, options.to, name)
        following = (
            f"predict --workdir={options.to} PHOTO_OR_FOLDER...\n"
            f"  {program_name()} eval --workdir={options.to}"
            if converted.config
            else _train(converted, f"--config.init.encoder={options.to}")
        )
    print(f"Wrote {options.to}\nNext:\n  {program_name()} {following}")
    return 0


def _train(converted: Converted, *flags: str) -> str:
    return shlex.join(["train", *converted.arguments, *flags])
