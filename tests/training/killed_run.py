"""Trains the tiny model in a process of its own, for a test that kills it."""

import pathlib
import sys

from mtmamba_jax.training.loop import train
from tests.tiny import tiny_config

if __name__ == "__main__":
    train(tiny_config(), pathlib.Path(sys.argv[1]))
