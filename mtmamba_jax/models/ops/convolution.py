"""The depthwise 3x3 convolution, and SiLU after it."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtmamba_jax.kernels.convolution import pallas_tpu, pallas_triton
from mtmamba_jax.kernels.manual_axes import vary_alike
from mtmamba_jax.models.ops.dispatch import with_flops, with_kernels


def depthwise_convolve(
    x: Float[Array, "t b h w d"], kernel: Float[Array, "t 3 3 d"]
) -> Float[Array, "t b h w d"]:
    """Returns the zero-padded 3x3 depthwise convolution, float32.

    Written as nine shifted products: they fuse into one pass over the map on every backend, whereas
    a grouped convolution is a slow special case on some.
    """
    return _depthwise_convolve(*vary_alike(x, kernel))


@with_flops(lambda x, kernel: 9 * math.prod(x))
@jax.custom_vjp
def _depthwise_convolve(x, kernel):
    taps = (kernel[:, i, j][:, None, None, None] for i in range(3) for j in range(3))
    y: Any = sum(shifted * tap for shifted, tap in zip(_shifts(x), taps, strict=True))
    return y


def _shifts(x: Array) -> list[Array]:
    """Returns the map under each of the nine taps, float32."""
    height, width = x.shape[2:4]
    padded = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1), (0, 0))).astype(jnp.float32)
    return [padded[:, :, i : i + height, j : j + width] for i in range(3) for j in range(3)]


def _depthwise_convolve_backward(residuals, dy):
    x, kernel = residuals
    dx = _depthwise_convolve(dy, kernel[:, ::-1, ::-1]).astype(x.dtype)
    sums = [jnp.sum(dy * shifted, (1, 2, 3)) for shifted in _shifts(x)]
    return dx, jnp.stack(sums, 1).reshape(kernel.shape)


_depthwise_convolve.defvjp(
    lambda x, kernel: (_depthwise_convolve(x, kernel), (x, kernel)), _depthwise_convolve_backward
)


def convolve_silu(
    x: Float[Array, "t b h w d"],
    kernel: Float[Array, "t 3 3 d"],
    bias: Float[Array, "t d"],
) -> Float[Array, "t b h w d"]:
    """Returns SiLU(depthwise_convolve(x, kernel) + bias) in x's dtype."""

    def plain(x, kernel, bias):
        z = depthwise_convolve(x, kernel) + bias[:, None, None, None]
        # Computed again in the backward pass: reading the result from memory would cost as much.
        return jax.checkpoint(jax.nn.silu)(z.astype(x.dtype))

    kernels = {}
    if kernel.dtype == bias.dtype == jnp.float32:
        modules = {"cuda": pallas_triton, "tpu": pallas_tpu}
        kernels = {name: v.convolve_silu for name, v in modules.items() if v.supports(x)}
    return with_kernels(plain, kernels, (x, kernel, bias), (True, False, False))
