"""LayerNorm with a backward pass that keeps little: the input and two numbers a pixel."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array

EPSILON = 1e-5  # of every LayerNorm, as in the official encoder and decoder


class LayerNorm(nnx.Module):
    """A LayerNorm over the channels of [... c]; statistics in float32 at least."""

    def __init__(self, features: int, *, dtype: jnp.dtype = jnp.float32):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(features))
        self.bias = nnx.Param(jnp.zeros(features))

    def __call__(self, x: Array) -> Array:
        """Normalises [... c] and returns it in the compute dtype."""
        return layer_norm(x, self.scale[...], self.bias[...], dtype=self.dtype)


class TaskLayerNorm(nnx.Module):
    """A LayerNorm over the channels of each task, [t b ... c]; statistics in float32 at least.

    With `joint`, the statistics are over all tasks' channels together: the LayerNorm of the
    concatenated features (Eq. 20) without concatenating them.
    """

    def __init__(
        self, tasks: int, features: int, *, joint: bool = False, dtype: jnp.dtype = jnp.float32
    ):
        self.axes = (0, -1) if joint else (-1,)
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((tasks, features)))
        self.bias = nnx.Param(jnp.zeros((tasks, features)))

    def __call__(self, x: Array) -> Array:
        """Normalises [t b ... c] and returns it in the compute dtype."""
        shape = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
        scale, bias = self.scale[...].reshape(shape), self.bias[...].reshape(shape)
        return layer_norm(x, scale, bias, axes=self.axes, dtype=self.dtype)


def layer_norm(
    x: Array, scale: Array, bias: Array, *, axes: Sequence[int] = (-1,), dtype: jnp.dtype
) -> Array:
    """Returns (x - mean) / sqrt(variance + EPSILON) * scale + bias (Ba et al., 2016).

    Args:
      x: any shape.
      scale: broadcast against `x`; each axis of it is 1 or that of `x`.
      bias: like `scale`.
      axes: that mean and variance are over.
      dtype: of the result.
    """
    lead = (1,) * (x.ndim - scale.ndim)
    scale, bias = scale.reshape(lead + scale.shape), bias.reshape(lead + bias.shape)
    return _layer_norm(tuple(axes), jnp.dtype(dtype), x, scale, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(axes, dtype, x, scale, bias):
    return _forward(axes, dtype, x, scale, bias)[0]


def _forward(axes, dtype, x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(axes, keepdims=True) + EPSILON)
    y = (wide - mean) * inverse * scale + bias
    return y.astype(dtype), (x, mean, inverse, scale)


def _backward(axes, dtype, residuals, dy):
    *inputs, scale = residuals

    def of(x, mean, inverse, dy):
        return (x.astype(mean.dtype) - mean) * inverse, dy.astype(mean.dtype)

    normal, wide = of(*inputs, dy)
    dnormal = wide * scale
    along = (dnormal * normal).mean(axes, keepdims=True)
    dx = inputs[2] * (dnormal - dnormal.mean(axes, keepdims=True) - normal * along)
    # Made again for the sums: shared with dx, XLA would write them in float32 in between.
    normal, wide = of(*jax.lax.optimization_barrier((*inputs, dy)))
    shared = tuple(i for i, size in enumerate(scale.shape) if size == 1)
    dscale = jnp.sum(wide * normal, shared, keepdims=True)
    dbias = jnp.sum(wide, shared, keepdims=True)
    return dx.astype(inputs[0].dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_layer_norm.defvjp(_forward, _backward)
