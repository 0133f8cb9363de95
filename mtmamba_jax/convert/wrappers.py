"""Removes what wrappers of PyTorch and Lightning add to the names in a state dict."""

import logging
import pathlib
import re
from collections.abc import Mapping

import numpy as np

from mtmamba_jax.messages import shortened

DISTRIBUTED = "module."
"""Prefix of all names in a model wrapped in DistributedDataParallel."""

_PREFIXES = (DISTRIBUTED, "model.", "net.", "network.")  # the others: of a LightningModule
# Parts of names around a model or a module in it.
_WRAPPERS = re.compile(
    r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\."
)


def without_wrappers(
    path: pathlib.Path, weights: dict[str, np.ndarray], load: str
) -> dict[str, np.ndarray]:
    """Returns the arrays of a model by its own names.

    Args:
      path: The weight file, for messages.
      weights: The arrays in it, by name.
      load: Python code that loads them in PyTorch, for messages.

    Raises:
      ValueError: If the names are those of several models.
    """
    names = {name: _WRAPPERS.sub("", name) for name in weights}
    ignored: list[str] = []
    while prefix := next((p for p in _PREFIXES if _is_wrapper(path, p, names, load)), ""):
        ignored += [name for name, short in names.items() if not short.startswith(prefix)]
        names = {
            name: short.removeprefix(prefix)
            for name, short in names.items()
            if short.startswith(prefix)
        }
    if ignored:
        logging.getLogger(__name__).warning(
            f"warning: {path}: ignored {shortened(ignored, 5)}: not of the model in the wrapper"
        )
    sources: dict[str, str] = {}
    for name, short in names.items():
        if (other := sources.setdefault(short, name)) != name:
            raise ValueError(
                f"{path} holds {other} and {name}, which are both {short} without the wrapper of a "
                "model. Save only one of them."
            )
    return {short: weights[name] for name, short in names.items()}


def _is_wrapper(path: pathlib.Path, prefix: str, names: Mapping[str, str], load: str) -> bool:
    """Returns whether a prefix of most names is that of the model.

    Raises:
      ValueError: If the other names are a second model's, such as an average of its weights.
    """
    inside = [name.removeprefix(prefix) for name in names.values() if name.startswith(prefix)]
    longest = max(inside, key=len, default="")
    others = [name for name in names.values() if not name.startswith(prefix)]
    copies = {each.removesuffix(longest) for each in others if each.endswith(f".{longest}")}
    if inside and copies:
        found = sorted({prefix, *copies})
        raise ValueError(
            f"{path} holds the names of a model {len(found)} times, with the prefixes "
            f"{', '.join(map(repr, found))}. Save one of them in a file of its own: torch.save("
            f"{{k.removeprefix({found[-1]!r}): v for k, v in {load}.items() if k.startswith("
            f"{found[-1]!r})}}, 'weights.pth')."
        )
    return len(inside) > len(others)
