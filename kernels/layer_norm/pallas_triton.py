"""LayerNorm over the last axis on CUDA GPUs: one Triton kernel forward and one backward.

    normal = (x - mean) / sqrt(variance + epsilon)        y = (normal * scale + bias) * SiLU(gate)

The gate is optional. Letters: g groups, each with its own scale and bias, m rows, c channels.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.platform_check import has_fixed_size, triton_refusal

ELEMENTS = 2048
"""Upper limit of the elements of an array that a program holds at once; at least one row."""
PROGRAMS = 1056
"""Programs of the backward pass, which add up the gradients of scale and bias of their rows."""
WARPS = 4
MULTIPLE = 32
"""Channels are a multiple of this: a smaller power of two would leave most lanes idle."""
MAX_PARTS = 8


class Block(NamedTuple):
    """What a program holds of an array: some rows, and their channels in parts.

    Triton's arrays in registers have powers of two as sizes, but 96, 192, ... channels do not.
    """

    rows: int
    parts: int
    width: int

    @property
    def channels(self) -> int:
        """Channels of all parts."""
        return self.parts * self.width

    def slices(self) -> list:
        """Returns the channels of each part."""
        return [pl.ds(i * self.width, self.width) for i in range(self.parts)]


def choose_block(rows: int, channels: int, elements: int = ELEMENTS) -> Block:
    """Returns the block of arrays with some number of rows, which it divides.

    Args:
      rows: Rows of the arrays.
      channels: Channels of a row.
      elements: Upper limit of the elements of a block, which has at least one row.
    """
    width = channels & -channels
    most = max(1, elements // channels)
    return Block(min(rows & -rows, 1 << (most.bit_length() - 1)), channels // width, width)


def supports(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether programs that are traced here can use the kernels for rows like x's."""
    narrow, channels = x.dtype in (jnp.float32, jnp.bfloat16), x.shape[-1]
    if not (narrow and has_fixed_size(x)) or channels % MULTIPLE or channels > 2 * ELEMENTS:
        return False
    return choose_block(1, channels).parts <= MAX_PARTS and triton_refusal() is None


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def layer_norm(
    x: Float[Array, "g m c"],
    scale: Float[Array, "g c"],
    bias: Float[Array, "g c"],
    gate: Float[Array, "g m c"] | None,
    epsilon: float,
    dtype: DTypeLike,
) -> Float[Array, "g m c"]:
    """Returns y in `dtype`; the backward pass keeps x, the gate and two numbers per row."""
    return _forward(x, scale, bias, gate, epsilon, dtype)[0]


def _keep(x, scale, bias, gate, epsilon, dtype):
    y, *statistics = _forward(x, scale, bias, gate, epsilon, dtype)
    return y, (x, scale, bias, gate, *statistics)


layer_norm.defvjp(_keep, lambda epsilon, dtype, kept, dy: _backward(*kept, dy))


