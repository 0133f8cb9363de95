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

if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
    sys.exit(__doc__)
folder = pathlib.Path(__file__).parent
SEE = f"See {folder / 'model_card.md'}."
program = jax.export.deserialize(bytearray((folder / "program.jax_export").read_bytes()))
weights = dict(np.load(folder / "weights.npz"))
card = json.loads((folder / "model_card.json").read_text())["program"]
for name in card["imports"]:  # of jax: what runs the kernels in the program
    importlib.import_module(name)
*_, wanted = program.in_avals
images = []
for path in sys.argv[1:]:
    try:
        images.append(np.load(path))
    except (OSError, ValueError, EOFError) as error:
        sys.exit(f"{path} is no image saved by numpy.save ({type(error).__name__}). {SEE}")
    got = images[-1]
    if not isinstance(got, np.ndarray):
        sys.exit(f"{path} holds several arrays: save one image by numpy.save. {SEE}")
    if (got.dtype, got.shape) != (wanted.dtype, wanted.shape[1:]):
        sizes = f"{wanted.dtype} {list(wanted.shape[1:])}; it is {got.dtype} {list(got.shape)}"
        sys.exit(f"{path}: wanted {sizes}. {SEE}")
if isinstance(wanted.shape[0], int) and len(images) != wanted.shape[0]:
    sys.exit(f"Wanted {wanted.shape[0]} images at once, got {len(images)}. {SEE}")
maps = jax.jit(program.call, compiler_options=card["compiler_options"])(weights, np.stack(images))
for task, values in maps.items():
    np.save(f"{task}.npy", values)
print("Wrote", ", ".join(f"{task}.npy" for task in maps))
