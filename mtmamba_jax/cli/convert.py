"""The command `convert`: converts PyTorch weights."""

import argparse
import shlex

from mtmamba_jax.cli.console import program_name
from mtmamba_jax.convert.weight_files import SAFETENSORS, has_ending, read_weights
from mtmamba_jax.export.model_card import public_name
from mtmamba_jax.export.torch_run import (
    check_target,
    convert,
    describe_weights,
    write_file,
    write_run,
)


def run(options: argparse.Namespace) -> int:
    """Converts PyTorch weights to a run or to a safetensors file."""
    check_target(options.to)
    name = public_name(options.source)
    tensors, merging = read_weights(options.source), options.patch_merging
    converted = convert(tensors, options.config, options.overrides, merging)
    print(
        f"{options.source} holds {converted.contents}\n{describe_weights(converted.model)}",
        flush=True,
    )
    is_file = has_ending(options.to, SAFETENSORS)
    (write_file if is_file else write_run)(converted, options.to, name)
    if converted.config and not is_file:
        next_command = (
            f"predict --workdir={options.to} PHOTO_OR_FOLDER...\n"
            f"  {program_name()} eval --workdir={options.to}"
        )
    else:
        key = "run" if converted.config else "encoder"
        flag = f"--config.init.{key}={options.to}"
        next_command = shlex.join(["train", *converted.arguments, flag])
    print(f"Wrote {options.to}\nNext:\n  {program_name()} {next_command}")
    return 0
