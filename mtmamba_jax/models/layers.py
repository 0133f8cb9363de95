"""Layers and helpers that several modules share.

`Task*` layers have one set of weights per task, stacked on a leading axis t.
"""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.array_types import TaskFeatures
from mtmamba_jax.kernels.ss2d.api import ACTIVATION_DTYPES, to_array
from mtmamba_jax.models import initializers
from mtmamba_jax.models.ops import convolve_silu

linear = functools.partial(nnx.Linear, kernel_init=initializers.lecun_normal)


def to_features(name: str, given: ArrayLike, tasks: int, channels: int) -> TaskFeatures:
    """Returns the features that a block is called with, lists of numbers as float32.

    Raises:
      ValueError: If they are not float32 or bfloat16, or not [tasks b h w channels].
    """
    z = to_array(name, given, ACTIVATION_DTYPES)
    if z.ndim != 5 or (z.shape[0], z.shape[-1]) != (tasks, channels) or not all(z.shape):
        raise ValueError(
            f"{name} must have shape [t b h w c] = [{tasks} b h w {channels}] with every size at "
            f"least 1, got [{' '.join(map(str, z.shape))}]."
        )
    return z


class TaskLinear(nnx.Module):
    """A linear map for each task: [t b h w i] -> [t b h w o].

    An input without the task axis, [b h w i], is mapped by every task.
    """

    def __init__(
        self,
        tasks: int,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        bound = in_features**-0.5  # the official decoder's initial range
        shape = (tasks, in_features, out_features)
        self.kernel = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        self.bias = nnx.Param(jnp.zeros((tasks, out_features), jnp.float32)) if use_bias else None

    def __call__(self, x: Float[Array, "*t b h w i"]) -> Float[Array, "t b h w o"]:
        """Applies each task's map."""
        spec = "tbhwi,tio->tbhwo" if x.ndim == 5 else "bhwi,tio->tbhwo"
        y = jnp.einsum(spec, x.astype(self.dtype), self.kernel.astype(self.dtype))
        if self.bias is not None:
            y += self.bias[:, None, None, None].astype(self.dtype)
        return y


class Conv(nnx.Module):
    """A zero-padded 3x3 convolution, initialised as PyTorch's."""

    def __init__(self, in_features: int, out_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        bound = (9 * in_features) ** -0.5
        shape = (3, 3, in_features, out_features)
        self.kernel = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        self.bias = nnx.Param(initializers.uniform(rngs.params(), shape[3:], -bound, bound))

    def __call__(self, x: Float[Array, "b h w i"]) -> Float[Array, "b h w o"]:
        """Convolves x in the compute dtype."""
        x, kernel = x.astype(self.dtype), self.kernel.astype(self.dtype)
        axes = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=axes)
        return y + self.bias.astype(self.dtype)


class DepthwiseConvSiLU(nnx.Module):
    """A zero-padded 3x3 depthwise convolution for each task, and SiLU; sums in float32."""

    def __init__(
        self, tasks: int, features: int, *, dtype: DTypeLike = jnp.float32, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        # Fan-in 9, as for a convolution with one input channel per group.
        shape = (tasks, 3, 3, features)
        self.kernel = nnx.Param(initializers.normal(rngs.params(), shape, 9**-0.5))
        self.bias = nnx.Param(jnp.zeros((tasks, features), jnp.float32))

    def __call__(self, x: Float[Array, "t b h w d"]) -> Float[Array, "t b h w d"]:
        """Convolves x in the compute dtype."""
        return convolve_silu(x.astype(self.dtype), self.kernel[...], self.bias[...])


def drop_path(
    residual: Float[Array, "..."], rate: float, key: jax.Array | None, *, leading: int = 1
) -> Float[Array, "..."]:
    """Zeroes whole residuals at random and scales the others by 1 / (1 - rate).

    Stochastic depth (Huang et al., ECCV 2016); without a key nothing is dropped. Entries of the
    `leading` axes are drawn independently: the batch, and before it the tasks.
    """
    if key is None or rate == 0.0:
        return residual
    shape = residual.shape[:leading] + (1,) * (residual.ndim - leading)
    keep = jax.random.bernoulli(key, jnp.float32(1.0 - rate), shape)
    return jnp.where(keep, residual / (1.0 - rate), jnp.zeros((), residual.dtype))


def fold(key: jax.Array | None, index: int) -> jax.Array | None:
    """Returns the key of the index-th random layer, or None (no randomness) for None."""
    return None if key is None else jax.random.fold_in(key, index)


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a block keeps for its backward pass: everything, its inputs only, or matmul outputs too."""


def call_block(policy: str, block: nnx.Module, *args):
    """Returns `block(*args)`, recomputed in the backward pass by `REMAT_POLICIES[policy]`."""
    if policy == "none":
        return block(*args)
    run = nnx.remat(lambda block, *args: block(*args), policy=REMAT_POLICIES[policy])
    return run(block, *args)
