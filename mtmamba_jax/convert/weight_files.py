"""Files of weights, {name: numpy array}: safetensors, PyTorch's, and those of a Hugging Face repo.

No code in a file is ever run: PyTorch's files are pickles, of which only arrays are read.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import pickle
import re
import tempfile
import types
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from mtmamba_jax.files.paths import check_free_space
from mtmamba_jax.messages import first_line

SAFETENSORS, SAFETENSORS_INDEX = ".safetensors", ".safetensors.index.json"
TORCH = (".pth", ".pth.tar", ".pt", ".bin")
HUB = "hf:"

_WRAPPERS = ("model", "state_dict")  # keys that hold a state dict, beside an epoch and the like
_DISTRIBUTED = "module."  # what PyTorch's DistributedDataParallel puts before all names
_SHOWN = 5  # names in a message
_HUB_FILES = (
    ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors"),
    ("pytorch_model.bin",),
)
_BROKEN = "It may be cut off or not of that kind: fetch it again."


def read_weights(source: str | os.PathLike) -> dict[str, np.ndarray]:
    """Returns the weights of a file, by their names there.

    A state dict may lie in {"model": ...} or {"state_dict": ...}; what is beside it is left out,
    and so is `module.` before all names. Arrays of PyTorch's files are mapped into memory where
    their format allows it.

    Args:
      source: a file that ends in `SAFETENSORS`, `SAFETENSORS_INDEX` (its parts lie beside it) or
        one of `TORCH`; or `hf:REPO`, `hf:REPO@REVISION`: see `download`.

    Raises:
      ValueError: there is no such file or repository, or it holds something else; the message
        names it and what to do.
      RuntimeError: a package is missing.
      OSError: it cannot be read or downloaded.
    """
    source = os.fspath(source)
    path = download(source) if source.startswith(HUB) else pathlib.Path(source)
    if path.is_dir():
        raise ValueError(
            f"{path} is a folder; give the file of weights in it (of several parts their index, "
            f"*{SAFETENSORS_INDEX})."
        )
    if not path.exists():
        raise ValueError(f"{path} does not exist.")
    if path.name.endswith(SAFETENSORS):
        weights = _read_safetensors(path)
    elif path.name.endswith(SAFETENSORS_INDEX):
        weights = _read_parts(path)
    elif path.name.endswith(TORCH):
        weights = _read_torch(path)
    else:
        known = ", ".join((SAFETENSORS, SAFETENSORS_INDEX, *TORCH))
        raise ValueError(f"{path}: weights are read from files that end in {known}.")
    if not weights:
        raise ValueError(f"{path} holds no arrays. Give a file of weights.")
    while all(name.startswith(_DISTRIBUTED) for name in weights):  # one wrapper in another
        weights = {name.removeprefix(_DISTRIBUTED): array for name, array in weights.items()}
    return weights


def write_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a safetensors file, whole or not at all, in place of an older one.

    Args:
      path: to write.
      arrays: by name.
      metadata: texts kept in the file's header.

    Raises:
      OSError: it cannot be written, or the disk has no room.
    """
    # The library writes memory as it lies. (np.ascontiguousarray gives scalars an axis.)
    arrays = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    with _replacing(pathlib.Path(path), arrays) as new:
        safetensors.numpy.save_file(arrays, new, metadata=dict(metadata))


