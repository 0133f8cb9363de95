"""One of two processes, of which one has a fault: PORT INDEX WORKDIR FAULT."""

import sys
import types

import orbax.checkpoint as ocp

from mtmamba_jax.cli.main import main
from mtmamba_jax.data_pipelines import sources
from mtmamba_jax.files import paths
from mtmamba_jax.training import state
from tests.pixel_model import build_pixel_model
from tests.tiny import TINY

SETTINGS = TINY | {"train.batch_size": "2", "eval.batch_size": "2", "train.steps": "200"}
SHORT = SETTINGS | {"train.steps": "4", "train.log_every": "4", "train.eval_every": "4"}


class BrokenScenes(sources.SyntheticScenes):
    """Scenes of which one cannot be read, after some steps."""

    read = 0

    def __getitem__(self, index):
        BrokenScenes.read += 1
        if BrokenScenes.read > 13:
            raise OSError("this host's disk is gone")
        return super().__getitem__(index)


def fail_once(read):
    """Makes the first reading fail: that of the newest checkpoint."""
    failures = iter([ValueError("this host sees a damaged file")])

    def fail(*arguments, **named):
        for failure in failures:
            raise failure
        return read(*arguments, **named)

    return fail


if __name__ == "__main__":
    port, index, place, fault = sys.argv[1:]
    state.build = build_pixel_model
    settings = SHORT if fault == "reading" else SETTINGS
    if index == "0" and fault == "room":
        paths.shutil.disk_usage = lambda folder: types.SimpleNamespace(free=100)
    if index == "1":
        if fault == "example":
            sources.SyntheticScenes = BrokenScenes
        elif fault == "reading":
            read = ocp.CompositeCheckpointHandler.restore
            ocp.CompositeCheckpointHandler.restore = fail_once(read)
        elif fault == "data":
            settings |= {"data.name": "folder", "data.dir": "/nowhere"}
        elif fault == "workdir":
            paths._VISIBILITY_TIMEOUT = 1.0
            place += "_of_another"
    flags = [f"--config.{key}={value}" for key, value in settings.items()]
    joining = [f"--coordinator=localhost:{port}", "--num_processes=2", f"--process_id={index}"]
    sys.exit(main(["train", "--config=synthetic", f"--workdir={place}", *joining, *flags]))
