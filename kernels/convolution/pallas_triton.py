"""SiLU of a depthwise 3x3 convolution on CUDA GPUs, in Triton kernels.

    z = sum_ij kernel_ij x[h + i - 1, w + j - 1] + bias        y = z sigmoid(z)

A program goes down a strip of rows for a few columns and channels. It keeps three rows in
registers, each with its left and right neighbours, so that it reads x once from memory and twice
more from the cache. Letters: t task, b batch, h w height and width, d channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from mtmamba_jax.kernels.platform_check import triton_refusal

COLUMNS = 4
CHANNELS = 128
WARPS = 2
MIN_PROGRAMS = 4096
"""Fewer programs are cut into strips of rows."""
TAPS = [(i, j) for i in range(3) for j in range(3)]


class Strips(NamedTuple):
    """How the rows of an image are divided."""

    count: int
    rows: int


def choose_strips(shape: Sequence[int]) -> Strips:
    """Returns enough strips to keep a GPU busy, of eight rows at least."""
    t, b, h, w, d = shape
    programs = t * b * -(-w // COLUMNS) * (d // CHANNELS)
    count = max(1, min(-(-MIN_PROGRAMS // programs), h // 8))
    rows = -(-h // count)
    return Strips(-(-h // rows), rows)


def supports(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether programs that are traced here can have the kernels for maps like x."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16)
    return narrow and x.shape[-1] % CHANNELS == 0 and x.size > 0 and triton_refusal() is None


@jax.custom_vjp
def convolve_silu(
    x: Float[Array, "t b h w d"], kernel: Float[Array, "t 3 3 d"], bias: Float[Array, "t d"]
) -> Float[Array, "t b h w d"]:
    """Returns y in x's dtype; the backward pass keeps x alone."""
    return _forward(x, kernel, bias)


convolve_silu.defvjp(
    lambda x, kernel, bias: (_forward(x, kernel, bias), (x, kernel, bias)),
    lambda kept, dy: _backward(*kept, dy),
)


@jax.jit  # traced once per shape
@jax.enable_x64(False)
def _forward(x, kernel, bias):
    body = functools.partial(_convolve_forward, choose_strips(x.shape), x.shape[2:4])
    return _launch(body, [x], kernel, bias, [_like(x)])[0]


def _convolve_forward(strips, size, x, kernel, bias, y):
    taps, shift = _read_kernel(kernel), bias[...][None]

    def write(row, column, window):
        z = shift + sum(window[i][j] * taps[i][j] for i, j in TAPS)
        _write(y, row, column, size, z * jax.nn.sigmoid(z))

    _go_down(strips, size, x, write)


def _gradient_before_silu(x, kernel, bias, dy):
    """Returns the gradient of z in x's dtype: dy times the derivative of SiLU."""
    body = functools.partial(_convolve_silu_backward, choose_strips(x.shape), x.shape[2:4])
    return _launch(body, [x, dy], kernel, bias, [_like(x)])[0]


def _convolve_silu_backward(strips, size, x, dy, kernel, bias, dz):
    taps, shift = _read_kernel(kernel), bias[...][None]

    def write(row, column, window):
        z = shift + sum(window[i][j] * taps[i][j] for i, j in TAPS)
        gate = jax.nn.sigmoid(z)
        gradient = _read(dy, row, column, size) * gate * (1 + z * (1 - gate))
        _write(dz, row, column, size, gradient)

    _go_down(strips, size, x, write)


@jax.jit
@jax.enable_x64(False)
def _backward(x, kernel, bias, dy):
    """Returns the gradients of x, kernel and bias."""
    dz = _gradient_before_silu(x, kernel, bias, dy)
    t, d = bias.shape
    strips = choose_strips(x.shape)
    columns = pl.cdiv(x.shape[3], COLUMNS)
    sums = jax.ShapeDtypeStruct(
        (t, x.shape[1] * strips.count * columns, len(TAPS) + 1, d),
        jnp.float32,
        manual_axis_type=jax.typeof(x).manual_axis_type,
    )
    body = functools.partial(_convolve_backward, strips, x.shape[2:4])
    dx, sums = _launch(body, [dz, x], kernel, bias, [_like(x), sums])
    *dkernel, dbias = jnp.moveaxis(jnp.sum(sums, 1), 1, 0)
    return dx, jnp.stack(dkernel, 1).reshape(kernel.shape), dbias


