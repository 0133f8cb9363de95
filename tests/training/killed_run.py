"""Trains as a user does, in a process to be killed: WORKDIR tiny|pixel [key=value ...]."""

import sys

from mtmamba_jax.checkpoints import load
from mtmamba_jax.cli.main import main
from mtmamba_jax.training import state
from tests.pixel_model import build_pixel_model
from tests.tiny import TINY

if __name__ == "__main__":
    workdir, model, *overrides = sys.argv[1:]
    if model == "pixel":
        state.build = state.abstract_build = load.abstract_build = build_pixel_model
    settings = TINY | dict(pair.split("=", 1) for pair in overrides)
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    sys.exit(main(["train", "--config=synthetic", f"--workdir={workdir}", *flags]))
