"""MTMamba in JAX: several dense maps from one image.

    import mtmamba_jax as mt

    predictor = mt.Predictor.load("runs/nyudv2")
    depth = predictor(photo)["depth"]  # metres

Everything in `__all__` is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mtmamba_jax.checkpoints.load import load
    from mtmamba_jax.evaluation.predictor import Predictor
    from mtmamba_jax.kernels.platform_check import portable
    from mtmamba_jax.kernels.ss2d import selective_scan, ss2d
    from mtmamba_jax.models.blocks import CTM, STM
    from mtmamba_jax.models.mtmamba import MTMamba, MTMambaPlus, create_model, to_linen
    from mtmamba_jax.models.ss2d import SS2D
    from mtmamba_jax.models.swin import Swin
    from mtmamba_jax.tasks.table import CITYSCAPES, NYUDV2, PASCAL_CONTEXT

__version__ = "0.1.0"

__all__ = [
    "CITYSCAPES", "CTM", "NYUDV2", "PASCAL_CONTEXT", "SS2D", "STM", "MTMamba", "MTMambaPlus",
    "Predictor", "Swin", "create_model", "load", "portable", "selective_scan", "ss2d", "to_linen",
]  # fmt: skip

_MODULES = {
    "checkpoints.load": ("load",),
    "evaluation.predictor": ("Predictor",),
    "kernels.platform_check": ("portable",),
    "kernels.ss2d": ("selective_scan", "ss2d"),
    "models.blocks": ("CTM", "STM"),
    "models.mtmamba": ("MTMamba", "MTMambaPlus", "create_model", "to_linen"),
    "models.ss2d": ("SS2D",),
    "models.swin": ("Swin",),
    "tasks.table": ("CITYSCAPES", "NYUDV2", "PASCAL_CONTEXT"),
}


def __getattr__(name: str) -> object:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"mtmamba_jax.{module}"), name)
    raise AttributeError(f"module 'mtmamba_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
