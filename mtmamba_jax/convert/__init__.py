"""Weights of PyTorch models, as parameters of the modules here, and back: start with model.py."""

from mtmamba_jax.convert.encoder import encoder_from_torch, encoder_to_torch
from mtmamba_jax.convert.model import from_torch, to_torch
from mtmamba_jax.convert.rules import TASK_NAMES, Computed, Rule, rule, within
from mtmamba_jax.convert.state_dicts import Contents, Layout, contents_of, find_layout
from mtmamba_jax.convert.tensors import from_tensors, to_tensors

__all__ = [
    "TASK_NAMES",
    "Computed",
    "Contents",
    "Layout",
    "Rule",
    "contents_of",
    "encoder_from_torch",
    "encoder_to_torch",
    "find_layout",
    "from_tensors",
    "from_torch",
    "rule",
    "to_tensors",
    "to_torch",
    "within",
]
