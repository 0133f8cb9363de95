"""Swin Transformer encoder (Liu et al., ICCV 2021), as mmsegmentation builds it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.array_types import Features
from mtmamba_jax.models import initializers
from mtmamba_jax.models.layers import call_block, drop_path, fold, linear
from mtmamba_jax.models.norm import LayerNorm
from mtmamba_jax.models.ops import attention, gelu
from mtmamba_jax.models.patches import PatchEmbed, PatchMerging, check_images, pad_to_multiple
from mtmamba_jax.models.windows import from_windows, relative_position_index, to_windows


@dataclasses.dataclass(frozen=True)
class SwinSize:
    """One size of Swin.

    Attributes:
      width: Channels of stage 1; they double with each stage.
      depths: Blocks of each stage.
      heads: Attention heads of each stage.
      window: Side of the attention windows, in tokens.
    """

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int


# Table 7 and Section 3.3 of the Swin paper; Base and Large with the window of their 384-pixel
# ImageNet-22K weights. Nano is ours, small enough to train on two CPU cores.
SWIN_SIZES = {
    "swin_nano": SwinSize(16, (2, 2, 2, 2), (1, 2, 4, 8), 4),
    "swin_tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


class WindowAttention(nnx.Module):
    """Multi-head self-attention within windows, with a relative position bias.

    The map is zero-padded at the bottom and right to whole windows. Scores and softmax are float32.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        window: int,
        *,
        shifted: bool,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = linear(features, 3 * features, dtype=dtype, rngs=rngs)
        self.position_bias = nnx.Param(
            initializers.truncated_normal(rngs.params(), ((2 * window - 1) ** 2, heads), 0.02)
        )
        self.projection = linear(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features) -> Features:
        """Attends within (shifted) windows."""
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window)
        rows, columns = x.shape[1:3]
        shift = self.window // 2 if self.shifted else 0
        if shift:
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        x = to_windows(x, self.window)
        windows, length, c = x.shape
        qkv = self.qkv(x).reshape(windows, length, 3, self.heads, c // self.heads)
        bias = self.position_bias[relative_position_index(self.window)].transpose(2, 0, 1)
        x = attention(qkv, bias, (rows, columns, self.window) if self.shifted else None)
        x = self.projection(x.reshape(windows, length, c))
        x = from_windows(x, self.window, rows, columns)
        if shift:
            x = jnp.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width]


class SwinBlock(nnx.Module):
    """Window attention and a two-layer GELU perceptron, both residual and after a LayerNorm."""

    def __init__(
        self,
        features: int,
        heads: int,
        window: int,
        *,
        shifted: bool,
        drop_path_rate: float,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
    ):
        self.drop_path_rate = drop_path_rate
        self.norm_1 = LayerNorm(features, dtype=dtype)
        self.attention = WindowAttention(
            features, heads, window, shifted=shifted, dtype=dtype, rngs=rngs
        )
        self.norm_2 = LayerNorm(features, dtype=dtype)
        self.mlp_in = linear(features, 4 * features, dtype=dtype, rngs=rngs)
        self.mlp_out = linear(4 * features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features, key: jax.Array | None = None) -> Features:
        """Applies the block; a key switches drop path on."""
        x += drop_path(self.attention(self.norm_1(x)), self.drop_path_rate, fold(key, 0))
        mlp_out = jax.checkpoint(lambda h: self.mlp_out(gelu(h)))  # keeps h, not its GELU
        mlp = mlp_out(self.mlp_in(self.norm_2(x)))
        return x + drop_path(mlp, self.drop_path_rate, fold(key, 1))


class Swin(nnx.Module):
    """Swin encoder, which maps images to feature maps of strides 4, 8, 16 and 32 (Eq. 9).

    Example:
      >>> encoder = Swin(SWIN_SIZES["swin_tiny"], rngs=nnx.Rngs(0))
      >>> [x.shape for x in encoder(jnp.zeros((1, 64, 96, 3)))]
      [(1, 16, 24, 96), (1, 8, 12, 192), (1, 4, 6, 384), (1, 2, 3, 768)]

    Args:
      size: A row of `SWIN_SIZES`, or your own.
      drop_path_rate: Drop-path rate of the last block; it rises linearly from 0 at the first.
      dtype: Compute dtype, float32 or bfloat16; parameters are float32.
      remat: Key of `layers.REMAT_POLICIES`, applied to each block.

    Attributes:
      widths: Channels of the four maps.
    """

    def __init__(
        self,
        size: SwinSize,
        *,
        drop_path_rate: float = 0.1,
        dtype: DTypeLike = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.widths = tuple(size.width * 2**i for i in range(4))
        self.patch_embed = PatchEmbed(size.width, dtype=dtype, rngs=rngs)
        rates = iter(np.linspace(0.0, drop_path_rate, sum(size.depths)).tolist())
        block = functools.partial(SwinBlock, window=size.window, dtype=dtype, rngs=rngs)
        self.stages = nnx.List(
            nnx.List(
                block(width, heads, shifted=i % 2 == 1, drop_path_rate=next(rates))
                for i in range(depth)
            )
            for width, depth, heads in zip(self.widths, size.depths, size.heads, strict=True)
        )
        self.norms = nnx.List(LayerNorm(width, dtype=dtype) for width in self.widths)
        self.mergings = nnx.List(
            PatchMerging(width, dtype=dtype, rngs=rngs) for width in self.widths[:-1]
        )

    def __call__(
        self, images: Float[Array, "b h w 3"], key: jax.Array | None = None
    ) -> tuple[Features, ...]:
        """Returns the normalised outputs of the four stages; a key switches drop path on."""
        images = jnp.asarray(images)
        check_images(images)
        x = self.patch_embed(images)
        features, layer = [], 0
        for i, blocks in enumerate(self.stages):
            if i:
                x = self.mergings[i - 1](x)
            for block in blocks:
                x = call_block(self.remat, block, x, fold(key, layer))
                layer += 1
            features.append(self.norms[i](x))
        return tuple(features)
