"""Reads and writes weight files: safetensors, PyTorch files and those of Hugging Face repositories.

Code in a file is never executed: only the arrays of PyTorch's pickles are read.
"""

import contextlib
import json
import os
import pathlib
import pickle
import re
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from mtmamba_jax.convert.wrappers import DISTRIBUTED, without_wrappers
from mtmamba_jax.files.paths import replacing
from mtmamba_jax.messages import first_line, shortened

SAFETENSORS, SAFETENSORS_INDEX = ".safetensors", ".safetensors.index.json"
TORCH = (".pth", ".pth.tar", ".pt", ".bin", ".ckpt")
"""Endings of file names, in upper or lower case."""
HUB = "hf:"

_NO_MODEL = re.compile("optim|sched", re.IGNORECASE)  # entries with tensors that are no weights
_HUB_FILES = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
)
_BROKEN = "It may be truncated or of another format: fetch it again."


def read_weights(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the arrays of a weight file, by name.

    The state dict may be an entry of a dict, such as "model", "state_dict" or "params", whose other
    entries are ignored. What wrappers add to names is removed: `_orig_mod.` anywhere; `module.`,
    `model.`, `net.` and `network.` if most names start with it. The others, such as a criterion's,
    are then ignored, which a warning says. PyTorch files are memory-mapped if their format allows
    it.

    Args:
      source: A file that ends in `SAFETENSORS`, `SAFETENSORS_INDEX` (with its parts in the same
        folder) or one of `TORCH`; or `hf:REPO` or `hf:REPO@REVISION`, see `download`.

    Raises:
      ValueError: If the file or repository does not exist, or does not contain weights, or contains
        those of several models. The message names it and the remedy.
      RuntimeError: If PyTorch is not installed.
      OSError: If the file cannot be read or downloaded.
    """
    source = os.fspath(source)
    path = download(source) if source.startswith(HUB) else pathlib.Path(source)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder. Give the weight file in it, or the index of a file in several "
            f"parts, *{SAFETENSORS_INDEX}."
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if not path.is_file():  # reading a pipe would wait for its writer
        raise ValueError(f"{path} is not a file. Give a weight file.")
    load = "state_dict"
    if has_ending(path, SAFETENSORS):
        weights = _read_safetensors(path)
        load = f"safetensors.torch.load_file({str(path.absolute())!r})"
    elif has_ending(path, SAFETENSORS_INDEX):
        weights = _read_parts(path)
    elif has_ending(path, *TORCH):
        weights, load = _read_torch(path)
    else:
        raise _unknown_ending(path, SAFETENSORS, SAFETENSORS_INDEX, *TORCH)
    if not weights:
        raise ValueError(f"{path} holds no arrays. Give a weight file.")
    return without_wrappers(path, weights, load)


def has_ending(path: str | os.PathLike, *endings: str) -> bool:
    """Returns whether a file name ends in one of `endings`, in upper or lower case."""
    return os.fspath(path).lower().endswith(endings)


def write_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file with `metadata` in its header, atomically over an existing one.

    Raises:
      OSError: If the file cannot be written, or the disk is full.
    """
    # The library ignores strides. (np.ascontiguousarray would add an axis to scalars.)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with _replacing(path, arrays) as new:
        safetensors.numpy.save_file(arrays, new, metadata=dict(metadata))


def write_torch(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a PyTorch file {"model": state dict, **metadata} atomically.

    All names have the prefix of DistributedDataParallel, which the official code wraps models in.

    Raises:
      RuntimeError: If PyTorch is not installed.
      OSError: If the file cannot be written, or the disk is full.
    """
    torch = _import_torch(path, "written")
    state = {DISTRIBUTED + k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    with _replacing(path, arrays) as new:
        torch.save({"model": state, **metadata}, new)


def find_writer(path: str | os.PathLike) -> Callable:
    """Returns `write_safetensors` or `write_torch`, depending on the ending of the file name.

    Raises:
      ValueError: If the ending is unknown.
    """
    if has_ending(path, SAFETENSORS):
        return write_safetensors
    if has_ending(path, *TORCH):
        return write_torch
    raise _unknown_ending(path, SAFETENSORS, *TORCH)


def _unknown_ending(path: str | os.PathLike, *known: str) -> ValueError:
    names = ", ".join(known)
    return ValueError(f"{path} is not a weight file. The name must end in one of {names}.")


@contextlib.contextmanager
def _replacing(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> Iterator[pathlib.Path]:
    needed = sum(array.nbytes for array in arrays.values())
    with replacing(pathlib.Path(path), needed, "The weight file", "write it elsewhere") as new:
        try:
            yield new
        except (safetensors.SafetensorError, RuntimeError) as error:  # how they report a full disk
            raise OSError(first_line(error)) from error


def is_weight_file(source: str) -> bool:
    """Returns whether `read_weights` reads this source, judged by its name."""
    named = source.startswith(HUB) or has_ending(source, SAFETENSORS, SAFETENSORS_INDEX, *TORCH)
    return named and not pathlib.Path(source).is_dir()


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # This checks the whole header before any array is read.
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is not a safetensors file ({first_line(error)}). {_guess(path)}"
        ) from error
    except (AttributeError, TypeError) as error:  # NumPy does not have all of its dtypes
        raise ValueError(
            f"{path} holds arrays of a dtype that NumPy does not have ({first_line(error)}). Save "
            "them as float32, float16 or bfloat16."
        ) from error


def _read_parts(index: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the safetensors files in an index {"weight_map": {name: file}}."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        parts = sorted({str(part) for part in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of safetensors files. {_BROKEN}") from error
    found = {}
    for part in parts:
        named = f"{index} names {part!r}, which"
        if part != pathlib.Path(part).name or not part.endswith(SAFETENSORS):
            raise ValueError(f"{named} is not a safetensors file in the same folder.")
        if not (index.parent / part).is_file():
            raise ValueError(f"{named} does not exist in its folder. Fetch it too.")
        found |= _read_safetensors(index.parent / part)
    missing = [name for name in places if name not in found]
    if missing:
        raise ValueError(f"The files in {index} do not contain {shortened(missing, 5)}. {_BROKEN}")
    return {name: found[name] for name in places}


def _import_torch(path: str | os.PathLike, action: str) -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            f"{path} cannot be {action} because PyTorch is not installed: "
            'pip install -e ".[convert]". Safetensors files do not need it.'
        ) from error
    return torch


def _read_torch(path: pathlib.Path) -> tuple[dict[str, np.ndarray], str]:
    """Returns the weights, and Python code that loads them."""
    torch = _import_torch(path, "read")
    try:
        # Only the zip archives that torch writes since 1.6 can be memory-mapped.
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # any type: torch assumes that the file is valid
        raise ValueError(
            f"{path} is not a PyTorch checkpoint ({first_line(error)}). {_guess(path)}"
        ) from error
    if not isinstance(loaded, Mapping):
        raise ValueError(
            f"{path} holds a {type(loaded).__name__}, not a state dict. Save model.state_dict()."
        )
    found = dict(_state_dicts(loaded, torch.Tensor))
    largest = max(reversed(found), key=lambda keys: len(found[keys]), default=())
    load = f"torch.load({str(path.absolute())!r}){''.join(f'[{key!r}]' for key in largest)}"
    if len(found) > 1:
        raise ValueError(
            f"{path} holds several state dicts: {shortened(list(map('.'.join, found)))}. Save the "
            f"one to use in a file of its own: torch.save({load}, 'weights.pth')."
        )
    state = next(iter(found.values()), loaded)
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path} holds more than arrays: {shortened(others, 5)}. Save only its state dict, or "
            "a dict with the state dict as an entry of its own."
        )
    return {str(name): _to_numpy(path, name, tensor) for name, tensor in state.items()}, load


def _state_dicts(
    values: Mapping, tensor: type, keys: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping]]:
    """Yields the keys and contents of every state dict in a checkpoint.

    Names of parameters, such as "norm.bias", have dots, unlike those of scores, of random states
    and in an optimizer.
    """
    if any("." in str(name) and isinstance(value, tensor) for name, value in values.items()):
        yield keys, values
        return
    for name, value in values.items():
        if isinstance(value, Mapping) and not _NO_MODEL.search(str(name)):
            yield from _state_dicts(value, tensor, (*keys, str(name)))


def _refusal(path: pathlib.Path, message: str) -> str:
    """Returns the message about a file that is not a pickle or holds more than arrays."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if not found:
        return f"{path} is not a PyTorch checkpoint, or holds more than arrays. {_guess(path)}"
    if found[1].startswith("numpy."):
        return (
            f"{path} holds {found[1]} besides its tensors, which is not read. Save only its state "
            "dict, with torch or as safetensors."
        )
    return (
        f"{path} holds an object of {found[1]} besides its arrays. It is not read, because reading "
        "it could run any code. If you trust the source of the file, save only its state dict, "
        "with torch or as safetensors."
    )


def _guess(path: pathlib.Path) -> str:
    """Returns what an unreadable file may be, judged by its first bytes, and the remedy."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        return "It is empty: fetch it again."
    if start.lstrip()[:1] == b"<":
        return "It is a web page: fetch the file that the page describes."
    if start.startswith(b"PK") and has_ending(path, SAFETENSORS):
        return "It looks like a PyTorch file: give it a name that ends in .pth."
    return _BROKEN


def _to_numpy(path: pathlib.Path, name: str, tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:  # torch cannot convert it to numpy
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised or on the meta device
        raise ValueError(
            f"{path}: {name} is not a dense array ({first_line(error)}). Save it as one."
        ) from error


def download(source: str) -> pathlib.Path:
    """Downloads the weight file of a Hugging Face repository, unless huggingface_hub has cached it.

    The file is the first that exists of `model.safetensors`, its index with all parts, and
    `pytorch_model.bin`. `source` is `hf:REPO` or `hf:REPO@REVISION`, where the revision is a
    branch, tag or commit. Returns the path of the file or the index.

    Raises:
      ValueError: If the repository, the revision or the file does not exist.
      OSError: If the download failed.
    """
    import huggingface_hub  # slow to import

    repo, _, revision = source.removeprefix(HUB).partition("@")
    for patterns in _HUB_FILES:
        try:
            folder = huggingface_hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=list(patterns)
            )
        except Exception as error:  # any type: from huggingface_hub, its HTTP client or the disk
            raise _hub_error(error, source, repo) from error
        for path in (pathlib.Path(folder) / name for name in patterns):
            if path.exists():
                return path
    names = ", ".join(name for patterns in _HUB_FILES for name in patterns if "*" not in name)
    raise ValueError(f"{source} has none of {names}. Download a weight file and give its path.")


def _hub_error(error: Exception, source: str, repo: str) -> Exception:
    """Returns an exception with a remedy for an error of huggingface_hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):  # a subclass of RepositoryNotFoundError
        return ValueError(
            f"{source} requires accepting its owner's conditions. Do so at "
            f"https://huggingface.co/{repo}, then run: hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"{source}: no such repository, or it is private. Write hf:OWNER/NAME; for a private "
            "repository run: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{source}: the repository has no such revision. Omit it to use main.")
    if isinstance(error, errors.HFValidationError):
        return ValueError(
            f"{source}: expected hf:OWNER/NAME or hf:OWNER/NAME@REVISION ({first_line(error)})."
        )
    return OSError(
        f"{source} could not be downloaded ({first_line(error)}). Check the connection and the "
        "name, or download a weight file elsewhere and give its path."
    )
