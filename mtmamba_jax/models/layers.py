"""Layers that hold one set of weights a task and run all tasks at once over a leading axis t."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models import initializers

linear = functools.partial(nnx.Linear, kernel_init=initializers.lecun_normal)


class TaskLinear(nnx.Module):
    """A linear map for each task: [t b h w i] -> [t b h w o].

    An input without the task axis, [b h w i], is read by every task.
    """

    def __init__(
        self,
        tasks: int,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = False,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        bound = in_features**-0.5  # what the official decoder starts from
        shape = (tasks, in_features, out_features)
        self.kernel = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        self.bias = nnx.Param(jnp.zeros((tasks, out_features))) if use_bias else None

    def __call__(self, x: Array) -> Array:
        """Maps [t b h w i], or [b h w i] for all tasks alike, to [t b h w o]."""
        spec = "tbhwi,tio->tbhwo" if x.ndim == 5 else "bhwi,tio->tbhwo"
        y = jnp.einsum(spec, x.astype(self.dtype), self.kernel.astype(self.dtype))
        if self.bias is not None:
            y += self.bias[:, None, None, None].astype(self.dtype)
        return y


class Conv(nnx.Module):
    """A 3x3 convolution, zero padding: [b h w i] -> [b h w o]. Begins as PyTorch's."""

    def __init__(self, in_features: int, out_features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        bound = (9 * in_features) ** -0.5
        shape = (3, 3, in_features, out_features)
        self.kernel = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        self.bias = nnx.Param(initializers.uniform(rngs.params(), shape[3:], -bound, bound))

    def __call__(self, x: Array) -> Array:
        """Convolves [b h w i]."""
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            self.kernel.astype(self.dtype),
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.bias.astype(self.dtype)


class DepthwiseConv(nnx.Module):
    """A 3x3 convolution of each channel by itself, zero padding, one set of weights a task.

    Written as nine shifted products: they fuse into one pass over the map on every backend, where
    a grouped convolution is a slow special case on some.
    """

    def __init__(
        self, tasks: int, features: int, *, dtype: jnp.dtype = jnp.float32, rngs: nnx.Rngs
    ):
        self.dtype = dtype
        # Fan-in 9, as for a convolution with one input channel a group.
        self.kernel = nnx.Param(
            initializers.normal(rngs.params(), (tasks, 3, 3, features), 9**-0.5)
        )
        self.bias = nnx.Param(jnp.zeros((tasks, features)))

    def __call__(self, x: Array) -> Array:
        """Convolves [t b h w d]; sums in float32, returns the compute dtype."""
        y = _convolve(x, self.kernel[...]) + self.bias[:, None, None, None]
        return y.astype(self.dtype)


@jax.custom_vjp
def _convolve(x: Array, kernel: Array) -> Array:
    """[t b h w d] with [t 3 3 d], float32."""
    taps = (kernel[:, i, j][:, None, None, None] for i in range(3) for j in range(3))
    return sum(shifted * tap for shifted, tap in zip(_neighbours(x), taps, strict=True))


def _neighbours(x: Array) -> list[Array]:
    """What lies under each of the nine taps, float32."""
    height, width = x.shape[2:4]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))).astype(jnp.float32)
    return [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def _convolve_backward(residuals, dy):
    x, kernel = residuals
    dx = _convolve(dy, kernel[:, ::-1, ::-1]).astype(x.dtype)
    sums = [jnp.sum(dy * shifted, (1, 2, 3)) for shifted in _neighbours(x)]
    return dx, jnp.stack(sums, 1).reshape(kernel.shape)


_convolve.defvjp(lambda x, kernel: (_convolve(x, kernel), (x, kernel)), _convolve_backward)


def drop_path(residual: Array, rate: float, key: jax.Array | None, *, leading: int = 1) -> Array:
    """Zeroes whole residuals with probability `rate` and scales the others by 1 / (1 - rate).

    Stochastic depth (Huang et al., ECCV 2016). `leading` axes, the batch and before it the task,
    draw independently. Without a key nothing is dropped.
    """
    if key is None or rate == 0.0:
        return residual
    shape = residual.shape[:leading] + (1,) * (residual.ndim - leading)
    keep = jax.random.bernoulli(key, 1.0 - rate, shape)
    return jnp.where(keep, residual / (1.0 - rate), jnp.zeros((), residual.dtype))


def fold(key: jax.Array | None, index: int) -> jax.Array | None:
    """Returns the key of the index-th random layer; None (no randomness) stays None."""
    return None if key is None else jax.random.fold_in(key, index)


def recomputed(function: Callable[..., Array]) -> Callable[..., Array]:
    """Returns `function`, its arguments the only thing kept for its backward pass.

    For cheap functions of large maps: reading what they made costs as much as making it again.
    """
    return jax.checkpoint(function)


REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}
"""What a block keeps for its backward pass: all, nothing but its inputs, or matmul outputs too."""


def call_block(policy: str, block: nnx.Module, *args):
    """Runs `block(*args)`, recomputing it in the backward pass as `REMAT_POLICIES[policy]` says."""
    if policy == "none":
        return block(*args)
    run = nnx.remat(lambda block, *args: block(*args), policy=REMAT_POLICIES[policy])
    return run(block, *args)