@functools.partial(jax.jit, static_argnums=(4, 5))  # traced once per shape
@jax.enable_x64(False)
def _forward(x, scale, bias, gate, epsilon, dtype):
    """Returns y, and the rows' means and inverse standard deviations [g m]."""
    g, m, c = x.shape
    block = choose_block(m, c)
    row = pl.BlockSpec((None, block.rows, c), lambda i, j: (i, j, 0))
    number = pl.BlockSpec((None, block.rows), lambda i, j: (i, j))
    group = pl.BlockSpec((None, c), lambda i, j: (i, 0))
    statistic = shape_like(x, (g, m), jnp.float32)
    gates = [] if gate is None else [gate]
    return pl.pallas_call(
        functools.partial(_layer_norm_forward, block, epsilon),
        out_shape=[shape_like(x, x.shape, dtype), statistic, statistic],
        grid=(g, m // block.rows),
        in_specs=[row, group, group, *(row for _ in gates)],
        out_specs=[row, number, number],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(x, scale, bias, *gates)


def _layer_norm_forward(block: Block, epsilon: float, x, scale, bias, *refs):
    *gates, y, mean, inverse = refs
    parts = [x[:, part].astype(jnp.float32) for part in block.slices()]
    normals, mean[...], inverse[...] = normalize(block, epsilon, parts)
    for part, v in zip(block.slices(), normals, strict=True):
        value = v * scale[part][None] + bias[part][None]
        for gate in gates:
            value *= jax.nn.silu(gate[:, part].astype(jnp.float32))
        y[:, part] = value.astype(y.dtype)


@jax.jit
@jax.enable_x64(False)
def _backward(x, scale, bias, gate, mean, inverse, dy):
    """Returns the gradients of x, scale, bias and gate."""
    g, m, c = x.shape
    block = choose_block(m, c)
    blocks = m // block.rows
    each = pl.cdiv(blocks, max(1, PROGRAMS // g))  # blocks of a program
    programs = pl.cdiv(blocks, each)
    group = pl.BlockSpec((None, c), lambda i, j: (i, 0))
    rows = pl.BlockSpec((None, m, c), lambda i, j: (i, 0, 0))
    numbers = pl.BlockSpec((None, m), lambda i, j: (i, 0))
    partial = pl.BlockSpec((None, None, 2, c), lambda i, j: (i, j, 0, 0))
    sums = shape_like(x, (g, programs, 2, c), jnp.float32)
    gates = [] if gate is None else [gate]
    sums, dx, *dgate = pl.pallas_call(
        functools.partial(_layer_norm_backward, block, blocks, each),
        out_shape=[sums, *(shape_like(v, v.shape, v.dtype) for v in (x, *gates))],
        grid=(g, programs),
        in_specs=[group, group, numbers, numbers, rows, rows, *(rows for _ in gates)],
        out_specs=[partial, rows, *(rows for _ in gates)],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(scale, bias, mean, inverse, dy, x, *gates)
    sums = jnp.sum(sums, 1)
    return dx, sums[:, 0], sums[:, 1], dgate[0] if dgate else None


def _layer_norm_backward(
    block: Block, blocks: int, each: int, scale, bias, mean, inverse, dy, x, *refs
):
    gates = refs[: len(refs) // 2 - 1]
    totals, dx, *dgates = refs[len(gates) :]
    slices, first = block.slices(), pl.program_id(1) * each
    scales, biases = ([v[part][None] for part in slices] for v in (scale, bias))

    def add_rows(i, sums):
        rows = pl.ds((first + i) * block.rows, block.rows)
        middle, factor = mean[rows][:, None], inverse[rows][:, None]
        gradients = [dy[rows, part].astype(jnp.float32) for part in slices]
        normals = [(x[rows, part].astype(jnp.float32) - middle) * factor for part in slices]
        for gate, dgate in zip(gates, dgates, strict=True):
            for p, part in enumerate(slices):
                v = gate[rows, part].astype(jnp.float32)
                share = jax.nn.sigmoid(v)
                ungated = normals[p] * scales[p] + biases[p]
                slope = share * (1 + v * (1 - share))
                dgate[rows, part] = (gradients[p] * ungated * slope).astype(dgate.dtype)
                gradients[p] *= v * share
        scaled = [v * s for v, s in zip(gradients, scales, strict=True)]
        for part, v in zip(slices, normalize_gradient(block, scaled, normals, factor), strict=True):
            dx[rows, part] = v.astype(dx.dtype)
        terms = [v * n for v, n in zip(gradients, normals, strict=True)]
        return jax.tree.map(jnp.add, sums, (terms, gradients))

    zeros = [jnp.zeros((block.rows, block.width), jnp.float32)] * block.parts
    count = jnp.minimum(each, blocks - first)
    found = lax.fori_loop(0, count, add_rows, (zeros, zeros))
    for i, sums in enumerate(found):
        for part, v in zip(slices, sums, strict=True):
            totals[i, part] = jnp.sum(v, 0)


def normalize(
    block: Block, epsilon: float, parts: Sequence[Array]
) -> tuple[list[Array], Array, Array]:
    """Returns the normal values of rows in parts, and the rows' means and inverse deviations."""
    mean = _sum(parts) / block.channels
    parts = [v - mean[:, None] for v in parts]
    inverse = lax.rsqrt(_sum([v * v for v in parts]) / block.channels + epsilon)
    return [v * inverse[:, None] for v in parts], mean, inverse


def normalize_gradient(
    block: Block, gradients: Sequence[Array], normals: Sequence[Array], inverse: Array
) -> list[Array]:
    """Returns the gradient of rows from that of their normal values, all in parts.

    The inverse deviations are a column.
    """
    products = [v * n for v, n in zip(gradients, normals, strict=True)]
    mean, along = (_sum(v)[:, None] / block.channels for v in (gradients, products))
    return [inverse * (v - mean - n * along) for v, n in zip(gradients, normals, strict=True)]


def _sum(parts: Sequence[Array]) -> Array:
    """Sums rows in parts, which are added first: sums over lanes and warps take longer."""
    return jnp.sum(functools.reduce(jnp.add, parts), 1)
