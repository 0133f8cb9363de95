"""The decoder's blocks: MFE, self-task Mamba (STM) and cross-task Mamba (CTM), Fig. 2.

Every block runs all tasks at once: features are [t b h w c] and weights carry the axis t.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.array_types import TaskFeatures
from mtmamba_jax.models import initializers
from mtmamba_jax.models.layers import DepthwiseConvSiLU, TaskLinear, drop_path, to_features
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.models.ss2d import SS2D


@dataclasses.dataclass(frozen=True)
class MambaSettings:
    """Settings shared by all blocks of a decoder.

    Attributes:
      expansion: Ratio of inner channels d to channels c (the paper's alpha).
      state_size: States per channel of the scan, n.
      dtype: Compute dtype; parameters are float32.
      scan_implementation: Backend of the scan to force; None chooses one by platform.
    """

    expansion: int = 2
    state_size: int = 16
    dtype: DTypeLike = jnp.float32
    scan_implementation: str | None = None


class MFE(nnx.Module):
    """Mamba-based feature extractor without its Linear: LN(SS2D(SiLU(Conv(z)))), Eq. 13.

    The Linear in front belongs to the blocks, which feed it differently. The leading axis s is a
    stack of extractors.
    """

    def __init__(self, stack: int, features: int, settings: MambaSettings, *, rngs: nnx.Rngs):
        inner, dtype = settings.expansion * features, settings.dtype
        self.conv = DepthwiseConvSiLU(stack, inner, dtype=dtype, rngs=rngs)
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

    def __call__(self, z: Float[Array, "s b h w d"]) -> Float[Array, "s b h w d"]:
        """Extracts features."""
        return self.norm(self.scan(z))

    def scan(
        self, z: Float[Array, "s b h w d"], selecting: Float[Array, "s b h w d"] | None = None
    ) -> Float[Array, "s b h w d"]:
        """Returns the features before the LayerNorm, which is applied together with the gates."""
        return self.ss2d(self.conv(z), selecting)

    def blend(
        self, z: Float[Array, "s b h w d"], gate: Float[Array, "t b h w d"]
    ) -> Float[Array, "t b h w d"]:
        """Normalises `scan`'s features; blends each task's with the last, shared one (Eq. 24)."""
        return self.norm.blend(z, gate)


class STM(nnx.Module):
    """Self-task Mamba block (Eqs. 14-18), which refines each task's feature by itself.

    Example:
      >>> block = STM(tasks=2, features=32, settings=MambaSettings(), rngs=nnx.Rngs(0))
      >>> block(jnp.zeros((2, 1, 14, 18, 32))).shape  # [t b h w c]
      (2, 1, 14, 18, 32)

    Args:
      tasks: Number of tasks t.
      features: Channels c.
      drop_path_rate: Probability of dropping the block, for each task and image.
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
        self.norm = TaskLayerNorm(tasks, features, dtype=dtype)
        self.in_proj = TaskLinear(tasks, features, inner, dtype=dtype, rngs=rngs)
        self.gate = self.make_gate(tasks, features, inner, dtype=dtype, rngs=rngs)
        self.mfe = self.make_extractor(tasks, features, settings, rngs=rngs)
        self.out_proj = TaskLinear(tasks, inner, features, dtype=dtype, rngs=rngs)

    def __call__(self, z: TaskFeatures, key: jax.Array | None = None) -> TaskFeatures:
        """Refines each task's feature; a key switches drop path on."""
        z = to_features("z", z, *self.in_proj.kernel.shape[:2])
        return self._refine(z, self.norm(z), None, key)

    def _refine(
        self,
        z: TaskFeatures,
        normed: TaskFeatures,
        selecting: Float[Array, "t b h w d"] | None,
        key: jax.Array | None,
    ) -> TaskFeatures:
        scanned, gate = self.mfe.scan(self.in_proj(normed), selecting), self.gate(normed)
        gated = self.mfe.norm(scanned, gate)
        return z + drop_path(self.out_proj(gated), self.drop_path_rate, key, leading=2)


class CTM(nnx.Module):
    """Cross-task Mamba block (Eqs. 19-25), which exchanges features between tasks.

    A shared extractor reads all tasks' features together; each task then blends its own feature and
    the shared one by a gate. The gate multiplies the shared feature: Eq. 24 prints it on the other,
    but Table 5, the official code and its checkpoints have it this way.

    Arguments are those of `STM`.
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

    def __call__(self, z: TaskFeatures, key: jax.Array | None = None) -> TaskFeatures:
        """Exchanges features between the tasks; a key switches drop path on."""
        z = to_features("z", z, *self.in_proj.kernel.shape[:2])
        normed = self.norm(z)
        shared = jnp.einsum(
            "tbhwc,tcd->bhwd", self.norm_shared(z), self.in_proj_shared.astype(self.dtype)
        )
        scanned = self.mfe.scan(_append(self.in_proj(normed), shared))
        mixed = self.mfe.blend(scanned, self.gate(normed))
        return z + drop_path(self.out_proj(mixed), self.drop_path_rate, key, leading=2)


def _append(stack: Float[Array, "t b h w d"], last: Float[Array, "b h w d"]) -> Array:
    """Returns the stack with one more map.

    A sum of padded arrays: XLA's concatenation takes four times as long on GPUs.
    """
    others = [(0, 0)] * last.ndim
    return jnp.pad(stack, [(0, 1), *others]) + jnp.pad(last[None], [(len(stack), 0), *others])