def _convolve_backward(strips, size, dz, x, kernel, bias, dx, sums):
    del bias
    taps = _read_kernel(kernel)

    def add(row, column, window, found):
        value = _read(x, row, column, size)
        # dz at (h + i - 1, w + j - 1) was computed from x at (h, w) by the opposite tap.
        _write(dx, row, column, size, sum(window[i][j] * taps[2 - i][2 - j] for i, j in TAPS))
        *dkernel, dbias = found
        terms = [window[2 - i][2 - j] * value for i, j in TAPS]
        return [*map(jnp.add, dkernel, terms), dbias + window[1][1]]

    zeros = [jnp.zeros((COLUMNS, CHANNELS), jnp.float32)] * (len(TAPS) + 1)
    found = _go_down(strips, size, dz, add, zeros)
    for i, total in enumerate(found):
        sums[i, :] = jnp.sum(total, 0)


def _go_down(strips: Strips, size, source, visit: Callable, carry=None):
    """Calls `visit` for each row of a program's strip with the 3x3 neighbours of its columns."""
    first = pl.program_id(1) // pl.cdiv(size[1], COLUMNS) * strips.rows
    column = lax.rem(pl.program_id(1), pl.cdiv(size[1], COLUMNS)) * COLUMNS

    def read(row):
        return [_read(source, row, column + j - 1, size) for j in range(3)]

    def step(i, state):
        above, here, carry = state
        below = read(first + i + 1)
        found = visit(first + i, column, (above, here, below), *([] if carry is None else [carry]))
        return here, below, found

    rows = jnp.minimum(strips.rows, size[0] - first)
    state = (read(first - 1), read(first), carry)
    return lax.fori_loop(0, rows, step, state)[2]


def _read(ref, row, column, size):
    """Returns the columns of a row, float32, with zeros outside the image."""
    columns = column + lax.broadcasted_iota(jnp.int32, (COLUMNS, CHANNELS), 0)
    inside = (columns >= 0) & (columns < size[1]) & (row >= 0) & (row < size[0])
    at = ref.at[jnp.clip(row, 0, size[0] - 1), pl.ds(column, COLUMNS), :]
    return triton.load(at, mask=inside, other=0.0).astype(jnp.float32)


def _write(ref, row, column, size, value):
    columns = column + lax.broadcasted_iota(jnp.int32, (COLUMNS, CHANNELS), 0)
    at = ref.at[row, pl.ds(column, COLUMNS), :]
    triton.store(at, value.astype(ref.dtype), mask=columns < size[1])


def _read_kernel(kernel):
    return [[kernel[i, j, :][None] for j in range(3)] for i in range(3)]


def _like(x):
    axes = jax.typeof(x).manual_axis_type
    return jax.ShapeDtypeStruct(x.shape, x.dtype, manual_axis_type=axes)


def _launch(body, images, kernel, bias, outputs):
    t, b, h, w, d = images[0].shape
    strips = choose_strips(images[0].shape)
    columns = pl.cdiv(w, COLUMNS)
    image = pl.BlockSpec((None, None, h, w, CHANNELS), lambda q, p, c: (q // b, q % b, 0, 0, c))
    weights = pl.BlockSpec((None, 3, 3, CHANNELS), lambda q, p, c: (q // b, 0, 0, c))
    shift = pl.BlockSpec((None, CHANNELS), lambda q, p, c: (q // b, c))
    count = strips.count * columns
    partial = pl.BlockSpec(
        (None, None, len(TAPS) + 1, CHANNELS), lambda q, p, c: (q // b, q % b * count + p, 0, c)
    )
    blocks = {5: image, 4: partial}
    return pl.pallas_call(
        body,
        out_shape=outputs,
        grid=(t * b, count, d // CHANNELS),
        in_specs=[*(image for _ in images), weights, shift],
        out_specs=[blocks[len(v.shape)] for v in outputs],
        compiler_params=triton.CompilerParams(num_warps=WARPS, num_stages=1),
    )(*images, kernel, bias)
