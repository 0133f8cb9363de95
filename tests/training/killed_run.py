"""Trains the tiny model in a process of its own, for a test that kills it."""

import pathlib
import sys

from mtmamba_jax.training.loop import train
from tests.tiny import tiny_config

if __name__ == "__main__":
    config = tiny_config(
        train__steps="30", train__eval_every="10", model__decoder_drop_path_rate="0.2"
    )
    train(config, pathlib.Path(sys.argv[1]))
