"""Changes of resolution: patch embedding, merging and expansion."""

import jax.numpy as jnp
from einops import rearrange
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.models import initializers
from mtmamba_jax.models.layers import TaskLinear, linear
from mtmamba_jax.models.norm import LayerNorm, TaskLayerNorm


def check_images(images: Float[Array, "b h w 3"]) -> None:
    """Raises a ValueError unless images have a valid shape."""
    if images.ndim != 4 or images.shape[-1] != 3 or not all(images.shape):
        raise ValueError(
            "images must be [b h w 3], channels last, with every size at least 1; got "
            f"{images.shape}."
        )


def pad_to_multiple(x: Float[Array, "b h w c"], multiple: int) -> Float[Array, "b H W c"]:
    """Zero-pads maps at the bottom and right so that `multiple` divides height and width."""
    rows, columns = -x.shape[1] % multiple, -x.shape[2] % multiple
    return jnp.pad(x, ((0, 0), (0, rows), (0, columns), (0, 0))) if rows or columns else x


def space_to_depth(x: Float[Array, "b h w c"], block: int) -> Float[Array, "b H W C"]:
    """Gathers the pixels of each block: [b h/block w/block block*block*c].

    The new channels are ordered (row, column, channel).
    """
    return rearrange(x, "b (h p) (w q) c -> b h w (p q c)", p=block, q=block)


def depth_to_space(x: Float[Array, "*lead h w c"], block: int) -> Float[Array, "*lead H W C"]:
    """Spreads (row, column, channel) channels over pixels: the inverse of `space_to_depth`."""
    return rearrange(x, "... h w (p q c) -> ... (h p) (w q) c", p=block, q=block)


class PatchEmbed(nnx.Module):
    """Embeds each 4x4 patch of an image as a normalised token of c channels."""

    patch = 4

    def __init__(self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        # PyTorch's initial bias of a convolution. With zeros, padding would stay zero through norm
        # after norm, each of which multiplies the gradient there by 1 / sqrt(EPSILON).
        bound = (self.patch**2 * 3) ** -0.5

        def bias_init(key, shape, _):
            return initializers.uniform(key, shape, -bound, bound)

        # A convolution of stride 4 with a 4x4 kernel is a matrix product on 4x4 patches.
        inputs = self.patch**2 * 3
        self.projection = linear(inputs, features, bias_init=bias_init, dtype=dtype, rngs=rngs)
        self.norm = LayerNorm(features, dtype=dtype)

    def __call__(self, images: Float[Array, "b h w 3"]) -> Float[Array, "b ceil(h/4) ceil(w/4) c"]:
        """Embeds images."""
        patches = space_to_depth(pad_to_multiple(images, self.patch), self.patch)
        return self.norm(self.projection(patches))


class PatchMerging(nnx.Module):
    """Halves the resolution (rounding up) and doubles the channels.

    The 4c gathered channels are ordered (row, column, channel); `convert` permutes the weights of
    checkpoints with other orders.
    """

    def __init__(self, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = LayerNorm(4 * features, dtype=dtype)
        self.reduction = linear(4 * features, 2 * features, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ceil(h/2) ceil(w/2) 2*c"]:
        """Merges blocks of 2x2 pixels."""
        return self.reduction(self.norm(space_to_depth(pad_to_multiple(x, 2), 2)))


class PatchExpand(nnx.Module):
    """Doubles the resolution and halves the channels for every task (Eq. 26).

    An input without the task axis, [b h w c], is expanded by every task.
    """

    def __init__(self, tasks: int, features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.expand = TaskLinear(tasks, features, 2 * features, dtype=dtype, rngs=rngs)
        self.norm = TaskLayerNorm(tasks, features // 2, dtype=dtype)

    def __call__(self, x: Float[Array, "*t b h w c"]) -> Float[Array, "t b 2*h 2*w c/2"]:
        """Expands every pixel to 2x2."""
        return self.norm(depth_to_space(self.expand(x), 2))
