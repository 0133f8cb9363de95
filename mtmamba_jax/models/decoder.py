"""The decoder: three stages, each doubling the resolution and mixing the tasks (Fig. 1)."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.array_types import Features, TaskFeatures
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.layers import TaskLinear, call_block, fold
from mtmamba_jax.models.patches import PatchExpand

Block = Callable[..., nnx.Module]

STAGE_BLOCKS: tuple[Block, ...] = (STM, STM, CTM)
"""A stage's blocks in order: Eqs. 28 and 29."""
STAGES = 3


class SkipFusion(nnx.Module):
    """Linear(concat(r, f)) of a decoder feature r and an encoder map f, for every task (Eq. 27).

    Computed as the sum of two matrix products, without the concatenation.
    """

    def __init__(self, tasks: int, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.feature = TaskLinear(tasks, features, features, use_bias=True, dtype=dtype, rngs=rngs)
        self.skip = TaskLinear(tasks, features, features, dtype=dtype, rngs=rngs)

    def __call__(self, feature: TaskFeatures, skip: Features) -> TaskFeatures:
        """Fuses each task's feature with the encoder's map."""
        return self.feature(feature) + self.skip(skip)


class DecoderStage(nnx.Module):
    """Patch expansion, fusion with an encoder map, then the blocks."""

    def __init__(
        self,
        tasks: int,
        features: int,
        settings: MambaSettings,
        blocks: Sequence[Block],
        drop_path_rates: Sequence[float],
        *,
        remat: str,
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.expand = PatchExpand(tasks, 2 * features, dtype=settings.dtype, rngs=rngs)
        self.fuse = SkipFusion(tasks, features, dtype=settings.dtype, rngs=rngs)
        self.blocks = nnx.List(
            block(tasks, features, settings, drop_path_rate=rate, rngs=rngs)
            for block, rate in zip(blocks, drop_path_rates, strict=True)
        )

    def __call__(
        self,
        z: Float[Array, "*t b h w 2*c"],
        skip: Float[Array, "b 2*h 2*w c"],
        key: jax.Array | None = None,
    ) -> Float[Array, "t b 2*h 2*w c"]:
        """Decodes one stage; the first stage's z has no task axis."""
        # The encoder pads maps of odd size; the surplus row or column is dropped again here.
        z = self.expand(z)[:, :, : skip.shape[1], : skip.shape[2]]
        z = self.fuse(z, skip)
        for i, block in enumerate(self.blocks):
            z = call_block(self.remat, block, z, fold(key, i))
        return z


class MambaDecoder(nnx.Module):
    """Three stages on the encoder's four maps, which give each task a feature of stride 4.

    Args:
      tasks: Number of tasks t.
      widths: Channels of the encoder's maps, finest first.
      settings: Settings of the Mamba blocks.
      blocks: Blocks of a stage, in order.
      drop_path_rate: Drop-path rate of the first block; it falls linearly to 0 at the last.
      remat: Key of `layers.REMAT_POLICIES`, applied to each block.
    """

    def __init__(
        self,
        tasks: int,
        widths: Sequence[int],
        settings: MambaSettings,
        blocks: Sequence[Block],
        *,
        drop_path_rate: float,
        remat: str,
        rngs: nnx.Rngs,
    ):
        rates = np.linspace(drop_path_rate, 0.0, STAGES * len(blocks)).reshape(STAGES, -1)
        self.stages = nnx.List(
            DecoderStage(tasks, width, settings, blocks, stage_rates, remat=remat, rngs=rngs)
            for width, stage_rates in zip(reversed(widths[:-1]), rates.tolist(), strict=True)
        )

    def __call__(self, features: Sequence[Features], key: jax.Array | None = None) -> TaskFeatures:
        """Decodes the encoder's four maps, finest first; a key switches drop path on."""
        *skips, z = features
        for i, (stage, skip) in enumerate(zip(self.stages, reversed(skips), strict=True)):
            z = stage(z, skip, fold(key, i))
        return z
