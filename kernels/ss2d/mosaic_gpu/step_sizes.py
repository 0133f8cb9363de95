"""Step sizes from their low-rank form, tile by tile, on the tensor cores.

    step = softplus(dt @ weight + bias)

They are never stored for an image. Tensor cores multiply bfloat16 and add in float32, so an array
of more digits is a sum of bfloat16 parts, and its products are more columns of one matrix product;
so is the bias.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import TILE, Scan, meet, store
from mtmamba_jax.kernels.ss2d.softplus import softplus

Array = jax.Array

# The products (part of dt, part of weight) by dt's dtype. bfloat16 weights as in every product of
# that dtype; three parts hold a float32, and what is left out is below its last digit.
PRODUCTS = {
    "bfloat16": ((0, 0),),
    "float32": ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0)),
}
BIAS_PARTS = 3
ROWS, COLUMNS = 8, 16  # as the tensor cores read a matrix; sizes are multiples of it


def columns(rank: int, dtype) -> int:
    """Returns the width of `operands`' matrices."""
    used = len(PRODUCTS[jnp.dtype(dtype).name]) * rank + BIAS_PARTS
    return pl.cdiv(used, COLUMNS) * COLUMNS


def operands(dt: Array, weight: Array, bias: Array) -> tuple[Array, Array]:
    """Two bfloat16 arrays whose matrix product is dt @ weight + bias.

    Args:
      dt: [t b h w k r].
      weight: [t k r d].
      bias: [t k d].

    Returns:
      [t*k*b h w columns] and [t*k d columns].
    """
    products = PRODUCTS[dt.dtype.name]
    dts = _parts(dt, 1 + max(i for i, _ in products))
    weights = _parts(weight, 1 + max(j for _, j in products))
    ones = jnp.ones((*dt.shape[:-1], BIAS_PARTS), jnp.bfloat16)
    left = jnp.concatenate([*(dts[i] for i, _ in products), ones], -1)
    biases = jnp.stack(_parts(bias, BIAS_PARTS), 2)
    right = jnp.concatenate([*(weights[j] for _, j in products), biases], 2)
    more = columns(dt.shape[-1], dt.dtype) - left.shape[-1]
    left = jnp.pad(left, [(0, 0)] * 5 + [(0, more)])
    right = jnp.pad(right, [(0, 0)] * 2 + [(0, more), (0, 0)])
    left = left.transpose(0, 4, 1, 2, 3, 5)
    right = right.swapaxes(2, 3)
    return left.reshape(-1, *left.shape[3:]), right.reshape(-1, *right.shape[2:])


def _parts(v: Array, count: int) -> list[Array]:
    """bfloat16 arrays whose sum is `v` to 8 digits (bits) each."""
    parts, rest = [], v.astype(jnp.float32)
    for _ in range(count):
        # Not a cast and back: the compiler may take that for nothing.
        part = lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    return parts


def scratch(scan: Scan, columns: int) -> list:
    """Shared memory for `Steps`: dt in two slots, the weight, a tile's step sizes; a barrier."""
    # As the tensor cores read it.
    tiled = (plgpu.TilingTransform((ROWS, COLUMNS)), plgpu.SwizzleTransform(2 * COLUMNS))
    return [
        plgpu.SMEM((2, TILE, columns), jnp.bfloat16, transforms=tiled),
        plgpu.SMEM((scan.channels, columns), jnp.bfloat16, transforms=tiled),
        plgpu.SMEM((TILE, scan.channels + scan.spare), jnp.float32),
        plgpu.Barrier(),
    ]


class Steps:
    """A program's step sizes, one tile at a time.

    Args:
      scan: what is static.
      memory: of `scratch`.
      exact: to float32; otherwise to more than bfloat16.

    Attributes:
      dt: where a tile of `operands`' first array goes, in two slots.
      values: step sizes [pixels channels] of the tile made last.
    """

    def __init__(self, scan: Scan, memory, *, exact: bool):
        self._shape, self._exact = (scan.channels, TILE), exact
        self.dt, self._weight, values, self._met = memory
        self.values = values.at[:, pl.ds(0, scan.channels)]

    def load_weight(self, source, barrier) -> None:
        """Brings a block's [channels columns] of `operands`' second array."""
        plgpu.copy_gmem_to_smem(source, self._weight, barrier)
        plgpu.barrier_wait(barrier)

    def make(self, slot, pixels) -> None:
        """Makes the step sizes of a tile that begins with `pixels` of its line, zero behind them.

        All threads call it, and none may still be reading the last tile's.
        """

        def multiply(sums):
            plgpu.wgmma(sums, self._weight, self.dt.at[slot].transpose((1, 0)))
            return plgpu.wgmma_accumulator_load(sums)

        z = pl.run_scoped(multiply, plgpu.ACC(self._shape, jnp.float32))
        pixel = plgpu.broadcasted_iota(jnp.int32, self._shape, 1, layout=plgpu.Layout.WGMMA)
        step = jnp.where(pixel < pixels, softplus(z, exact=self._exact), 0.0)
        # A thread's pairs of neighbouring pixels become pairs of neighbouring channels.
        step = plgpu.layout_cast(step, plgpu.Layout.WGMMA_TRANSPOSED)
        store(self.values.transpose((1, 0)), step)
        meet(self._met)