def write_torch(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes a PyTorch file {"model": state dict, **metadata}, whole or not at all.

    Before all names is what DistributedDataParallel puts there: the official code loads into it.

    Raises:
      RuntimeError: PyTorch is missing.
      OSError: it cannot be written, or the disk has no room.
    """
    torch = _import_torch(path, "written")
    state = {_DISTRIBUTED + k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    with _replacing(pathlib.Path(path), arrays) as new:
        torch.save({"model": state, **metadata}, new)


def writer_of(path: str | os.PathLike) -> Callable:
    """Returns what writes a file of that name: `write_safetensors` or `write_torch`.

    Raises:
      ValueError: its name ends in neither's.
    """
    name = os.fspath(path)
    if name.endswith(SAFETENSORS):
        return write_safetensors
    if name.endswith(TORCH):
        return write_torch
    known = ", ".join((SAFETENSORS, *TORCH))
    raise ValueError(f"{name}: weights are written to files that end in {known}.")


@contextlib.contextmanager
def _replacing(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> Iterator[pathlib.Path]:
    """Yields a file to write, which then takes the place of `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(array.nbytes for array in arrays.values())
    check_free_space(needed, path.parent, "The file of weights", "write it elsewhere")
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        new = pathlib.Path(temporary) / "new"
        yield new
        new.replace(path)


def is_file_of_weights(source: str) -> bool:
    """Says whether `read_weights` is what reads this, by its name."""
    named = source.startswith(HUB) or source.endswith((SAFETENSORS, SAFETENSORS_INDEX, *TORCH))
    return named and not pathlib.Path(source).is_dir()


def _read_safetensors(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        # It checks all of the header before anything is read.
        with safetensors.safe_open(path, framework="np") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dict)
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path} is no safetensors file ({first_line(error)}). {_guess(path)}"
        ) from error
    except (AttributeError, TypeError) as error:  # of numpy, which has not all of its dtypes
        raise ValueError(
            f"{path} holds numbers of a kind that numpy lacks ({first_line(error)}). Save it as "
            "float32, float16 or bfloat16."
        ) from error


def _read_parts(index: pathlib.Path) -> dict[str, np.ndarray]:
    """Reads the safetensors files that an index names, {"weight_map": {name: file}}."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        parts = sorted({str(part) for part in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of safetensors files. {_BROKEN}") from error
    found = {}
    for part in parts:
        if part != pathlib.Path(part).name or not part.endswith(SAFETENSORS):
            raise ValueError(f"{index} names {part!r}, which is no safetensors file beside it.")
        if not (index.parent / part).exists():
            raise ValueError(f"{index} names {part!r}, which is not beside it. Fetch it too.")
        found |= _read_safetensors(index.parent / part)
    missing = [name for name in places if name not in found]
    if missing:
        raise ValueError(f"The files that {index} names lack {_listed(missing)}. {_BROKEN}")
    return {name: found[name] for name in places}


def _import_torch(path: str | os.PathLike, verb: str) -> types.ModuleType:
    try:
        import torch
    except ImportError as error:
        raise RuntimeError(
            f'{path} is {verb} with PyTorch, which is not installed: pip install -e ".[convert]". '
            "Files in safetensors' format go without."
        ) from error
    return torch


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
    torch = _import_torch(path, "read")
    try:
        # Only the format that torch writes since 1.6, a zip archive, can be mapped.
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except pickle.UnpicklingError as error:
        raise ValueError(_refusal(path, str(error))) from error
    except Exception as error:  # of many kinds: it trusts that a file is whole
        raise ValueError(
            f"{path} is no PyTorch checkpoint ({first_line(error) or type(error).__name__}). "
            + _guess(path)
        ) from error
    state = _unwrap(path, loaded)
    others = [str(name) for name, value in state.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(
            f"{path} holds more than arrays: {_listed(others)}. Save its state dict alone, or as "
            f"one of {', '.join(_WRAPPERS)} of a dict."
        )
    return {str(name): _to_numpy(path, name, tensor) for name, tensor in state.items()}


def _refusal(path: pathlib.Path, message: str) -> str:
    """Returns what is said of a pickle that holds more than arrays, or is none."""
    found = re.search(r"GLOBAL ([\w.]+)", message)
    if not found:
        return f"{path} is no PyTorch checkpoint, or holds more than arrays. {_guess(path)}"
    if found[1].startswith("numpy."):
        return (
            f"{path} holds NumPy's {found[1]} beside its tensors, which is not read. Save its "
            "state dict alone with torch, or as safetensors."
        )
    return (
        f"{path} holds an object of {found[1]} beside its arrays. Reading it could run any code, "
        "so it is not read. If you trust whoever made it, save its state dict alone with torch, or "
        "as safetensors."
    )


def _guess(path: pathlib.Path) -> str:
    """Returns what a file that cannot be read may be, by its first bytes, and what to do."""
    with path.open("rb") as file:
        start = file.read(256)
    if not start:
        return "It is empty: fetch it again."
    if start.lstrip()[:1] == b"<":
        return "It is a web page: fetch the file that the page is about."
    if start.startswith(b"PK") and path.name.endswith(SAFETENSORS):
        return "It looks like PyTorch's: give it a name that ends in .pth."
    return _BROKEN


def _unwrap(path: pathlib.Path, loaded: object) -> Mapping:
    """Returns the state dict in what a checkpoint holds."""
    if isinstance(loaded, Mapping):
        inner = [loaded[key] for key in _WRAPPERS if isinstance(loaded.get(key), Mapping)]
        return inner[0] if inner else loaded
    raise ValueError(
        f"{path} holds a {type(loaded).__name__}, not a state dict. Save model.state_dict()."
    )


def _to_numpy(path: pathlib.Path, name: str, tensor) -> np.ndarray:
    import torch

    tensor = tensor.detach()
    try:
        if tensor.dtype == torch.bfloat16:  # which torch does not hand to numpy
            return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:  # sparse, quantised, without memory
        raise ValueError(
            f"{path}: {name} is no plain array ({first_line(error)}). Save it as one."
        ) from error


def download(source: str) -> pathlib.Path:
    """Returns a file of a Hugging Face repo, from the cache of huggingface_hub if it is there.

    It is the first there is of `model.safetensors`, its index with all parts, `pytorch_model.bin`.

    Args:
      source: `hf:REPO`, or `hf:REPO@REVISION`: a branch, a tag or a commit.

    Raises:
      ValueError: there is no such repository, revision or file.
      RuntimeError: huggingface_hub is missing.
      OSError: it cannot be downloaded.
    """
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeError(f"{source} needs huggingface_hub: pip install -e .") from error
    repo, _, revision = source.removeprefix(HUB).partition("@")
    for patterns in _HUB_FILES:
        try:
            folder = huggingface_hub.snapshot_download(
                repo, revision=revision or None, allow_patterns=list(patterns)
            )
        except Exception as error:  # of many kinds: of huggingface_hub, its HTTP client, the disk
            raise _refused(error, source, repo) from error
        for name in patterns:
            if (pathlib.Path(folder) / name).exists():
                return pathlib.Path(folder) / name
    names = ", ".join(name for patterns in _HUB_FILES for name in patterns if "*" not in name)
    raise ValueError(f"{source} has none of {names}. Download a file of weights, give its path.")


def _refused(error: Exception, source: str, repo: str) -> Exception:
    """Returns what to raise in place of an error of huggingface_hub."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):  # a kind of RepositoryNotFoundError
        return ValueError(
            f"{source}: its owner wants conditions accepted. Do so at https://huggingface.co/{repo}"
            ", then run: hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ValueError(
            f"{source}: there is no such repository, or it is private. Write hf:OWNER/NAME; for a "
            "private one run: hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return ValueError(f"{source}: the repository has no such revision. Leave it out for main.")
    if isinstance(error, errors.HFValidationError):
        return ValueError(
            f"{source}: wanted hf:OWNER/NAME or hf:OWNER/NAME@REVISION ({first_line(error)})."
        )
    return OSError(
        f"{source} could not be downloaded ({first_line(error)}). Is this machine online and the "
        "name right? Otherwise download a file of weights elsewhere, and give its path."
    )


def _listed(names: Sequence[str]) -> str:
    more = [f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else []
    return ", ".join([*names[:_SHOWN], *more])
