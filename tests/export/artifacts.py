"""Writes runs and exports them, for tests of artifacts."""

import os
import subprocess
import sys

import numpy as np

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.save import CheckpointWriter
from mtmamba_jax.cli import main as cli
from mtmamba_jax.export import program as export
from mtmamba_jax.training.state import TrainState

SCORES = {"semseg": {"mIoU": 12.5}, "depth": {"RMSE": 0.75}}
# Runs a script that can only import jax, numpy and their dependencies.
ONLY_JAX = """
import runpy, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("mtmamba_jax", "flax", "orbax", "optax", "ml_collections", "cv2"):
            raise AssertionError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def write_run(workdir, config, parameters):
    """Writes a run like training: its configuration, a best and a latest checkpoint."""
    workdir.mkdir()
    RunDirectory(workdir).write_config(config)
    checkpoints = CheckpointWriter(RunDirectory(workdir), config=config.flat())
    state = TrainState(np.int32(3), parameters, {"moment": np.zeros(2, np.float32)})
    details = {"delta_m": 1.0, "scores": SCORES}
    checkpoints.save_best({"parameters": parameters}, 3, details)
    checkpoints.save_latest(state.to_items(), 3)
    checkpoints.close()


def run_script(folder, cwd, *images):
    for i, image in enumerate(images):
        np.save(cwd / f"image{i}.npy", image)
    paths = [f"image{i}.npy" for i in range(len(images))]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    return subprocess.run(
        [sys.executable, "-c", ONLY_JAX, str(folder / export.SCRIPT), *paths],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
    )


def call_export(workdir, output, *flags, platform="cpu"):
    return cli.main(
        ["export", f"--workdir={workdir}", f"--output={output}", f"--platform={platform}", *flags]
    )
