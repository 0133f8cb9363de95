"""Decoder blocks for ablations of MTMamba: the paper's Tables 2 to 5 (section 4.3).

Details that the paper does not give (heads, windows, what remains beside a replaced part) follow
from its columns of parameters and FLOPs: see `tests/paper/test_tables.py`.
"""

import functools
import math
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.array_types import TaskFeatures
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.layers import TaskLinear, fold
from mtmamba_jax.models.swin import SwinBlock, WindowAttention

WINDOW = 12  # Swin-Large's
HEADS = 6  # of the attention that replaces part of a block, at every stage
HEAD_WIDTH = 32  # channels per head of whole Swin blocks, as in the encoder


class TaskSwin(nnx.Module):
    """A Swin block for each task, instead of STM and CTM (2*Swin)."""

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
        heads, dtype = max(1, features // HEAD_WIDTH), settings.dtype
        block = functools.partial(
            SwinBlock, shifted=shifted, drop_path_rate=drop_path_rate, dtype=dtype, rngs=rngs
        )
        self.each = nnx.List(block(features, heads, WINDOW) for _ in range(tasks))

    def __call__(self, z: TaskFeatures, key: jax.Array | None = None) -> TaskFeatures:
        """Refines each task's feature; a key switches drop path on."""
        return jnp.stack([block(z[i], fold(key, i)) for i, block in enumerate(self.each)])


class TaskAttention(nnx.Module):
    """Window attention (W-MSA) for each feature of a stack."""

    def __init__(self, stack: int, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        # Fewer heads where a model smaller than the paper's has too few channels.
        heads = math.gcd(HEADS, features)
        self.each = nnx.List(
            WindowAttention(features, heads, WINDOW, shifted=False, dtype=dtype, rngs=rngs)
            for _ in range(stack)
        )

    def __call__(self, x: Float[Array, "s b h w c"]) -> Float[Array, "s b h w c"]:
        """Attends within windows."""
        return jnp.stack([attention(x[i]) for i, attention in enumerate(self.each)])


class AttentionMFE(nnx.Module):
    """W-MSA instead of the convolution, scan and LayerNorm of `MFE` (Table 3)."""

    def __init__(self, stack: int, features: int, settings: MambaSettings, *, rngs: nnx.Rngs):
        inner = settings.expansion * features
        self.attention = TaskAttention(stack, inner, dtype=settings.dtype, rngs=rngs)

    def scan(
        self, z: Float[Array, "s b h w d"], selecting: Float[Array, "s b h w d"] | None = None
    ) -> Float[Array, "s b h w d"]:
        """Attends within windows."""
        del selecting  # of a scan only
        return self.attention(z)

    def norm(
        self, z: Float[Array, "s b h w d"], gate: Float[Array, "s b h w d"] | None = None
    ) -> Float[Array, "s b h w d"]:
        """Returns z, times SiLU(gate) if there is a gate: no LayerNorm follows the attention."""
        return z if gate is None else z * jax.nn.silu(gate)

    def blend(
        self, z: Float[Array, "s b h w d"], gate: Float[Array, "t b h w d"]
    ) -> Float[Array, "t b h w d"]:
        """Blends each task's features with the last, shared ones."""
        share = jax.nn.sigmoid(gate)
        return share * z[-1:] + (1 - share) * z[:-1]


class AttentionGate(nnx.Module):
    """W-MSA before the gate's Linear (Table 4)."""

    def __init__(
        self, tasks: int, in_features: int, out_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        self.attention = TaskAttention(tasks, in_features, dtype=dtype, rngs=rngs)
        self.linear = TaskLinear(tasks, in_features, out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "t b h w i"]) -> Float[Array, "t b h w o"]:
        """Returns the gates before their sigmoid or SiLU."""
        return self.linear(self.attention(x))


class FixedGate(nnx.Module):
    """A gate without weights, the same for every pixel (Table 5)."""

    logit: float  # before the sigmoid

    def __init__(
        self, tasks: int, in_features: int, out_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs
    ):
        del tasks, in_features, out_features, rngs
        self.dtype = dtype

    def __call__(self, x: Float[Array, "t b h w i"]) -> Float[Array, "1 1 1 1 1"]:
        """Returns the logit, to be broadcast."""
        return jnp.full((1,) * x.ndim, self.logit, self.dtype)


class ClosedGate(FixedGate):
    """g = 0: only each task's own feature passes."""

    logit = -math.inf


class OpenGate(FixedGate):
    """g = 1: only the shared feature passes."""

    logit = math.inf


def _replaced(block: type, **parts: Callable) -> type:
    return type(block.__name__, (block,), parts)


def _stage(**parts: Callable) -> tuple[type, ...]:
    stm = _replaced(STM, **parts)
    return stm, stm, _replaced(CTM, **parts)


ABLATIONS: Mapping[str, tuple[Callable[..., nnx.Module], ...]] = {
    "swin_decoder": (TaskSwin, functools.partial(TaskSwin, shifted=True)),
    "stm_1": (STM,),
    "stm_2": (STM, STM),
    "stm_3": (STM, STM, STM),
    "attention_mfe": _stage(make_extractor=AttentionMFE),
    "attention_gate": _stage(make_gate=AttentionGate),
    # The weights of the feature that a fixed gate blocks stay, unused.
    "gate_0": (STM, STM, _replaced(CTM, make_gate=ClosedGate)),
    "gate_1": (STM, STM, _replaced(CTM, make_gate=OpenGate)),
}
"""Blocks of a decoder stage, by the name of the model."""
