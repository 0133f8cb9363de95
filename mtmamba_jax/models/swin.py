"""Swin Transformer encoder (Liu et al., ICCV 2021), in the form mmsegmentation gives it."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models import initializers
from mtmamba_jax.models.layers import call_block, drop_path, fold, linear, recomputed
from mtmamba_jax.models.norm import LayerNorm
from mtmamba_jax.models.patches import PatchEmbed, PatchMerging, pad_to_multiple


@dataclasses.dataclass(frozen=True)
class SwinSize:
    """One size of Swin: channels of stage 1 (doubling each stage), blocks, heads, window side."""

    width: int
    depths: tuple[int, int, int, int]
    heads: tuple[int, int, int, int]
    window: int


# The Swin paper's Table 7 and Section 3.3; Base and Large with the window of their 384-pixel
# ImageNet-22K weights. Nano is ours: a size that learns on two CPU cores.
SWIN_SIZES = {
    "swin_nano": SwinSize(16, (2, 2, 2, 2), (1, 2, 4, 8), 4),
    "swin_tiny": SwinSize(96, (2, 2, 6, 2), (3, 6, 12, 24), 7),
    "swin_small": SwinSize(96, (2, 2, 18, 2), (3, 6, 12, 24), 7),
    "swin_base": SwinSize(128, (2, 2, 18, 2), (4, 8, 16, 32), 12),
    "swin_large": SwinSize(192, (2, 2, 18, 2), (6, 12, 24, 48), 12),
}


def relative_position_index(window: int) -> np.ndarray:
    """Returns int [window**2, window**2]: which row of the bias table a query-key pair reads."""
    y, x = np.divmod(np.arange(window**2), window)
    rows = y[:, None] - y[None, :] + window - 1
    columns = x[:, None] - x[None, :] + window - 1
    return rows * (2 * window - 1) + columns


def shift_mask(height: int, width: int, window: int) -> Array:
    """Returns bool [windows, window**2, window**2]: True where a shifted pair may attend.

    After the cyclic shift a window can hold pixels from opposite edges of the map; they are
    strangers and must not see each other (Fig. 4 of the Swin paper). Compared on the device: as a
    constant it would be 10 MB of the program at the first stage of a 448x576 image.
    """

    def regions(axis):  # before the last window, its kept part, the part rolled in from the edge
        shape = (1, height, width, 1)
        position = jax.lax.broadcasted_iota(jnp.int32, shape, axis)
        edges = (shape[axis] - window, shape[axis] - window // 2)
        return sum((position >= edge).astype(jnp.int32) for edge in edges)

    region = _partition(3 * regions(1) + regions(2), window)[..., 0]
    return region[:, :, None] == region[:, None, :]


def _partition(x: Array, window: int) -> Array:
    """[b h w c] -> [b*windows, window**2, c]."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // window, window, w // window, window, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, window**2, c)


def _unpartition(x: Array, window: int, height: int, width: int) -> Array:
    """[b*windows, window**2, c] -> [b h w c]."""
    x = x.reshape(-1, height // window, width // window, window, window, x.shape[-1])
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, x.shape[-1])


