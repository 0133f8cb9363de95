"""Matrix products, and the LayerNorm factor of a product."""

import functools
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtmamba_jax.kernels.manual_axes import vary_alike
from mtmamba_jax.models.ops.dispatch import with_flops
from mtmamba_jax.models.ops.norm import EPSILON


def inverse_deviation(
    x: Float[Array, "b h w c"], kernel: Float[Array, "c s d"]
) -> Float[Array, "b h w s"]:
    """Returns 1 / sqrt(mean((x @ kernel)^2) + EPSILON), with the mean over d; float32.

    The product is computed again in the backward pass: it is 16 times as large as x.
    """
    return _inverse_deviation(*vary_alike(x, kernel))


# Counts the product that makes the fine map and its LayerNorm.
@with_flops(lambda x, kernel: math.prod(x[:-1]) * math.prod(kernel[1:]) * (x[-1] + 5))
@jax.custom_vjp
def _inverse_deviation(x, kernel):
    fine = jnp.einsum("bhwc,csd->bhwsd", x, kernel.astype(x.dtype))
    fine = fine.astype(jnp.promote_types(x.dtype, jnp.float32))
    return jax.lax.rsqrt(jnp.square(fine).mean(-1) + EPSILON)


def _inverse_deviation_forward(x, kernel):
    inverse = _inverse_deviation(x, kernel)
    return inverse, (x, kernel, inverse)


def _inverse_deviation_backward(residuals, gradient):
    x, kernel, inverse = residuals
    rounded = kernel.astype(x.dtype)
    # d inverse = -inverse^3 mean(fine d fine)
    scale = -gradient * inverse**3 / kernel.shape[-1]
    fine = jnp.einsum("bhwc,csd->bhwsd", x, rounded)
    dfine = (scale[..., None] * fine).astype(x.dtype)
    dx = jnp.einsum("bhwsd,csd->bhwc", dfine, rounded)
    dkernel = wide_einsum("bhwc,bhwsd->csd", x, dfine)
    return dx, dkernel.astype(kernel.dtype)


_inverse_deviation.defvjp(_inverse_deviation_forward, _inverse_deviation_backward)


def wide_einsum(spec: str, x: Float[Array, "..."], other: Float[Array, "..."]) -> Array:
    """Returns an einsum of inputs in x's dtype, summed in float32 at least; gradients in x's dtype.

    JAX's own gradient would be a float32 product of large maps.
    """
    return _wide_einsum(spec, *vary_alike(x, other))


@with_flops(None)
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _wide_einsum(spec, x, other):
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(spec, x, other.astype(x.dtype), preferred_element_type=wide)


def _wide_einsum_backward(spec, residuals, dy):
    x, other = residuals
    pull = jax.vjp(functools.partial(jnp.einsum, spec), x, other.astype(x.dtype))[1]
    dx, dother = pull(dy.astype(x.dtype))
    return dx, dother.astype(other.dtype)


_wide_einsum.defvjp(
    lambda spec, x, other: (_wide_einsum(spec, x, other), (x, other)), _wide_einsum_backward
)
