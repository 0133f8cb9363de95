"""Trains the tiny model as a user does, in a process to be killed: WORKDIR [key=value ...]."""

import sys

from mtmamba_jax.cli.main import main
from tests.tiny import TINY

if __name__ == "__main__":
    workdir, *overrides = sys.argv[1:]
    settings = TINY | dict(pair.split("=", 1) for pair in overrides)
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    sys.exit(main(["train", "--config=synthetic", f"--workdir={workdir}", *flags]))