class WindowAttention(nnx.Module):
    """Multi-head self-attention inside windows, with a relative position bias; [b h w c] -> same.

    The map is zero-padded at the bottom and right to whole windows. Scores and softmax in float32.
    """

    def __init__(
        self,
        features: int,
        heads: int,
        window: int,
        *,
        shifted: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.heads, self.window, self.shifted = heads, window, shifted
        self.qkv = linear(features, 3 * features, dtype=dtype, rngs=rngs)
        self.position_bias = nnx.Param(
            initializers.truncated_normal(rngs.params(), ((2 * window - 1) ** 2, heads), 0.02)
        )
        self.projection = linear(features, features, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Attends inside (shifted) windows of [b h w c]."""
        height, width = x.shape[1:3]
        x = pad_to_multiple(x, self.window)
        padded = x.shape[1:3]
        shift = self.window // 2 if self.shifted else 0
        if shift:
            x = jnp.roll(x, (-shift, -shift), (1, 2))
        x = self._attend(_partition(x, self.window), padded)
        x = _unpartition(x, self.window, *padded)
        if shift:
            x = jnp.roll(x, (shift, shift), (1, 2))
        return x[:, :height, :width]

    def _attend(self, x: Array, padded: tuple[int, int]) -> Array:
        windows, length, c = x.shape
        qkv = self.qkv(x).reshape(windows, length, 3, self.heads, c // self.heads)
        bias = self.position_bias[relative_position_index(self.window)].transpose(2, 0, 1)
        out = _attention(qkv, bias, (*padded, self.window) if self.shifted else None)
        return self.projection(out.reshape(windows, length, c))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(qkv: Array, bias: Array, shifted: tuple[int, int, int] | None) -> Array:
    """Softmax attention: [windows pixels 3 heads c], [heads pixels pixels] -> [windows pixels ..].

    `shifted` gives the arguments of `shift_mask` for windows that are. The weights are kept for the
    backward pass in the compute dtype: making them again costs more than reading them.
    """
    return _attention_forward(qkv, bias, shifted)[0]


def _attention_forward(qkv, bias, shifted):
    query, key, value = _split(qkv)
    scores = jnp.einsum("mqhc,mkhc->mhqk", query, key, preferred_element_type=jnp.float32) + bias
    if shifted:
        # -100 rather than -inf: the value released weights were trained with.
        mask = jnp.where(shift_mask(*shifted), 0.0, -100.0)[None, :, None]
        by_image = scores.reshape(-1, mask.shape[1], *scores.shape[1:])
        scores = (by_image + mask).reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("mhqk,mkhc->mqhc", weights, value)
    return out, (qkv, weights, out)


def _attention_backward(shifted, residuals, dout):
    del shifted  # a constant of the scores
    qkv, weights, out = residuals
    query, key, value = _split(qkv)
    dvalue = jnp.einsum("mhqk,mqhc->mkhc", weights, dout)
    dweights = jnp.einsum("mqhc,mkhc->mhqk", dout, value, preferred_element_type=jnp.float32)
    # The mean of dweights that softmax takes off: sum_k weights dweights = out . dout.
    mean = jnp.einsum("mqhc,mqhc->mhq", out, dout, preferred_element_type=jnp.float32)
    dscores = weights * (dweights - mean[..., None])
    dbias = dscores.sum(0)
    dscores = dscores.astype(qkv.dtype)
    dquery = jnp.einsum("mhqk,mkhc->mqhc", dscores, key) * _scale(qkv)
    dkey = jnp.einsum("mhqk,mqhc->mkhc", dscores, query)
    return jnp.stack([dquery, dkey, dvalue], 2), dbias


def _split(qkv: Array) -> tuple[Array, Array, Array]:
    """Scaled query, key and value [windows pixels heads c]."""
    return qkv[:, :, 0] * _scale(qkv), qkv[:, :, 1], qkv[:, :, 2]


def _scale(qkv: Array) -> float:
    return qkv.shape[-1] ** -0.5


_attention.defvjp(_attention_forward, _attention_backward)


@jax.custom_vjp
def _gelu(x: Array) -> Array:
    """The exact GELU; x is all that its backward pass keeps."""
    return _on_its_own(_exact_gelu, x)


def _exact_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def _gelu_gradient(x, dy):
    return jax.vjp(_exact_gelu, x)[1](dy)[0]


_gelu.defvjp(lambda x: (_gelu(x), x), lambda x, dy: (_on_its_own(_gelu_gradient, x, dy),))


def _on_its_own(function: Callable[..., Array], *arrays: Array) -> Array:
    """Returns `function(*arrays)`, which XLA for TPUs may not take into the products that read it.

    With erf in a matrix product's loop a block takes 37 s to compile, without 13 (libtpu 0.0.42).
    """
    return jax.lax.platform_dependent(
        *arrays, tpu=lambda *v: jax.lax.optimization_barrier(function(*v)), default=function
    )


class SwinBlock(nnx.Module):
    """LayerNorm, window attention, LayerNorm, two-layer GELU perceptron; both residual."""

    def __init__(
        self,
        features: int,
        heads: int,
        window: int,
        *,
        shifted: bool,
        drop_path_rate: float,
        dtype: jnp.dtype,
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

    def __call__(self, x: Array, key: jax.Array | None = None) -> Array:
        """Maps [b h w c] to the same shape; a key switches drop path on."""
        x += drop_path(self.attention(self.norm_1(x)), self.drop_path_rate, fold(key, 0))
        perceptron = recomputed(lambda h: self.mlp_out(_gelu(h)))
        found = perceptron(self.mlp_in(self.norm_2(x)))
        return x + drop_path(found, self.drop_path_rate, fold(key, 1))


class Swin(nnx.Module):
    """Swin encoder: images [b h w 3] -> four maps of strides 4, 8, 16, 32 (Eq. 9).

    Args:
      size: a row of `SWIN_SIZES`, or your own.
      drop_path_rate: of the last block; it rises linearly from 0 at the first.
      dtype: of the computation, float32 or bfloat16; parameters are float32.
      remat: key of `layers.REMAT_POLICIES`, applied to each block.

    Attributes:
      widths: channels of the four maps.
    """

    def __init__(
        self,
        size: SwinSize,
        *,
        drop_path_rate: float = 0.1,
        dtype: jnp.dtype = jnp.float32,
        remat: str = "none",
        rngs: nnx.Rngs,
    ):
        self.remat = remat
        self.widths = tuple(size.width * 2**i for i in range(4))
        self.patch_embed = PatchEmbed(size.width, dtype=dtype, rngs=rngs)
        rates = iter(np.linspace(0.0, drop_path_rate, sum(size.depths)).tolist())
        self.stages = nnx.List(
            nnx.List(
                SwinBlock(
                    width,
                    heads,
                    size.window,
                    shifted=i % 2 == 1,
                    drop_path_rate=next(rates),
                    dtype=dtype,
                    rngs=rngs,
                )
                for i in range(depth)
            )
            for width, depth, heads in zip(self.widths, size.depths, size.heads, strict=True)
        )
        self.norms = nnx.List(LayerNorm(width, dtype=dtype) for width in self.widths)
        self.mergings = nnx.List(
            PatchMerging(width, dtype=dtype, rngs=rngs) for width in self.widths[:-1]
        )

    def __call__(self, images: Array, key: jax.Array | None = None) -> tuple[Array, ...]:
        """Returns the normalised outputs of the four stages; a key switches drop path on."""
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
