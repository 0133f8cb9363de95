"""LayerNorm over the last axis on TPUs: one kernel forward and one backward.

    normal = (x - mean) / sqrt(variance + epsilon)        y = (normal * scale + bias) * SiLU(gate)

The gate is optional. Rows of pixels keep their axis, because joining axes would make XLA copy the
map. Letters: g groups, each with its own scale and bias, m rows, w pixels of a row, c channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.platform_check import (
    COMPILER_RESERVE,
    has_fixed_size,
    padded_size,
    vmem_capacity,
)

ELEMENTS = 2**17
"""Elements of a program's block of an array, at most; at least one row of pixels."""
LANES = 128


def supports(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether the kernels can be used for maps like x, [... w c]."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16)
    if not narrow or not has_fixed_size(x) or x.ndim < 3 or x.shape[-1] < LANES:
        return False
    return _vmem_bytes(x) <= vmem_capacity()


def _rows(x: Array | jax.ShapeDtypeStruct) -> int:
    """Returns the rows of a program."""
    return max(1, ELEMENTS // padded_size(*x.shape[-2:]))


def _vmem_bytes(x: Array | jax.ShapeDtypeStruct) -> int:
    """Returns the VMEM of a backward program: five double-buffered blocks, and float32 values."""
    pixels = _rows(x) * padded_size(*x.shape[-2:])
    return 10 * pixels * x.dtype.itemsize + 10 * pixels * 4 + COMPILER_RESERVE


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def layer_norm(
    x: Float[Array, "g m w c"],
    scale: Float[Array, "g c"],
    bias: Float[Array, "g c"],
    gate: Float[Array, "g m w c"] | None,
    epsilon: float,
    dtype: DTypeLike,
) -> Float[Array, "g m w c"]:
    """Returns y in `dtype`; the backward pass keeps the arguments alone."""
    return _forward(x, scale, bias, gate, epsilon, dtype)


layer_norm.defvjp(
    lambda x, scale, bias, gate, epsilon, dtype: (
        _forward(x, scale, bias, gate, epsilon, dtype),
        (x, scale, bias, gate),
    ),
    lambda epsilon, dtype, kept, dy: _backward(*kept, dy, epsilon),
)


def _block(x: Array) -> tuple[int, pl.BlockSpec]:
    """Returns the rows of a program, and its block of maps."""
    _, m, w, c = x.shape
    rows = min(m, _rows(x))
    return rows, pl.BlockSpec((None, rows, w, c), lambda i, j: (i, j, 0, 0))


@functools.partial(jax.jit, static_argnums=(4, 5))  # traced once per shape
@jax.enable_x64(False)
def _forward(x, scale, bias, gate, epsilon, dtype):
    g, m, _, c = x.shape
    rows, block = _block(x)
    group = pl.BlockSpec((None, 1, c), lambda i, j: (i, 0, 0))
    gates = [] if gate is None else [gate]
    return pl.pallas_call(
        functools.partial(_layer_norm_forward, epsilon),
        name="layer_norm_forward",
        out_shape=shape_like(x, x.shape, dtype),
        grid=(g, pl.cdiv(m, rows)),
        in_specs=[block, group, group, *(block for _ in gates)],
        out_specs=block,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel"), vmem_limit_bytes=_vmem_bytes(x)
        ),
    )(x, scale[:, None], bias[:, None], *gates)


def _layer_norm_forward(epsilon: float, x, scale, bias, *refs):
    *gates, y = refs
    normal, _ = normalize(x[...].astype(jnp.float32), epsilon)
    value = normal * scale[...] + bias[...]
    for gate in gates:
        value *= jax.nn.silu(gate[...].astype(jnp.float32))
    y[...] = value.astype(y.dtype)


@functools.partial(jax.jit, static_argnums=5)
@jax.enable_x64(False)
def _backward(x, scale, bias, gate, dy, epsilon):
    """Returns the gradients of x, scale, bias and gate."""
    g, m, _, c = x.shape
    rows, block = _block(x)
    group = pl.BlockSpec((None, 1, c), lambda i, j: (i, 0, 0))
    total = pl.BlockSpec((None, 2, c), lambda i, j: (i, 0, 0))
    gates = [] if gate is None else [gate]
    sums, dx, *dgate = pl.pallas_call(
        functools.partial(_layer_norm_backward, epsilon, m),
        name="layer_norm_backward",
        out_shape=[
            shape_like(x, (g, 2, c), jnp.float32),
            *(shape_like(v, v.shape, v.dtype) for v in (x, *gates)),
        ],
        grid=(g, pl.cdiv(m, rows)),
        in_specs=[group, group, block, block, *(block for _ in gates)],
        out_specs=[total, block, *(block for _ in gates)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=_vmem_bytes(x)
        ),
    )(scale[:, None], bias[:, None], dy, x, *gates)
    return dx, sums[:, 0], sums[:, 1], dgate[0] if dgate else None


def _layer_norm_backward(epsilon: float, m: int, scale, bias, dy, x, *refs):
    gates = refs[: len(refs) // 2 - 1]
    sums, dx, *dgates = refs[len(gates) :]
    first = pl.program_id(1) * dx.shape[0]
    normal, inverse = normalize(x[...].astype(jnp.float32), epsilon)
    gradient = dy[...].astype(jnp.float32)
    for gate, dgate in zip(gates, dgates, strict=True):
        v = gate[...].astype(jnp.float32)
        share = jax.nn.sigmoid(v)
        slope = share * (1 + v * (1 - share))
        dgate[...] = (gradient * (normal * scale[...] + bias[...]) * slope).astype(dgate.dtype)
        gradient *= v * share
    dx[...] = normalize_gradient(gradient * scale[...], normal, inverse).astype(dx.dtype)

    @pl.when(pl.program_id(1) == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    # The last block may go past the map, where it holds anything.
    inside = first + lax.broadcasted_iota(jnp.int32, dx.shape, 0) < m
    for i, v in enumerate((gradient * normal, gradient)):
        sums[pl.ds(i, 1)] += jnp.sum(jnp.where(inside, v, 0.0), (0, 1))[None]


def normalize(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Returns normal values and the inverse deviations."""
    x -= jnp.mean(x, -1, keepdims=True)
    inverse = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + epsilon)
    return x * inverse, inverse


def normalize_gradient(gradient: Array, normal: Array, inverse: Array) -> Array:
    """Returns the gradient of rows from that of their normal values."""
    mean, along = (jnp.mean(v, -1, keepdims=True) for v in (gradient, gradient * normal))
    return inverse * (gradient - mean - normal * along)
