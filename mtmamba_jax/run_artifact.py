"""Predicts maps of images with jax alone: `python run.py IMAGE.npy ...` writes TASK.npy files.

`pip install jax flatbuffers`, with a jax not older than the one in model_card.md, which also says
what size and how many the images must be (uint8 RGB [h w 3]) and what the maps mean.
"""

import importlib
import json
import pathlib
import sys

import jax
import jax.export
import numpy as np

folder = pathlib.Path(__file__).parent
program = jax.export.deserialize(bytearray((folder / "program.jax_export").read_bytes()))
weights = dict(np.load(folder / "weights.npz"))
card = json.loads((folder / "model_card.json").read_text())["program"]
for name in card["imports"]:  # of jax: what runs the kernels in the program
    importlib.import_module(name)
images = np.stack([np.load(path) for path in sys.argv[1:]])
maps = jax.jit(program.call, compiler_options=card["compiler_options"])(weights, images)
for task, values in maps.items():
    np.save(f"{task}.npy", values)
