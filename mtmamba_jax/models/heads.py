"""Output heads: from a stage's features to a map of the input's size (Section 3.5)."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models.layers import TaskLinear, linear
from mtmamba_jax.models.norm import EPSILON, TaskLayerNorm
from mtmamba_jax.models.patches import depth_to_space
from mtmamba_jax.tasks import Task


class ExpandHeads(nnx.Module):
    """Enlarges each task's feature 4x and projects each pixel to the task's channels.

    The c channels of a fine pixel, e = E x, are normalised and projected: P (scale (e - mean(e)) r
    + bias), r the inverse deviation. All of it but r is linear in x, so it is one small matrix, and
    with the mean taken out of E's columns, 1 / r^2 is the mean of e^2: the fine map of c channels
    is made for its squares only, and neither normalised nor put in place.
    """

    factor = 4

    def __init__(self, tasks: Sequence[Task], features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.names = tuple(task.name for task in tasks)
        self.dtype = dtype
        self.expand = TaskLinear(
            len(tasks), features, self.factor**2 * features, dtype=dtype, rngs=rngs
        )
        self.norm = TaskLayerNorm(len(tasks), features, dtype=dtype)
        self.projections = nnx.Dict(
            {task.name: linear(features, task.channels, dtype=dtype, rngs=rngs) for task in tasks}
        )

    def __call__(self, x: Array, *, training: bool = False) -> dict[str, jax.Array]:
        """Maps [t b h w c] to {task: float32 [b 4h 4w channels]}, in training as otherwise."""
        del training
        t, b, h, w, c = x.shape
        x = x.astype(self.dtype)
        kernel = self.expand.kernel[...].reshape(t, c, self.factor**2, c)
        kernel -= kernel.mean(-1, keepdims=True)
        logits = {}
        for i, name in enumerate(self.names):
            projection = self.projections[name]
            weight = self.norm.scale[i][:, None] * projection.kernel[...]
            bias = self.norm.bias[i] @ projection.kernel[...] + projection.bias[...]
            found = _product("bhwc,cse->bhwse", x[i], jnp.einsum("csd,de->cse", kernel[i], weight))
            found = found * _inverse_deviation(x[i], kernel[i])[..., None] + bias
            logits[name] = depth_to_space(found.reshape(b, h, w, -1), self.factor)
        return logits


@jax.custom_vjp
def _inverse_deviation(x: Array, kernel: Array) -> Array:
    """1 / sqrt(mean((x @ kernel)^2) + EPSILON) for [b h w c] and [c s d]: float32 [b h w s].

    The product is made again in the backward pass: it is 16 times as large as x.
    """
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
    dkernel = _product("bhwc,bhwsd->csd", x, dfine)
    return dx, dkernel.astype(kernel.dtype)


_inverse_deviation.defvjp(_inverse_deviation_forward, _inverse_deviation_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _product(spec: str, x: Array, other: Array) -> Array:
    """An einsum in x's dtype with sums and result in float32 at least; gradients in x's dtype."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.einsum(spec, x, other.astype(x.dtype), preferred_element_type=wide)


def _product_backward(spec, residuals, dy):
    x, other = residuals
    # Left to itself, JAX multiplies by the float32 gradient: a float32 product of large maps.
    pull = jax.vjp(functools.partial(jnp.einsum, spec), x, other.astype(x.dtype))[1]
    dx, dother = pull(dy.astype(x.dtype))
    return dx, dother.astype(other.dtype)


_product.defvjp(lambda spec, x, other: (_product(spec, x, other), (x, other)), _product_backward)
