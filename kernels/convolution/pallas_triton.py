"""SiLU of a depthwise 3x3 convolution on CUDA GPUs: one Triton kernel forward and one backward.

    z = sum_ij kernel_ij x[h + i - 1, w + j - 1] + bias        y = z sigmoid(z)

A program goes down a strip of rows for a few columns and a block of channels. It keeps the last
rows in registers, a vector of channels for each pixel, and reads every number of its columns once.
The backward pass computes the gradient of z again at the pixels around its own: in memory it would
be written once and read three times.

Letters: t task, b batch, h w height and width, d channels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.platform_check import has_fixed_size, triton_refusal

COLUMNS = 4
CHANNELS = 128
WARPS = 2
MIN_PROGRAMS = 4096
"""Fewer programs are cut into strips of rows."""
TAPS = [(i, j) for i in range(3) for j in range(3)]

Row = list[Array]
"""Vectors of channels, one for each of some neighbouring columns."""


class Strips(NamedTuple):
    """How the rows of an image are divided."""

    count: int
    rows: int


def choose_strips(shape: Sequence[int]) -> Strips:
    """Returns enough strips to keep a GPU busy, of at least eight rows."""
    t, b, h, w, d = shape
    programs = t * b * pl.cdiv(w, COLUMNS) * (d // CHANNELS)
    count = max(1, min(pl.cdiv(MIN_PROGRAMS, programs), h // 8))
    rows = pl.cdiv(h, count)
    return Strips(pl.cdiv(h, rows), rows)


def supports(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether programs that are traced here can use the kernels for maps like x."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16)
    sizes = has_fixed_size(x) and x.shape[-1] % CHANNELS == 0
    return narrow and sizes and triton_refusal() is None


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
    return _launch(body, [x], kernel, bias, [shape_like(x, x.shape, x.dtype)])[0]


def _convolve_forward(strips, size, x, kernel, bias, y):
    taps, shift = _read_kernel(kernel), bias[...]

    def visit(row, column, rows):
        above, here = rows
        below = _read(x, row + 1, column - 1, COLUMNS + 2, size)
        for w in range(COLUMNS):
            z = _convolve([above, here, below], w, taps) + shift
            _write(y, row, column + w, size, z * jax.nn.sigmoid(z))
        return here, below

    def start(row, column):
        return tuple(_read(x, row + i, column - 1, COLUMNS + 2, size) for i in (-1, 0))

    _go_down(strips, size, start, visit)


@jax.jit
@jax.enable_x64(False)
def _backward(x, kernel, bias, dy):
    """Returns the gradients of x, kernel and bias."""
    t, b, h, w, d = x.shape
    strips = choose_strips(x.shape)
    partial = shape_like(
        x, (t, b * strips.count * pl.cdiv(w, COLUMNS), len(TAPS) + 1, d), jnp.float32
    )
    body = functools.partial(_convolve_backward, strips, (h, w))
    dx, sums = _launch(body, [x, dy], kernel, bias, [shape_like(x, x.shape, x.dtype), partial])
    sums = jnp.sum(sums, 1)
    return dx, sums[:, :-1].reshape(kernel.shape), sums[:, -1]


def _convolve_backward(strips, size, x, dy, kernel, bias, dx, sums):
    taps, shift = _read_kernel(kernel), bias[...]
    flipped = [[taps[2 - i][2 - j] for j in range(3)] for i in range(3)]

    def read(row, column):
        return _read(x, row, column - 2, COLUMNS + 4, size)

    def gradient(row, column, rows):
        """Returns the gradient of z in a row, zero outside the image as dy is."""
        found = _read(dy, row, column - 1, COLUMNS + 2, size)
        for w in range(COLUMNS + 2):
            z = _convolve(rows, w, taps) + shift
            gate = jax.nn.sigmoid(z)
            found[w] *= gate * (1 + z * (1 - gate))
        return found

    def start(row, column):
        def add_row(i, carry):
            (above, here), (_, dz) = carry
            below = read(row + i, column)
            return [here, below], [dz, gradient(row + i - 1, column, [above, here, below])]

        zero = jnp.zeros((CHANNELS,), jnp.float32)
        rows = [read(row + i, column) for i in (-2, -1)]
        # A loop, because two rows one after the other take twice as long to compile.
        carry = jax.lax.fori_loop(0, 2, add_row, (rows, [[zero] * (COLUMNS + 2)] * 2))
        return *carry, [zero] * (len(TAPS) + 1)

    def visit(row, column, carry):
        (here, below), (above_dz, here_dz), found = carry
        after = read(row + 2, column)
        below_dz = gradient(row + 1, column, [here, below, after])
        window = [above_dz, here_dz, below_dz]
        for w in range(COLUMNS):
            _write(dx, row, column + w, size, _convolve(window, w, flipped))
            # dz at (h + i - 1, w + j - 1) was computed from x at (h, w) by the opposite tap.
            terms = [window[2 - i][w + 2 - j] * here[w + 2] for i, j in TAPS]
            found = [
                total + term for total, term in zip(found, [*terms, here_dz[w + 1]], strict=True)
            ]
        return [below, after], [here_dz, below_dz], found

    for i, total in enumerate(_go_down(strips, size, start, visit)[2]):
        sums[i, :] = total


def _convolve(rows: Sequence[Row], first: int, taps: list[Row]) -> Array:
    """Returns the convolution at the pixel in the middle of 3x3, whose first column is `first`."""
    total: Any = sum(rows[i][first + j] * taps[i][j] for i, j in TAPS)
    return total


def _go_down(strips: Strips, size: Sequence[int], start: Callable, visit: Callable):
    """Visits the rows of a program's strip; returns the last state.

    Args:
      strips: The division of the rows.
      size: Height and width of the image.
      start: `start(row, column)` returns the state before the first row.
      visit: `visit(row, column, state)` returns the state after a row.
    """
    columns = pl.cdiv(size[1], COLUMNS)
    first = pl.program_id(1) // columns * strips.rows
    column = jax.lax.rem(pl.program_id(1), columns) * COLUMNS
    rows = jnp.minimum(strips.rows, size[0] - first)
    state = start(first, column)
    return jax.lax.fori_loop(0, rows, lambda i, state: visit(first + i, column, state), state)


def _read(ref, row, column, count: int, size: Sequence[int]) -> Row:
    """Returns `count` columns of a row, float32, with zeros outside the image."""
    inside_row = (row >= 0) & (row < size[0])
    row, found = jnp.clip(row, 0, size[0] - 1), []
    for w in range(count):
        inside = inside_row & (column + w >= 0) & (column + w < size[1])
        at = ref.at[row, jnp.clip(column + w, 0, size[1] - 1), :]
        value = triton.load(at, mask=jnp.full((CHANNELS,), inside), other=0.0)
        found.append(value.astype(jnp.float32))
    return found


def _write(ref, row, column, size: Sequence[int], value: Array) -> None:
    at = ref.at[row, jnp.minimum(column, size[1] - 1), :]
    triton.store(at, value.astype(ref.dtype), mask=jnp.full((CHANNELS,), column < size[1]))


def _read_kernel(kernel) -> list[Row]:
    return [[kernel[i, j, :] for j in range(3)] for i in range(3)]


def _launch(body, images, kernel, bias, outputs):
    t, b, h, w, d = images[0].shape
    count = choose_strips(images[0].shape).count * pl.cdiv(w, COLUMNS)
    image = pl.BlockSpec((None, None, h, w, CHANNELS), lambda q, p, c: (q // b, q % b, 0, 0, c))
    weights = pl.BlockSpec((None, 3, 3, CHANNELS), lambda q, p, c: (q // b, 0, 0, c))
    shift = pl.BlockSpec((None, CHANNELS), lambda q, p, c: (q // b, c))
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
