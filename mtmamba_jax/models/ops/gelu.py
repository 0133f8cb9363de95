"""The exact GELU."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtmamba_jax.kernels.platform_check import by_platform
from mtmamba_jax.models.ops.dispatch import with_flops


@with_flops(None)
@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns the exact GELU, x cdf(x); the backward pass keeps nothing but x.

    In bfloat16 cdf has an error of at most 3e-7 before the result is rounded.
    """
    return _unfused_on_tpu(_gelu_value, x)


def _gelu_value(x):
    if x.dtype != jnp.bfloat16:
        return jax.nn.gelu(x, approximate=False)
    wide = x.astype(jnp.float32)
    return (wide * _normal_distribution(wide)[0]).astype(x.dtype)


def _gelu_gradient(x, dy):
    if x.dtype != jnp.bfloat16:
        return jax.vjp(_gelu_value, x)[1](dy)[0]
    # The barrier: if cdf were shared with the value, which is often computed again for the backward
    # pass, XLA would store it in float32.
    wide = jax.lax.optimization_barrier(x).astype(jnp.float32)
    cdf, density = _normal_distribution(wide)
    return ((cdf + wide * density) * dy.astype(jnp.float32)).astype(x.dtype)


gelu.defvjp(lambda x: (gelu(x), x), lambda x, dy: (_unfused_on_tpu(_gelu_gradient, x, dy),))

# Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 7.1.26.
_ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
_ERF_SCALE = 0.3275911


def _normal_distribution(x: Array) -> tuple[Array, Array]:
    """Returns the cumulative distribution and the density of the normal distribution, float32.

    The first has errors of at most 3e-7, far below those of bfloat16, for a fraction of the
    instructions of `lax.erfc`.
    """
    bell = jnp.exp(-0.5 * x * x)
    t = 1 / (1 + _ERF_SCALE * math.sqrt(0.5) * jnp.abs(x))
    series = jnp.zeros_like(x)
    for coefficient in reversed(_ERF):
        series = (series + coefficient) * t
    tail = 0.5 * series * bell
    return jnp.where(x < 0, tail, 1 - tail), bell * (2 * math.pi) ** -0.5


def _unfused_on_tpu(function: Callable[..., Array], *arrays: Array) -> Array:
    """Returns `function(*arrays)`, not fused into the matrix products that read it on TPUs.

    With float32's erf in a matrix product's loop a block takes 37 s to compile, without 13 (libtpu
    0.0.42). In bfloat16 both take the same time.
    """
    return by_platform(
        *arrays, tpu=lambda *v: jax.lax.optimization_barrier(function(*v)), default=function
    )
