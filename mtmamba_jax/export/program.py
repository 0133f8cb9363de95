"""A trained model as an artifact: a folder with all that predicting takes but jax itself.

The program is that of `jax.export`: StableHLO, lowered for one platform. Its weights lie beside it
and are an argument. Swin-Large's as constants: writing takes 31 s and 8.2 GiB in place of 9 s and
1.7 GiB (2026-11-26, two CPU cores, jax 0.10.2), and 2 GB, where the file format (FlatBuffers) ends,
is near.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from mtmamba_jax.config import Config
from mtmamba_jax.data_pipelines.transforms import normalise
from mtmamba_jax.export.model_card import to_markdown
from mtmamba_jax.files.paths import check_free_space
from mtmamba_jax.models.mtmamba import abstract_build
from mtmamba_jax.readout import to_value
from mtmamba_jax.tasks import Task

PROGRAM, WEIGHTS, SCRIPT = "program.jax_export", "weights.npz", "run.py"
CARD, CARD_TEXT = "model_card.json", "model_card.md"

FUSED = {"cuda": "pallas_gpu", "tpu": "pallas_tpu"}
"""Platforms with a fused scan, a name of `kernels.ss2d.IMPLEMENTATIONS`."""
SCANS = ("fused", "xla")


def parse_batch(text: str) -> int | None:
    """Returns how many images a program takes at once; None is any number.

    Raises:
      ValueError: `text` is neither a number from 1 on nor "any".
    """
    if text == "any":
        return None
    if not (text.isdigit() and int(text)):
        raise ValueError(f"--batch wants a number of images from 1 on, or any; got {text!r}.")
    return int(text)


def choose_scan(platform: str, scan: str | None, batch: int | None) -> str:
    """Returns which of `SCANS` an artifact has.

    Args:
      platform: "cpu", "cuda" or "tpu".
      scan: that was asked for; None is fused where the platform has such a kernel.
      batch: images at once; None is any number.

    Raises:
      ValueError: the platform or the batch goes without a fused scan.
    """
    scan = scan or ("fused" if platform in FUSED else "xla")
    if scan == "fused" and platform not in FUSED:
        raise ValueError(f"--scan=fused: {platform} has no fused scan; leave the flag out.")
    if scan == "fused" and batch is None:
        raise ValueError(
            "--batch=any: the fused scan is compiled for one number of images. Give that number, "
            "or add --scan=xla."
        )
    return scan


def export_program(
    config: Config,
    tasks: Sequence[Task],
    *,
    platform: str,
    size: tuple[int, int],
    batch: int | None,
    scan: str,
) -> export.Exported:
    """Returns the program (weights, images) -> {task: `readout.to_value` of its logits}.

    Weights are {name: array}, as `name_weights` gives them; images uint8 RGB [b h w 3].

    Args:
      config: of the run.
      tasks: what it predicts.
      platform: "cpu", "cuda" or "tpu"; it need not be here.
      size: height and width of images.
      batch: images at once; None is any number.
      scan: of `choose_scan`.

    Raises:
      NotImplementedError: the fused scan cannot do this model.
    """
    implementation = FUSED[platform] if scan == "fused" else "xla"
    config = config.replace(model={"scan_implementation": implementation})
    graph, abstract = abstract_build(config.model, tasks)
    names, structure = list(name_weights(abstract)), jax.tree.structure(abstract)

    def predict(weights: Mapping[str, jax.Array], images: jax.Array) -> dict[str, jax.Array]:
        parameters = jax.tree.unflatten(structure, [weights[name] for name in names])
        logits = nnx.merge(graph, parameters)(normalise(images.astype(jnp.float32)))
        return {task.name: to_value(task, logits[task.name], jnp) for task in tasks}

    count = export.symbolic_shape("b")[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((count, *size, 3), jnp.uint8)
    program = export.export(jax.jit(predict), platforms=[platform])
    try:
        with _without_paths():
            return program(name_weights(abstract), images)
    except NotImplementedError as refusal:
        if scan == "xla":
            raise
        raise NotImplementedError(
            f"The fused scan cannot do this: {refusal}. Add --scan=xla."
        ) from refusal


def name_weights(weights: dict) -> dict[str, jax.Array]:
    """Returns {path, with slashes: array} of a nested dict, in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
    }


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Has JAX leave out of programs where the files lie whose lines they come from.

    An artifact is given away, and those folders are nobody's business.
    """
    settings = {
        "jax_traceback_in_locations_limit": 0,
        # Mosaic's GPU kernels keep names of files even so (jax 0.12); folders are taken off them.
        "jax_hlo_source_file_canonicalization_regex": ".*/",
    }
    before = {key: getattr(jax.config, key) for key in settings}
    try:
        for key, value in settings.items():
            jax.config.update(key, value)
        yield
    finally:
        for key, value in before.items():
            jax.config.update(key, value)


def check_output(folder: pathlib.Path) -> None:
    """Checks that a folder can become an artifact: it is none yet, empty, or an older artifact.

    Raises:
      ValueError: it is something else, which is left as it is.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / PROGRAM).exists()):
        raise ValueError(
            f"--output={folder} exists and is no artifact of this command; it is left as it is. "
            "Give another name."
        )


def write_artifact(
    folder: pathlib.Path,
    program: export.Exported,
    weights: Mapping[str, jax.Array],
    card: Mapping[str, object],
) -> None:
    """Writes an artifact, whole or not at all, in place of an older one.

    Args:
      folder: to become the artifact; see `check_output`.
      program: of `export_program`.
      weights: that it takes.
      card: of `model_card.create_card`.

    Raises:
      OSError: it cannot be written, or the disk has no room.
    """
    check_output(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(array.nbytes for array in weights.values())
    check_free_space(needed, folder.parent, "The artifact", "give another --output")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as temporary:
        new = pathlib.Path(temporary) / "new"
        new.mkdir()
        (new / PROGRAM).write_bytes(program.serialize())
        np.savez(new / WEIGHTS, **{name: np.asarray(array) for name, array in weights.items()})
        (new / CARD).write_text(json.dumps(card, indent=2) + "\n")
        (new / CARD_TEXT).write_text(to_markdown(card))
        shutil.copyfile(pathlib.Path(__file__).with_name("run_artifact.py"), new / SCRIPT)
        if folder.exists():
            folder.rename(pathlib.Path(temporary) / "old")
        new.rename(folder)
