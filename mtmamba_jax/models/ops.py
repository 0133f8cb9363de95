"""Operations with hand-written gradients, which keep or move less memory than JAX's own.

Each operation also registers how the paper counts its arithmetic; `paper.cost` reads the rules.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.devices.sharding import batch_axes
from mtmamba_jax.kernels.attention import pallas_triton as attention_kernels
from mtmamba_jax.kernels.blend import pallas_triton as blend_kernels
from mtmamba_jax.kernels.convolution import pallas_triton as convolution_kernels
from mtmamba_jax.kernels.layer_norm import pallas_triton as layer_norm_kernels
from mtmamba_jax.kernels.manual_axes import on_each_device, vary_alike
from mtmamba_jax.kernels.platform_check import by_platform, require_platform
from mtmamba_jax.models.windows import shift_mask, shift_regions

EPSILON = 1e-5  # of every LayerNorm, as in the official encoder and decoder

_REMEDY = "Trace the program inside `with mtmamba_jax.portable():`"

Rule = Callable[..., float]

PAPER_FLOPS: dict[str, Rule | None] = {}
"""How the paper counts an operation, by the name of its function.

A rule maps the shapes of the operation's arguments to multiply-adds. None counts the products
inside the operation, as for any other code.
"""


def with_flops(rule: Rule | None) -> Callable[[Any], Any]:
    """Returns a decorator that registers how the paper counts a `jax.custom_vjp` function."""

    def register(op):
        PAPER_FLOPS[op.__name__] = rule
        return op

    return register


def _on_gpus(
    plain: Callable[..., Array],
    fused: Callable[..., Array],
    arrays: Sequence[Array],
    split: Sequence[bool],
    *,
    batch_axis: int = 1,
    batch: int | None = None,
) -> Array:
    """Returns `fused(*arrays)` on CUDA GPUs, each with its own images, `plain(*arrays)` elsewhere.

    Args:
      plain: The operation in plain JAX, which the compiler can partition.
      fused: The same by kernels.
      arrays: Arguments.
      split: Whether each argument has the batch.
      batch_axis: Axis of the batch.
      batch: Number of images, by default the size of that axis.
    """
    axes = batch_axes()
    mesh = jax.sharding.get_abstract_mesh()
    batch = arrays[0].shape[batch_axis] if batch is None else batch
    if axes and batch % math.prod(mesh.shape[axis] for axis in axes):
        return plain(*arrays)

    def kernels(x, *others):
        x = require_platform(x, "The fused kernels of layers", ("cuda",), _REMEDY)
        run = on_each_device(fused, axes, split[: len(arrays)], batch_axis=batch_axis)
        return run(x, *others)

    return by_platform(*arrays, cuda=kernels, default=plain)


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
    if not _has_kernels(axes, dtype, *arrays[:2]):
        return plain(*arrays)
    fused = functools.partial(_fused_layer_norm, dtype)
    return _on_gpus(plain, fused, arrays, (True, False, False, True), batch_axis=batch_axis)


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


def _has_kernels(axes, dtype, x, scale) -> bool:
    """Returns whether rows have one scale, or one for each part of x's first axis."""
    if x.ndim < 2 or axes != (-1,) or dtype not in (jnp.float32, jnp.bfloat16):
        return False
    one_or_by_part = scale.shape[:-1] in ((1,) * (x.ndim - 1), (x.shape[0], *(1,) * (x.ndim - 2)))
    whole = scale.shape[-1] == x.shape[-1] and scale.dtype == jnp.float32
    return one_or_by_part and whole and layer_norm_kernels.supports(x)


def _fused_layer_norm(dtype, x, scale, bias, gate=None):
    groups, channels = scale.shape[0], scale.shape[-1]
    rows, gates = jax.tree.map(lambda v: v.reshape(groups, -1, channels), (x, gate))
    scale, bias = (v.reshape(groups, channels) for v in (scale, bias))
    y: Any = layer_norm_kernels.layer_norm(rows, scale, bias, gates, EPSILON, dtype)
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

    arrays = (x, scale, bias, gate)
    if not (scale.dtype == jnp.float32 and blend_kernels.supports(x)):
        return plain(*arrays)
    return _on_gpus(plain, _fused_blend, arrays, (True, False, False, True))


