"""SiLU of a depthwise 3x3 convolution on TPUs: one kernel forward and one backward.

    z = sum_ij kernel_ij x[h + i - 1, w + j - 1] + bias        y = z sigmoid(z)

A program has an image's 128 channels in VMEM and goes down its rows. The last three are in scratch
memory in float32, with zeros around them, so that a tap is a load at another address. The backward
pass computes the gradient of z again.

Letters: t task, b batch, h w height and width, d channels.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.platform_check import (
    COMPILER_RESERVE,
    has_fixed_size,
    padded_size,
    vmem_capacity,
)

SUBLANES, LANES = 8, 128  # shape of a vector register
TAPS = [(i, j) for i in range(3) for j in range(3)]
ROWS = 3  # of an image in scratch memory
BORDER = SUBLANES  # zeros on the left of a row, of which one is read; whole registers


def supports(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether the kernels can be used for maps like x."""
    narrow = x.dtype in (jnp.float32, jnp.bfloat16)
    if not narrow or not has_fixed_size(x) or x.shape[-1] % LANES:
        return False
    return _vmem_bytes(x) <= vmem_capacity()


def _vmem_bytes(x: Array | jax.ShapeDtypeStruct) -> int:
    """Returns the VMEM of a backward program: double-buffered images, and rows of two of them."""
    _, _, h, w, _ = x.shape
    image = h * padded_size(w, LANES) * x.dtype.itemsize
    rows = ROWS * (_columns(w) + 2 * BORDER) * LANES * 4
    return 6 * image + 2 * rows + COMPILER_RESERVE


def _columns(width: int) -> int:
    """Returns the columns of a row, rounded up to whole registers."""
    return pl.cdiv(width, SUBLANES) * SUBLANES


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
    return _launch(_convolve_forward, [x], kernel, bias, [shape_like(x, x.shape, x.dtype)])[0]


@jax.jit
@jax.enable_x64(False)
def _backward(x, kernel, bias, dy):
    """Returns the gradients of x, kernel and bias."""
    t, b, _, _, d = x.shape
    sums = shape_like(x, (t, b, len(TAPS) + 1, d), jnp.float32)
    outputs = [shape_like(x, x.shape, x.dtype), sums]
    dx, sums = _launch(_convolve_backward, [x, dy], kernel, bias, outputs)
    sums = jnp.sum(sums, 1)
    return dx, sums[:, :-1].reshape(kernel.shape), sums[:, -1]


def _launch(body, images, kernel, bias, outputs):
    t, b, h, w, d = images[0].shape
    image = pl.BlockSpec((None, None, h, w, LANES), lambda t, b, c: (t, b, 0, 0, c))
    sums = pl.BlockSpec((None, None, len(TAPS) + 1, LANES), lambda t, b, c: (t, b, 0, c))
    taps = pl.BlockSpec((None, len(TAPS), LANES), lambda t, b, c: (t, 0, c))
    shift = pl.BlockSpec((None, 1, LANES), lambda t, b, c: (t, 0, c))
    rows = pltpu.VMEM((ROWS, _columns(w) + 2 * BORDER, LANES), jnp.float32)
    return pl.pallas_call(
        body,
        name=body.__name__.strip("_"),
        grid=(t, b, d // LANES),
        in_specs=[*(image for _ in images), taps, shift],
        out_specs=[{5: image, 4: sums}[len(v.shape)] for v in outputs],
        out_shape=outputs,
        scratch_shapes=[rows for _ in images],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel",) * 3, vmem_limit_bytes=_vmem_bytes(images[0])
        ),
    )(*images, kernel.reshape(t, len(TAPS), d), bias[:, None])


def _convolve_forward(x, taps, shift, y, rows):
    height, width = x.shape[:2]
    rows[...] = jnp.zeros_like(rows)
    _store_row(rows, x, 0)

    @pl.loop(0, height)
    def _(h):
        _store_row(rows, x, h + 1)
        z = _convolve(rows, h, taps, width) + shift[...]
        y[h] = (z * jax.nn.sigmoid(z)).astype(y.dtype)


def _convolve_backward(x, dy, taps, shift, dx, sums, rows, gradients):
    height, width = x.shape[:2]
    columns = _columns(width)
    for ref in (rows, gradients):
        ref[...] = jnp.zeros_like(ref)
    _store_row(rows, x, 0)

    def visit(h, found):
        """Adds row h to the sums, and completes the row above it."""
        _store_row(rows, x, h + 1)
        _store_row(gradients, dy, h)
        z = _convolve(rows, h, taps, columns) + shift[...]
        gate = jax.nn.sigmoid(z)
        # Zero outside the image, as dy is.
        dz = _load(gradients, h, 0, columns) * gate * (1 + z * (1 - gate))
        gradients[lax.rem(h, ROWS), pl.ds(BORDER, columns)] = dz
        terms = [dz * _load(rows, h + i - 1, j - 1, columns) for i, j in TAPS]
        found = [
            total + jnp.sum(term.reshape(-1, SUBLANES, LANES), 0)
            for total, term in zip(found, [*terms, dz], strict=True)
        ]

        @pl.when(h > 0)
        def _():
            dx[h - 1] = _convolve(gradients, h - 1, taps, width, flipped=True).astype(dx.dtype)

        return found

    zeros = [jnp.zeros((SUBLANES, LANES), jnp.float32)] * (len(TAPS) + 1)
    # Past the last row there are zeros, which complete it.
    found = lax.fori_loop(0, height + 1, visit, zeros)
    sums[...] = jnp.concatenate([jnp.sum(v, 0, keepdims=True) for v in found])


def _store_row(rows, image, h) -> None:
    """Stores a row of an image among `rows`; zeros below the image."""
    height, width = image.shape[:2]
    row = image[jnp.minimum(h, height - 1)].astype(jnp.float32)
    rows[lax.rem(h, ROWS), pl.ds(BORDER, width)] = jnp.where(h < height, row, 0.0)


def _load(rows, h, shift: int, columns: int) -> Float[Array, "columns 128"]:
    """Loads columns of a row, which may start one to the left or right of the image."""
    return rows[lax.rem(h + ROWS, ROWS), pl.ds(BORDER + shift, columns)]


def _convolve(rows, h, taps, columns: int, *, flipped: bool = False) -> Float[Array, "columns 128"]:
    """Returns the convolution of a row, by the taps in reverse order if `flipped`."""
    total = jnp.zeros((columns, LANES), jnp.float32)
    for n, (i, j) in enumerate(TAPS):
        tap = len(TAPS) - 1 - n if flipped else n
        total += _load(rows, h + i - 1, j - 1, columns) * taps[pl.ds(tap, 1)]
    return total
