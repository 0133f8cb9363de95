"""Predicts maps of images with JAX alone: `python run.py IMAGE.npy ...` writes TASK.npy files.

Install it with `pip install jax flatbuffers` (`jax[cuda13]` for NVIDIA GPUs, `jax[tpu]` for TPUs).
model_card.md lists the oldest supported version of jax, the size and number of the images (uint8
RGB [h w 3]) and the meaning of the maps.
"""

import importlib
import json
import os
import pathlib
import sys

try:
    import flatbuffers  # noqa: F401 (jax.export asks for it when it reads a program)
    import jax
    import jax.export
    import numpy as np
except ImportError as missing:
    sys.exit(f"{missing}. Run: pip install jax flatbuffers")

FOLDER = pathlib.Path(__file__).parent
SEE = f"See {FOLDER / 'model_card.md'}."


def first_line(error):
    """Returns an error's type and the beginning of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def read(name, parse):
    """Returns what `parse` makes of a file of this artifact."""
    try:
        if (FOLDER / name).is_fifo():  # reading it would wait for its writer
            raise ValueError("a pipe")
        return parse(FOLDER / name)
    except Exception as error:  # missing, truncated, of a newer jax
        sys.exit(
            f"{FOLDER / name} cannot be read by jax {jax.__version__} ({first_line(error)}). Copy "
            f"or export the artifact again; if it is whole, update jax. {SEE}"
        )


def find_device(program):
    """Returns the device to run on: of the program's platform, which need not be the default."""
    (platform,) = program.platforms
    try:
        return jax.devices(platform)[0]
    except Exception as error:  # of several types
        reason = first_line(error) if str(error) else "it has no device of that kind"
        sys.exit(
            f"{FOLDER} is for {platform}, which JAX does not find here ({reason}). Run "
            f"it where there is one, or export it for this machine with --platform. {SEE}"
        )


def read_weights(program):
    """Returns the weights by name."""
    weights = read("weights.npz", lambda file: dict(np.load(file)))
    (expected, _), _ = jax.tree.unflatten(program.in_tree, program.in_avals)
    found, wanted = ({k: (v.shape, v.dtype) for k, v in x.items()} for x in (weights, expected))
    if found != wanted:
        names = sorted(k for k in found.keys() | wanted.keys() if found.get(k) != wanted.get(k))
        sys.exit(
            f"{FOLDER / 'weights.npz'} is not of the program beside it: {len(names)} arrays differ "
            f"({names[0]}). Copy both from one artifact. {SEE}"
        )
    return weights


def read_images(paths, expected):
    """Returns the images as one array of the shape and dtype that the program expects."""
    images = []
    for path in paths:
        if not pathlib.Path(path).is_file():  # reading a pipe would wait for its writer
            sys.exit(f"{path} does not exist or is not a file. {SEE}")
        try:
            images.append(np.load(path))
        except Exception as error:  # any type: the header may claim anything
            sys.exit(f"{path} was not saved by numpy.save ({type(error).__name__}). {SEE}")
        got = images[-1]
        if not isinstance(got, np.ndarray):
            sys.exit(f"{path} holds several arrays. Save one image by numpy.save. {SEE}")
        if (got.dtype, got.shape) != (expected.dtype, expected.shape[1:]):
            wanted = f"{expected.dtype} {list(expected.shape[1:])}"
            sys.exit(f"{path}: expected {wanted}, got {got.dtype} {list(got.shape)}. {SEE}")
    if isinstance(expected.shape[0], int) and len(images) != expected.shape[0]:
        sys.exit(f"Expected {expected.shape[0]} images, got {len(images)}. {SEE}")
    return np.stack(images)


def write(name, values):
    """Writes an array to a file, completely or not at all."""
    partial = pathlib.Path(f".{name}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, values)
        partial.replace(name)
    except OSError as error:
        partial.unlink(missing_ok=True)
        sys.exit(f"{pathlib.Path(name).absolute()} could not be written ({error.strerror}).")


def read_card(file):
    """Returns what the card says about the program."""
    card = json.loads(file.read_text())["program"]
    return {name: card[name] for name in ("imports", "compiler_options", "needs")}


def report(text):
    """Prints a line; that nobody reads it, or that it cannot be written, loses no map."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at the end
        if not isinstance(error, BrokenPipeError):
            sys.exit(f"{text}, but standard output could not be written ({error.strerror}).")


def main(paths):
    """Reads the artifact and the images, predicts their maps and writes them."""
    card = read("model_card.json", read_card)
    program = read(
        "program.jax_export", lambda file: jax.export.deserialize(bytearray(file.read_bytes()))
    )
    weights = read_weights(program)
    images = read_images(paths, program.in_avals[-1])
    device = find_device(program)
    try:
        for name in card["imports"]:  # modules of JAX that run the kernels in the program
            importlib.import_module(name)
        predict = jax.jit(program.call, compiler_options=card["compiler_options"])
        with jax.default_device(device):
            maps = jax.device_get(predict(weights, images))
    except Exception as error:  # too little memory, a chip without the kernels, a damaged program
        sys.exit(
            f"{FOLDER} does not run on {device.device_kind} with jax {jax.__version__} "
            f"({first_line(error)}). It needs {card['needs']} and a whole copy of the files. {SEE}"
        )
    for task, values in maps.items():
        write(f"{task}.npy", values)
    report("Wrote " + ", ".join(f"{task}.npy" for task in maps))


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1].startswith("-"):
        sys.exit(__doc__)
    main(sys.argv[1:])
