"""Conversion of PyTorch weights to the parameters of the modules here and back."""

from mtmamba_jax.convert.encoder import encoder_from_torch, encoder_to_torch
from mtmamba_jax.convert.model import from_torch, to_torch
from mtmamba_jax.convert.rules import Rule, nest, rule
from mtmamba_jax.convert.state_dicts import Contents, Naming, find_naming, identify
from mtmamba_jax.convert.tensors import from_tensors, to_tensors

__all__ = [
    "Contents",
    "Naming",
    "Rule",
    "encoder_from_torch",
    "encoder_to_torch",
    "find_naming",
    "from_tensors",
    "from_torch",
    "identify",
    "nest",
    "rule",
    "to_tensors",
    "to_torch",
]
