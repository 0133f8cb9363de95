"""The decoder: three stages, each doubling the resolution and mixing the tasks (Fig. 1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.layers import TaskLinear, call_block, fold
from mtmamba_jax.models.patches import PatchExpand

Block = Callable[..., nnx.Module]

# A stage's blocks in order: Eqs. 28 and 29.
STAGE_BLOCKS: tuple[Block, ...] = (STM, STM, CTM)
STAGES = 3


class SkipFusion(nnx.Module):
    """Linear(concat(r, f)) for every task (Eq. 27): r [t b h w c], f [b h w c] -> [t b h w c].

    Two matrix products added: the same numbers without writing the concatenation.
    """

    def __init__(self, tasks: int, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.feature = TaskLinear(tasks, features, features, use_bias=True, dtype=dtype, rngs=rngs)
        self.skip = TaskLinear(tasks, features, features, dtype=dtype, rngs=rngs)

    def __call__(self, feature: Array, skip: Array) -> Array:
        """Fuses the tasks' features with the encoder's map."""
        return self.feature(feature) + self.skip(skip)


class DecoderStage(nnx.Module):
    """PatchExpand, fusion with the encoder's map, then the blocks; halves c, doubles h and w."""

    def __init__(
        self,
        tasks: int,
        features: int,
        settings: MambaSettings,
        *,
        blocks: Sequence[Block],
        drop_path_rates: Sequence[float],
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

    def __call__(self, z: Array, skip: Array, key: jax.Array | None = None) -> Array:
        """Maps z [t b h w 2c] (or [b h w 2c]) and skip [b 2h 2w c] to [t b 2h 2w c]."""
        expanded = self.expand(z)
        # The encoder pads odd maps; the surplus row or column is dropped again here.
        expanded = expanded[:, :, : skip.shape[1], : skip.shape[2]]
        z = self.fuse(expanded, skip)
        for i, block in enumerate(self.blocks):
            z = call_block(self.remat, block, z, fold(key, i))
        return z


class MambaDecoder(nnx.Module):
    """Three stages on the encoder's four maps: -> [t b h/4 w/4 c], a feature for each task.

    Args:
      tasks: number of tasks t.
      widths: channels of the encoder's maps, finest first.
      blocks: of a stage, in order.
      drop_path_rate: of the first block; it falls linearly to 0 at the last.
    """

    def __init__(
        self,
        tasks: int,
        widths: Sequence[int],
        settings: MambaSettings,
        *,
        blocks: Sequence[Block] = STAGE_BLOCKS,
        drop_path_rate: float = 0.2,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        rates = np.linspace(drop_path_rate, 0.0, STAGES * len(blocks)).reshape(STAGES, -1)
        self.stages = nnx.List(
            DecoderStage(
                tasks,
                width,
                settings,
                blocks=blocks,
                drop_path_rates=stage_rates,
                remat=remat,
                rngs=rngs,
            )
            for width, stage_rates in zip(reversed(widths[:-1]), rates.tolist(), strict=True)
        )

    def __call__(self, features: Sequence[Array], key: jax.Array | None = None) -> Array:
        """Decodes the four maps, finest first; a key switches drop path on."""
        *skips, z = features
        for i, (stage, skip) in enumerate(zip(self.stages, reversed(skips), strict=True)):
            z = stage(z, skip, fold(key, i))
        return z
