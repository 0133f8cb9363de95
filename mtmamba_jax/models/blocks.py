"""The decoder's blocks: MFE, self-task Mamba (STM) and cross-task Mamba (CTM), Fig. 2.

Every block runs all tasks at once: features are [t b h w c] and weights carry the axis t.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models import initializers
from mtmamba_jax.models.layers import DepthwiseConv, TaskLinear, drop_path, recomputed
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.models.ss2d import SS2D


@dataclasses.dataclass(frozen=True)
class MambaSettings:
    """What all blocks of a decoder share.

    Attributes:
      expansion: inner channels d = expansion * c (the paper's alpha).
      state_size: n.
      dtype: of the computation.
      scan_implementation: forces a backend of the scan; None chooses by platform.
    """

    expansion: int = 2
    state_size: int = 16
    dtype: jnp.dtype = jnp.float32
    scan_implementation: str | None = None


class MFE(nnx.Module):
    """Mamba-based feature extractor after its Linear: LN(SS2D(SiLU(Conv(z)))), Eq. 13.

    The Linear in front belongs to the blocks, which feed it differently. [s b h w d] -> same, for a
    stack of s extractors.
    """

    def __init__(self, stack: int, features: int, settings: MambaSettings, *, rngs: nnx.Rngs):
        inner, dtype = settings.expansion * features, settings.dtype
        self.conv = DepthwiseConv(stack, inner, dtype=dtype, rngs=rngs)
        self.ss2d = SS2D(
            stack,
            inner,
            state_size=settings.state_size,
            step_rank=math.ceil(features / 16),
            dtype=dtype,
            implementation=settings.scan_implementation,
            rngs=rngs,
        )
        self.norm = TaskLayerNorm(stack, inner, dtype=dtype)

    def __call__(self, z: Array) -> Array:
        """Extracts features from [s b h w d]."""
        return self.norm(self.scan(z))

    def scan(self, z: Array, selecting: Array | None = None) -> Array:
        """All but the LayerNorm, which blocks recompute together with their gates."""
        return self.ss2d(recomputed(jax.nn.silu)(self.conv(z)), selecting)


class STM(nnx.Module):
    """Self-task Mamba block (Eqs. 14-18): [t b h w c] -> same, each task by itself."""

    make_gate = TaskLinear
    make_extractor = MFE

    def __init__(
        self,
        tasks: int,
        features: int,
        settings: MambaSettings,
        *,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        inner, dtype = settings.expansion * features, settings.dtype
        self.drop_path_rate = drop_path_rate
        self.norm = TaskLayerNorm(tasks, features, dtype=dtype)
        self.in_proj = TaskLinear(tasks, features, inner, dtype=dtype, rngs=rngs)
        self.gate = self.make_gate(tasks, features, inner, dtype=dtype, rngs=rngs)
        self.mfe = self.make_extractor(tasks, features, settings, rngs=rngs)
        self.out_proj = TaskLinear(tasks, inner, features, dtype=dtype, rngs=rngs)

    def __call__(self, z: Array, key: jax.Array | None = None) -> Array:
        """Refines [t b h w c]; a key switches drop path on."""
        normed = self.norm(z)
        scanned, gate = self.mfe.scan(self.in_proj(normed)), self.gate(normed)
        gated = recomputed(lambda y, gate: self.mfe.norm(y) * jax.nn.silu(gate))(scanned, gate)
        return z + drop_path(self.out_proj(gated), self.drop_path_rate, key, leading=2)


class CTM(nnx.Module):
    """Cross-task Mamba block (Eqs. 19-25): [t b h w c] -> same, mixing the tasks.

    A shared extractor reads all tasks' features together; each task then blends its own and the
    shared feature by a gate. The gate multiplies the shared one: Eq. 24 prints it on the other,
    but Table 5, the official code and its checkpoints have it so.
    """

    make_gate = TaskLinear
    make_extractor = MFE

    def __init__(
        self,
        tasks: int,
        features: int,
        settings: MambaSettings,
        *,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        inner, dtype = settings.expansion * features, settings.dtype
        self.drop_path_rate = drop_path_rate
        self.dtype = dtype
        self.norm = TaskLayerNorm(tasks, features, dtype=dtype)
        self.norm_shared = TaskLayerNorm(tasks, features, joint=True, dtype=dtype)
        self.in_proj = TaskLinear(tasks, features, inner, dtype=dtype, rngs=rngs)
        # One map of all t*c channels, kept as [t c d].
        fan_in = (tasks * features) ** -0.5
        self.in_proj_shared = nnx.Param(
            initializers.normal(rngs.params(), (tasks, features, inner), fan_in)
        )
        self.gate = self.make_gate(tasks, features, inner, dtype=dtype, rngs=rngs)
        # The tasks' extractors, then the shared one, as one stack: one scan for all.
        self.mfe = self.make_extractor(tasks + 1, features, settings, rngs=rngs)
        self.out_proj = TaskLinear(tasks, inner, features, dtype=dtype, rngs=rngs)

    def __call__(self, z: Array, key: jax.Array | None = None) -> Array:
        """Exchanges features between the tasks of [t b h w c]; a key switches drop path on."""
        normed = self.norm(z)
        shared = jnp.einsum(
            "tbhwc,tcd->bhwd", self.norm_shared(z), self.in_proj_shared.astype(self.dtype)
        )
        scanned = self.mfe.scan(jnp.concatenate([self.in_proj(normed), shared[None]]))

        def mix(scanned, gate):
            features, gate = self.mfe.norm(scanned), jax.nn.sigmoid(gate)
            return gate * features[-1:] + (1 - gate) * features[:-1]

        mixed = recomputed(mix)(scanned, self.gate(normed))
        return z + drop_path(self.out_proj(mixed), self.drop_path_rate, key, leading=2)
