"""LayerNorm, alone, with a gate, or of the maps that the CTM blends."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.kernels.blend import pallas_tpu as blend_tpu
from mtmamba_jax.kernels.blend import pallas_triton as blend_triton
from mtmamba_jax.kernels.layer_norm import pallas_tpu, pallas_triton
from mtmamba_jax.kernels.manual_axes import vary_alike
from mtmamba_jax.models.ops.dispatch import with_flops, with_kernels

EPSILON = 1e-5  # of every LayerNorm, as in the official encoder and decoder


def layer_norm(
    x: Float[Array, "..."],
    scale: Float[Array, "..."],
    bias: Float[Array, "..."],
    gate: Float[Array, "..."] | None = None,
    *,
    axes: Sequence[int] = (-1,),
    batch_axis: int = 0,
    dtype: DTypeLike,
) -> Float[Array, "..."]:
    """Returns LayerNorm(x), times SiLU(gate) if there is a gate.

    LayerNorm(x) = (x - mean) / sqrt(variance + EPSILON) * scale + bias (Ba et al., 2016). The
    backward pass keeps x, the gate and two numbers per mean.

    Args:
      x: Input of any shape.
      scale, bias: Broadcast against `x`: each axis has size 1 or that of `x`.
      gate: Broadcast against `x`.
      axes: Axes to take the mean and the variance over.
      batch_axis: Axis of x that is split over the devices of a mesh in context.
      dtype: Dtype of the result; the statistics are float32 at least.
    """
    axes, dtype = tuple(axes), jnp.dtype(dtype)
    lead = (1,) * (x.ndim - scale.ndim)
    gates = [] if gate is None else [jnp.broadcast_to(gate, x.shape)]
    factors = (v.reshape(lead + v.shape) for v in (scale, bias))
    arrays = vary_alike(x, *factors, *gates)
    plain = functools.partial(_plain_layer_norm, axes, dtype)
    kernels, split = _choose_kernels(axes, dtype, *arrays[:2]), (True, False, False, True)
    return with_kernels(plain, kernels, arrays, split, batch_axis=batch_axis)


def _plain_layer_norm(axes, dtype, x, scale, bias, gate=None):
    if gate is None:
        return _layer_norm(axes, dtype, x, scale, bias)
    # Computed again in the backward pass: reading the result from memory would cost as much.
    return jax.checkpoint(
        lambda x, gate: (_layer_norm(axes, dtype, x, scale, bias) * jax.nn.silu(gate)).astype(dtype)
    )(x, gate)


def _layer_norm_flops(x, *_):
    return 5 * math.prod(x)


@with_flops(_layer_norm_flops)
@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _layer_norm(axes, dtype, x, scale, bias):
    return _layer_norm_forward(axes, dtype, x, scale, bias)[0]


def _layer_norm_forward(axes, dtype, x, scale, bias):
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = wide.mean(axes, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(axes, keepdims=True) + EPSILON)
    y = (wide - mean) * inverse * scale + bias
    return y.astype(dtype), (x, mean, inverse, scale)


def _layer_norm_backward(axes, dtype, residuals, dy):
    x, mean, inverse, scale = residuals

    def widen(x, mean, inverse, dy):
        return (x.astype(mean.dtype) - mean) * inverse, dy.astype(mean.dtype)

    normal, wide = widen(x, mean, inverse, dy)
    dnormal = wide * scale
    along = (dnormal * normal).mean(axes, keepdims=True)
    dx = inverse * (dnormal - dnormal.mean(axes, keepdims=True) - normal * along)
    # Computed again for the sums: if they were shared with dx, XLA would store them in float32.
    normal, wide = widen(*jax.lax.optimization_barrier((x, mean, inverse, dy)))
    shared = tuple(i for i, size in enumerate(scale.shape) if size == 1)
    dscale = jnp.sum(wide * normal, shared, keepdims=True)
    dbias = jnp.sum(wide, shared, keepdims=True)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(scale.dtype)


_layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _choose_kernels(axes, dtype, x, scale) -> dict[str, Callable[..., Array]]:
    """Returns kernels, if rows have one scale, or one for each part of x's first axis."""
    if x.ndim < 2 or axes != (-1,) or dtype not in (jnp.float32, jnp.bfloat16):
        return {}
    one_or_by_part = scale.shape[:-1] in ((1,) * (x.ndim - 1), (x.shape[0], *(1,) * (x.ndim - 2)))
    whole = scale.shape[-1] == x.shape[-1] and scale.dtype == jnp.float32
    if not (one_or_by_part and whole):
        return {}
    choices = {"cuda": (pallas_triton, x.shape[-1:]), "tpu": (pallas_tpu, x.shape[-2:])}
    return {
        platform: functools.partial(_fused_layer_norm, module.layer_norm, dtype, kept)
        for platform, (module, kept) in choices.items()
        if module.supports(x)
    }


def _fused_layer_norm(kernel, dtype, kept, x, scale, bias, gate=None):
    """Calls a kernel with x's axes but the groups and those that are `kept` as one."""
    groups, channels = scale.shape[0], scale.shape[-1]
    rows, gates = jax.tree.map(lambda v: v.reshape(groups, -1, *kept), (x, gate))
    scale, bias = (v.reshape(groups, channels) for v in (scale, bias))
    y: Any = kernel(rows, scale, bias, gates, EPSILON, dtype)
    return y.reshape(x.shape)


def blend(
    x: Float[Array, "s b h w c"],
    scale: Float[Array, "s c"],
    bias: Float[Array, "s c"],
    gate: Float[Array, "t b h w c"],
) -> Float[Array, "t b h w c"]:
    """Returns share * LayerNorm(x[-1]) + (1 - share) * LayerNorm(x[:-1]), share = sigmoid(gate).

    The backward pass keeps the arguments alone.

    Args:
      x: Maps of t tasks and, as the last, a shared one: s = t + 1. The result has their dtype.
      scale, bias: Parameters of each map's LayerNorm.
      gate: Broadcast against the tasks' maps.
    """
    gate = jnp.broadcast_to(gate, x[:-1].shape)
    x, scale, bias, gate = vary_alike(x, scale, bias, gate)

    # Computed again in the backward pass: reading the LayerNorm from memory would cost as much.
    @jax.checkpoint
    def plain(x, scale, bias, gate):
        factors = (v[:, None, None, None] for v in (scale, bias))
        normal, share = _layer_norm((-1,), x.dtype, x, *factors), jax.nn.sigmoid(gate)
        return (share * normal[-1:] + (1 - share) * normal[:-1]).astype(x.dtype)

    kernels = {}
    if scale.dtype == jnp.float32 and pallas_triton.supports(x):
        kernels["cuda"] = functools.partial(_fused_blend, blend_triton.blend, x.shape[-1:])
    if scale.dtype == jnp.float32 and blend_tpu.supports(x):
        kernels["tpu"] = functools.partial(_fused_blend, blend_tpu.blend, x.shape[-2:])
    return with_kernels(plain, kernels, (x, scale, bias, gate), (True, False, False, True))


def _fused_blend(kernel, kept, x, scale, bias, gate):
    """Calls a kernel with the maps' axes that are not `kept` as one."""
    rows, gates = (v.reshape(len(v), -1, *kept) for v in (x, gate))
    y: Any = kernel(rows, scale, bias, gates, EPSILON)
    return y.reshape(gate.shape)
