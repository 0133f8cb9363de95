"""MTMamba with parts of it replaced: the blocks of the paper's Tables 2 to 5 (section 4.3).

What the paper leaves unsaid (heads, windows, what stays beside a replaced part) is as its columns
of parameters and FLOPs have it: `tests/paper/test_tables.py`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.layers import TaskLinear, fold
from mtmamba_jax.models.swin import SwinBlock, WindowAttention

WINDOW = 12  # Swin-Large's
HEADS = 6  # of attention in place of a part, at every stage
HEAD_WIDTH = 32  # channels of a head in whole Swin blocks, as in the encoder


class TaskSwin(nnx.Module):
    """A Swin block for each task: [t b h w c] -> same, in place of STM and CTM (2*Swin)."""

    def __init__(
        self,
        tasks: int,
        features: int,
        settings: MambaSettings,
        *,
        shifted: bool = False,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        self.each = nnx.List(
            SwinBlock(
                features,
                max(1, features // HEAD_WIDTH),
                WINDOW,
                shifted=shifted,
                drop_path_rate=drop_path_rate,
                dtype=settings.dtype,
                rngs=rngs,
            )
            for _ in range(tasks)
        )

    def __call__(self, z: Array, key: jax.Array | None = None) -> Array:
        """Refines [t b h w c]; a key switches drop path on."""
        return jnp.stack([block(z[i], fold(key, i)) for i, block in enumerate(self.each)])


class TaskAttention(nnx.Module):
    """Window attention (W-MSA) for each of a stack: [s b h w c] -> same."""

    def __init__(self, stack: int, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        # As many as divide the channels of models smaller than the paper's.
        heads = math.gcd(HEADS, features)
        self.each = nnx.List(
            WindowAttention(features, heads, WINDOW, shifted=False, dtype=dtype, rngs=rngs)
            for _ in range(stack)
        )

    def __call__(self, x: Array) -> Array:
        """Attends inside the windows of [s b h w c]."""
        return jnp.stack([attention(x[i]) for i, attention in enumerate(self.each)])


class AttentionMFE(nnx.Module):
    """W-MSA in place of `MFE`: of its convolution, scan and LayerNorm (Table 3)."""

    def __init__(self, stack: int, features: int, settings: MambaSettings, *, rngs: nnx.Rngs):
        inner = settings.expansion * features
        self.attention = TaskAttention(stack, inner, dtype=settings.dtype, rngs=rngs)

    def scan(self, z: Array) -> Array:
        """Attends inside the windows of [s b h w d]."""
        return self.attention(z)

    def norm(self, z: Array) -> Array:
        """Returns z: attention has no LayerNorm after it."""
        return z


class AttentionGate(nnx.Module):
    """W-MSA before the gate's Linear (Table 4): [t b h w i] -> [t b h w o]."""

    def __init__(
        self, tasks: int, in_features: int, out_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.attention = TaskAttention(tasks, in_features, dtype=dtype, rngs=rngs)
        self.linear = TaskLinear(tasks, in_features, out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Returns what a sigmoid or SiLU turns into gates."""
        return self.linear(self.attention(x))


class FixedGate(nnx.Module):
    """A gate that is the same for every pixel and has no weights (Table 5).

    Attributes:
      logit: of the gate.
    """

    logit: float

    def __init__(
        self, tasks: int, in_features: int, out_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        del tasks, in_features, out_features, rngs
        self.dtype = dtype

    def __call__(self, x: Array) -> Array:
        """Returns what a sigmoid turns into 0 or 1, for all of [t b h w o]."""
        return jnp.full((1,) * x.ndim, self.logit, self.dtype)


class ClosedGate(FixedGate):
    """g = 0: each task's own feature alone."""

    logit = -math.inf


class OpenGate(FixedGate):
    """g = 1: the shared feature alone."""

    logit = math.inf


class AttentionSTM(STM):
    """STM with W-MSA in place of MFE."""

    make_extractor = AttentionMFE


class AttentionCTM(CTM):
    """CTM with W-MSA in place of all its MFE."""

    make_extractor = AttentionMFE


class AttentionGateSTM(STM):
    """STM with attention before its gate's Linear."""

    make_gate = AttentionGate


class AttentionGateCTM(CTM):
    """CTM with attention before its gates' Linear."""

    make_gate = AttentionGate


class ClosedCTM(CTM):
    """CTM that passes on each task's own feature; the shared one's weights stay, unused."""

    make_gate = ClosedGate


class OpenCTM(CTM):
    """CTM that passes on the shared feature; the tasks' own extractors stay, unused."""

    make_gate = OpenGate


ABLATIONS: Mapping[str, tuple[Callable[..., nnx.Module], ...]] = {
    "swin_decoder": (TaskSwin, functools.partial(TaskSwin, shifted=True)),
    "stm_1": (STM,),
    "stm_2": (STM, STM),
    "stm_3": (STM, STM, STM),
    "attention_mfe": (AttentionSTM, AttentionSTM, AttentionCTM),
    "attention_gate": (AttentionGateSTM, AttentionGateSTM, AttentionGateCTM),
    "gate_0": (STM, STM, ClosedCTM),
    "gate_1": (STM, STM, OpenCTM),
}
"""A decoder stage's blocks, by the name of the model that has them."""
