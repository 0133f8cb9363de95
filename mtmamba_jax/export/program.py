"""Writes a trained model as an artifact: a folder with all that prediction needs besides JAX.

The program is exported by `jax.export`: StableHLO, lowered for one platform. The weights are in a
separate file and an argument of the program. As constants of the program, those of Swin-Large take
31 s and 8.2 GiB to write instead of 9 s and 1.7 GiB (2026-11-26, two CPU cores, jax 0.10.2), and
come near the limit of the file format (FlatBuffers), 2 GB.
"""

import contextlib
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import export

from mtmamba_jax.array_types import Array
from mtmamba_jax.config import Config
from mtmamba_jax.data_pipelines.transforms import normalise
from mtmamba_jax.export.model_card import to_markdown
from mtmamba_jax.files.json_files import write_json
from mtmamba_jax.files.paths import replacing
from mtmamba_jax.kernels.platform_check import without_triton
from mtmamba_jax.kernels.ss2d.api import choose_implementation
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS
from mtmamba_jax.models.mtmamba import abstract_build
from mtmamba_jax.tasks.readout import to_value
from mtmamba_jax.tasks.table import Task

PROGRAM, WEIGHTS, SCRIPT = "program.jax_export", "weights.npz", "run.py"
CARD, CARD_TEXT = "model_card.json", "model_card.md"


def parse_batch(text: str) -> int | None:
    """Parses the number of images that a program takes; None means any number.

    Raises:
      ValueError: If `text` is neither a positive number nor "any".
    """
    if text == "any":
        return None
    if not (text.isdigit() and int(text)):
        raise ValueError(f"--batch must be a positive number of images or any, got {text!r}.")
    return int(text)


def choose_scan(platform: str, scan: str | None, batch: int | None) -> str:
    """Returns the scan of an artifact, a key of `kernels.ss2d.IMPLEMENTATIONS`.

    Args:
      platform: Platform of the artifact.
      scan: "fused" or "xla", by default the best available. For CUDA that is the Mosaic kernels,
        unless this machine has a GPU that does not run them: JAX promises nothing of exported
        Triton kernels.
      batch: Images per call, None for any number.

    Raises:
      ValueError: If the fused scan is not available for the platform or for any number of images.
    """
    if scan == "xla":
        return "xla"
    with without_triton():
        fused, _ = choose_implementation(platform, SPECS["pixel"].shapes(jnp.float32))
    if fused == "xla":
        if scan is None:
            return "xla"
        if platform == "cuda":
            raise ValueError(
                "--scan=fused: this machine's GPU has no fused scan to export. Omit the flag, or "
                "set JAX_PLATFORMS=cpu to export for Hopper and data-center Blackwell GPUs."
            )
        raise ValueError(f"--scan=fused: {platform} has no fused scan to export. Omit the flag.")
    if batch is None:
        raise ValueError(
            "--batch=any: the fused scan is compiled for one number of images. Give that number, "
            "or add --scan=xla."
        )
    return fused


def export_program(
    config: Config,
    tasks: Sequence[Task],
    *,
    platform: str,
    size: tuple[int, int],
    batch: int | None,
    scan: str,
) -> export.Exported:
    """Exports the program (weights, images) -> {task: `readout.to_value` of its logits}.

    Weights are arrays by name, see `name_weights`. Images are uint8 RGB [b h w 3].

    Args:
      config: The run's configuration.
      tasks: Tasks to predict.
      platform: "cpu", "cuda" or "tpu". This machine need not have such a device.
      size: Height and width of the images.
      batch: Number of images per call; None means any number.
      scan: Result of `choose_scan`.

    Raises:
      NotImplementedError: If the fused scan does not support this model.
    """
    config = config.replace(model={"scan_implementation": scan})
    graph, abstract = abstract_build(config.model, tasks)
    names, structure = list(name_weights(abstract)), jax.tree.structure(abstract)

    def predict(weights: Mapping[str, jax.Array], images: jax.Array) -> dict[str, Array]:
        parameters = jax.tree.unflatten(structure, [weights[name] for name in names])
        # `normalise` is arithmetic that also takes JAX arrays.
        normalised = normalise(images.astype(jnp.float32))  # pyright: ignore[reportArgumentType]
        logits = nnx.merge(graph, parameters)(normalised)
        return {task.name: to_value(task, logits[task.name], jnp) for task in tasks}

    count = export.symbolic_shape("b")[0] if batch is None else batch
    images = jax.ShapeDtypeStruct((count, *size, 3), jnp.uint8)
    program = export.export(jax.jit(predict), platforms=[platform])
    try:
        with _without_paths(), without_triton():
            return program(name_weights(abstract), images)
    except NotImplementedError as refusal:
        if scan == "xla":
            raise
        raise NotImplementedError(
            f"The fused scan does not support this model: {refusal}. Add --scan=xla."
        ) from refusal


def name_weights(weights: dict) -> dict[str, jax.Array]:
    """Returns the arrays of a nested dict by path, with slashes, in the order of its leaves."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(weights)
    }


@contextlib.contextmanager
def _without_paths() -> Iterator[None]:
    """Keeps the paths of source files out of programs.

    An artifact is given to others, who should not see the folders of this machine.
    """
    settings = {
        "jax_traceback_in_locations_limit": 0,
        # Mosaic's GPU kernels still contain file names (jax 0.12); this removes their folders.
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
    """Checks that a folder can be written as an artifact: it is new, empty or an older artifact.

    Raises:
      ValueError: If the folder is something else. It is not changed.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    if not folder.is_dir() or (any(folder.iterdir()) and not (folder / PROGRAM).exists()):
        raise ValueError(
            f"--output={folder} exists and is not an artifact, so it is not overwritten. Give "
            "another name."
        )


def write_artifact(
    folder: pathlib.Path,
    program: export.Exported,
    weights: Mapping[str, jax.Array],
    card: Mapping[str, object],
) -> None:
    """Writes an artifact atomically, replacing an older one (see `check_output`).

    `weights` are those of `name_weights`, `card` is the result of `create_card`.

    Raises:
      OSError: If the artifact cannot be written, or the disk is full.
    """
    check_output(folder)
    needed = sum(array.nbytes for array in weights.values())
    with replacing(folder, needed, "The artifact", "give another --output") as new:
        new.mkdir()
        (new / PROGRAM).write_bytes(program.serialize())
        arrays = {name: np.asarray(array) for name, array in weights.items()}
        # The type checker takes any name for an option of savez.
        np.savez(new / WEIGHTS, **arrays)  # pyright: ignore[reportArgumentType]
        write_json(new / CARD, card)
        (new / CARD_TEXT).write_text(to_markdown(card))
        shutil.copyfile(pathlib.Path(__file__).with_name("run_artifact.py"), new / SCRIPT)