def _fused_blend(x, scale, bias, gate):
    rows, gates = (v.reshape(len(v), -1, v.shape[-1]) for v in (x, gate))
    y: Any = blend_kernels.blend(rows, scale, bias, gates, EPSILON)
    return y.reshape(gate.shape)


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

    float32 = kernel.dtype == bias.dtype == jnp.float32
    if not (float32 and convolution_kernels.supports(x)):
        return plain(x, kernel, bias)
    arrays = (x, kernel, bias)
    return _on_gpus(plain, convolution_kernels.convolve_silu, arrays, (True, False, False))


def attention(
    qkv: Float[Array, "m l 3 heads c"],
    bias: Float[Array, "heads l l"],
    shifted: tuple[int, int, int] | None,
) -> Float[Array, "m l heads c"]:
    """Returns softmax attention within each of m windows of l pixels.

    Without a fused kernel the backward pass keeps the weights in the compute dtype: recomputing
    them costs more than reading them.

    Args:
      qkv: Queries (not yet scaled), keys and values.
      bias: Position bias, added to the scores.
      shifted: Arguments of `shift_regions` for shifted windows, None for others.
    """
    qkv, bias = vary_alike(qkv, bias)

    def plain(qkv, bias, *_):
        return _attention(qkv, bias, shifted)

    if not (bias.dtype == jnp.float32 and attention_kernels.supports(qkv)):
        return plain(qkv, bias)
    arrays: list[Array] = [qkv, bias]
    if shifted:
        arrays.append(shift_regions(*shifted))
    fused, split = attention_kernels.attention, (True, False, False)
    # Devices get whole images, whose windows have the regions.
    images = len(qkv) // (len(arrays[2]) if shifted else 1)
    return _on_gpus(plain, fused, arrays, split, batch_axis=0, batch=images)


@with_flops(None)
@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _attention(qkv, bias, shifted):
    return _attention_forward(qkv, bias, shifted)[0]


def _attention_forward(qkv, bias, shifted):
    query, key, value = _split(qkv)
    scores = jnp.einsum("mqhc,mkhc->mhqk", query, key, preferred_element_type=jnp.float32) + bias
    if shifted:
        masked = jnp.float32(attention_kernels.MASKED)
        mask = jnp.where(shift_mask(*shifted), 0.0, masked)[None, :, None]
        by_image = scores.reshape(-1, mask.shape[1], *scores.shape[1:])
        scores = (by_image + mask).reshape(scores.shape)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    out = jnp.einsum("mhqk,mkhc->mqhc", weights, value)
    return out, (qkv, weights, out)


def _attention_backward(shifted, residuals, dout):
    del shifted  # its mask is a constant of the scores
    qkv, weights, out = residuals
    query, key, value = _split(qkv)
    dvalue = jnp.einsum("mhqk,mqhc->mkhc", weights, dout)
    dweights = jnp.einsum("mqhc,mkhc->mhqk", dout, value, preferred_element_type=jnp.float32)
    # The mean that softmax subtracts from dweights: sum_k weights dweights = out . dout.
    mean = jnp.einsum("mqhc,mqhc->mhq", out, dout, preferred_element_type=jnp.float32)
    dscores = weights * (dweights - mean[..., None])
    dbias = dscores.sum(0)
    dscores = dscores.astype(qkv.dtype)
    dquery = jnp.einsum("mhqk,mkhc->mqhc", dscores, key) * _scale(qkv)
    dkey = jnp.einsum("mhqk,mqhc->mkhc", dscores, query)
    return jnp.stack([dquery, dkey, dvalue], 2), dbias


def _split(qkv: Array) -> tuple[Array, Array, Array]:
    """Returns scaled query, key and value [m l heads c]."""
    return qkv[:, :, 0] * _scale(qkv), qkv[:, :, 1], qkv[:, :, 2]


def _scale(qkv: Array) -> float:
    return qkv.shape[-1] ** -0.5


_attention.defvjp(_attention_forward, _attention_backward)


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
    wide = x.astype(jnp.float32)
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
