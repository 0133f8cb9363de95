"""The command `convert`: converts PyTorch weights."""

import argparse

from mtmamba_jax.convert.weight_files import SAFETENSORS, has_ending, read_weights
from mtmamba_jax.export.model_card import public_name
from mtmamba_jax.export.torch_run import (
    check_target,
    convert,
    describe_weights,
    write_file,
    write_run,
)
from mtmamba_jax.messages import command


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
        workdir = f"--workdir={options.to}"
        following = [("predict", workdir, "PHOTO_OR_FOLDER..."), ("eval", workdir)]
    else:
        key = "run" if converted.config else "encoder"
        flag = f"--config.init.{key}={options.to}"
        following = [("train", *converted.arguments, flag)]
    print("\n  ".join([f"Wrote {options.to}\nNext:", *(command(*each) for each in following)]))
    return 0
