"""Predicts maps of images with JAX alone: `python run.py IMAGE.npy ...` writes TASK.npy files.

Install it with `pip install jax flatbuffers` (`jax[cuda13]` for NVIDIA GPUs, `jax[tpu]` for TPUs).
model_card.md lists the oldest supported version of jax, the size and number of the images (uint8
RGB [h w 3]) and the meaning of the maps.
"""

import importlib
import json
import pathlib
import sys

import jax
import jax.export
import numpy as np

if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
folder = pathlib.Path(__file__).parent
SEE = f"See {folder / 'model_card.md'}."
program = jax.export.deserialize(bytearray((folder / "program.jax_export").read_bytes()))
weights = dict(np.load(folder / "weights.npz"))
card = json.loads((folder / "model_card.json").read_text())["program"]
for name in card["imports"]:  # modules of JAX that run the kernels in the program
    importlib.import_module(name)
*_, expected = program.in_avals
images = []
for path in sys.argv[1:]:
    try:
        images.append(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        sys.exit(f"{path} was not saved by numpy.save ({type(error).__name__}). {SEE}")
    got = images[-1]
    if not isinstance(got, np.ndarray):
        sys.exit(f"{path} holds several arrays. Save one image by numpy.save. {SEE}")
    if (got.dtype, got.shape) != (expected.dtype, expected.shape[1:]):
        sizes = f"{expected.dtype} {list(expected.shape[1:])}, got {got.dtype} {list(got.shape)}"
        sys.exit(f"{path}: expected {sizes}. {SEE}")
if isinstance(expected.shape[0], int) and len(images) != expected.shape[0]:
    sys.exit(f"Expected {expected.shape[0]} images, got {len(images)}. {SEE}")
maps = jax.jit(program.call, compiler_options=card["compiler_options"])(weights, np.stack(images))
for task, values in maps.items():
    np.save(f"{task}.npy", values)
print("Wrote", ", ".join(f"{task}.npy" for task in maps))
