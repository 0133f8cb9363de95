"""Patch embedding, merging and expansion: how maps change resolution."""

from __future__ import annotations

import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models import initializers
from mtmamba_jax.models.layers import TaskLinear, linear
from mtmamba_jax.models.norm import LayerNorm, TaskLayerNorm


def pad_to_multiple(x: Array, multiple: int) -> Array:
    """Zero-pads [b h w c] at the bottom and right so that `multiple` divides h and w."""
    rows, columns = -x.shape[1] % multiple, -x.shape[2] % multiple
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0))) if rows or columns else x


def space_to_depth(x: Array, block: int) -> Array:
    """Gathers block x block pixels: [b h w c] -> [b h/block w/block block*block*c].

    The new channels are ordered (row, column, channel).
    """
    b, h, w, c = x.shape
    x = x.reshape(b, h // block, block, w // block, block, c)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(b, h // block, w // block, block * block * c)


def depth_to_space(x: Array, block: int) -> Array:
    """Spreads (row, column, channel) channels over pixels: [... h w block*block*c] -> finer map."""
    *lead, h, w, c = x.shape
    c //= block * block
    x = x.reshape(*lead, h, w, block, block, c)
    n = len(lead)
    x = x.transpose(*range(n), n, n + 2, n + 1, n + 3, n + 4)
    return x.reshape(*lead, h * block, w * block, c)


class PatchEmbed(nnx.Module):
    """Image -> one token a 4x4 patch: [b h w 3] -> [b ceil(h/4) ceil(w/4) c], normalised."""

    patch = 4

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        # A convolution of stride 4 with a 4x4 kernel is a matrix product on 4x4 patches.
        self.projection = linear(self.patch**2 * 3, features, dtype=dtype, rngs=rngs)
        # PyTorch's start of a convolution. With zeros, padding would stay zero through norm after
        # norm, and each multiplies a gradient by 1 / sqrt(epsilon) there.
        bound = (self.patch**2 * 3) ** -0.5
        self.projection.bias[...] = initializers.uniform(rngs.params(), (features,), -bound, bound)
        self.norm = LayerNorm(features, dtype=dtype)

    def __call__(self, images: Array) -> Array:
        """Embeds images [b h w 3]."""
        patches = space_to_depth(pad_to_multiple(images, self.patch), self.patch)
        return self.norm(self.projection(patches))


class PatchMerging(nnx.Module):
    """Halves the resolution and doubles the channels: [b h w c] -> [b ceil(h/2) ceil(w/2) 2c].

    The 4c gathered channels are ordered (row, column, channel); checkpoints of other orders are
    permuted when they are converted.
    """

    def __init__(self, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * features, dtype=dtype)
        self.reduction = linear(4 * features, 2 * features, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        """Merges 2x2 neighbours of [b h w c]."""
        return self.reduction(self.norm(space_to_depth(pad_to_multiple(x, 2), 2)))


class PatchExpand(nnx.Module):
    """Doubles the resolution and halves the channels for every task (Eq. 26).

    [t b h w c], or [b h w c] for all tasks alike, -> [t b 2h 2w c/2].
    """

    def __init__(self, tasks: int, features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.expand = TaskLinear(tasks, features, 2 * features, dtype=dtype, rngs=rngs)
        self.norm = TaskLayerNorm(tasks, features // 2, dtype=dtype)

    def __call__(self, x: Array) -> Array:
        """Expands every pixel to 2x2."""
        return self.norm(depth_to_space(self.expand(x), 2))
