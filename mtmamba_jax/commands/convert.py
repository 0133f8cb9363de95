"""The command `convert`."""

from __future__ import annotations

import argparse

from mtmamba_jax.commands.console import program_name
from mtmamba_jax.model_card import public_name
from mtmamba_jax.torch_run import check_target, convert, describe_weights, write_file, write_run
from mtmamba_jax.weight_files import SAFETENSORS, read_weights


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
        following = f"train {converted.arguments} --config.init.{key}={options.to}"
    else:
        write_run(converted, options.to, name)
        following = (
            f"predict --workdir={options.to} PHOTO_OR_FOLDER...\n"
            f"  {program_name()} eval --workdir={options.to}"
            if converted.config
            else f"train {converted.arguments} --config.init.encoder={options.to}"
        )
    print(f"Wrote {options.to}\nNext:\n  {program_name()} {following}")
    return 0
