"""Computes step sizes from their low-rank form, tile by tile, on the tensor cores.

    step = softplus(dt @ weight + bias)

Step sizes are never stored for a whole image. The tensor cores multiply bfloat16 and add in
float32, so a float32 array is split into a sum of bfloat16 parts, whose products are further
columns of the same matrix product; so is the bias.
"""

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.mosaic.gpu.mma import MMALayouts, mma
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxlib.mlir import ir
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.common import softplus
from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import TILE, Scan, inline_mgpu, store, sync_threads

# The products (part of dt, part of weight) by dt's dtype. With bfloat16 the weight is rounded, as
# in every product of that dtype. Three parts hold a float32; the products left out are below its
# last bit.
PRODUCTS = {"bfloat16": ((0, 0),), "float32": ((0, 0), (0, 1), (1, 0), (1, 1), (0, 2), (2, 0))}
BIAS_PARTS = 3
ROWS, COLUMNS = 8, 16  # tile in which the tensor cores read a matrix; sizes are multiples of it
# The order in which they read it. jax 0.12 leaves methods of these classes abstract.
_TRANSFORMS = (
    plgpu.TilingTransform((ROWS, COLUMNS)),  # pyright: ignore[reportAbstractUsage]
    plgpu.SwizzleTransform(2 * COLUMNS),  # pyright: ignore[reportAbstractUsage]
)
_FLOAT32 = jnp.dtype(jnp.float32)


def operand_columns(rank: int, dtype: DTypeLike) -> int:
    """Returns the width of the matrices of `operands`."""
    used = len(PRODUCTS[jnp.dtype(dtype).name]) * rank + BIAS_PARTS
    return pl.cdiv(used, COLUMNS) * COLUMNS


def operands(
    dt: Float[Array, "t b h w k r"], weight: Float[Array, "t k r d"], bias: Float[Array, "t k d"]
) -> tuple[Float[Array, "t*k*b h w columns"], Float[Array, "t*k d columns"]]:
    """Returns two bfloat16 arrays whose matrix product is dt @ weight + bias."""
    products = PRODUCTS[dt.dtype.name]
    dts = _split(dt, 1 + max(i for i, _ in products))
    weights = _split(weight, 1 + max(j for _, j in products))
    ones = jnp.ones((*dt.shape[:-1], BIAS_PARTS), jnp.bfloat16)
    left = jnp.concatenate([*(dts[i] for i, _ in products), ones], -1)
    biases = jnp.stack(_split(bias, BIAS_PARTS), 2)
    right = jnp.concatenate([*(weights[j] for _, j in products), biases], 2)
    more = operand_columns(dt.shape[-1], dt.dtype) - left.shape[-1]
    left = jnp.pad(left, [(0, 0)] * 5 + [(0, more)])
    right = jnp.pad(right, [(0, 0)] * 2 + [(0, more), (0, 0)])
    left = left.transpose(0, 4, 1, 2, 3, 5)
    right = right.swapaxes(2, 3)
    return left.reshape(-1, *left.shape[3:]), right.reshape(-1, *right.shape[2:])


def _split(v: Array, count: int) -> list[Array]:
    """Returns bfloat16 arrays that add up to `v`, each with 8 more significant bits."""
    parts, rest = [], v.astype(jnp.float32)
    for _ in range(count):
        # Not a cast to bfloat16 and back, which the compiler may remove.
        part = lax.reduce_precision(rest, exponent_bits=8, mantissa_bits=7)
        parts.append(part.astype(jnp.bfloat16))
        rest = rest - part
    return parts


def scratch(scan: Scan, columns: int) -> list:
    """Returns the memory of `Steps`: two slots of dt, weight, a tile's step sizes, a barrier."""
    return [
        plgpu.SMEM((2, TILE, columns), jnp.bfloat16, transforms=_TRANSFORMS),
        plgpu.SMEM((scan.channels, columns), jnp.bfloat16, transforms=_TRANSFORMS),
        plgpu.SMEM((TILE, scan.channels + scan.bank_padding), jnp.float32),
        plgpu.Barrier(),
    ]


def _multiply(weight, dt, shape: tuple[int, int]) -> Float[Array, "channels pixels"]:
    """Returns weight @ dt.T, by the matrix instruction that all GPUs since Ampere have."""
    tiled = plgpu.RefType(_TRANSFORMS)

    @inline_mgpu(
        arg_types=(tiled, tiled),
        return_type=plgpu.ShapeDtypeStruct(shape, _FLOAT32, layout=plgpu.Layout.WGMMA),
    )
    def run(_, weight, dt):
        layouts = MMALayouts(ir.BF16Type.get())
        dt = mosaic.utils.memref_transpose(dt, (1, 0, 3, 2))
        left = mosaic.FragmentedArray.load_tiled(weight, 2 * COLUMNS, layout=layouts.lhs)
        right = mosaic.FragmentedArray.load_tiled(dt, 2 * COLUMNS, layout=layouts.rhs)
        zero = mosaic.utils.c(0.0, ir.F32Type.get())
        sums = mosaic.FragmentedArray.splat(zero, shape, layouts.acc)
        return mma(sums, left, right)

    return run(weight, dt)


class Steps:
    """A program's step sizes, one tile at a time, in the `memory` requested by `scratch`.

    Attributes:
      dt: Double buffer for tiles of the first array of `operands`.
      values: Step sizes of the last computed tile, [pixels channels].
    """

    def __init__(self, scan: Scan, memory, *, exact: bool):
        self._shape, self._exact = (scan.channels, TILE), exact
        self.dt, self._weight, values, self._barrier = memory
        self.values = values.at[:, pl.ds(0, scan.channels)]

    def load_weight(self, source, barrier) -> None:
        """Copies a block's [channels columns] of the second array of `operands`."""
        plgpu.copy_gmem_to_smem(source, self._weight, barrier)
        plgpu.barrier_wait(barrier)

    def compute(self, slot, pixels) -> None:
        """Computes the step sizes of the tile in `slot` of dt; zeros past its first `pixels`.

        All threads must call it, when none reads the previous tile's step sizes any more.
        """

        z = _multiply(self._weight, self.dt.at[slot], self._shape)
        pixel = plgpu.broadcasted_iota(jnp.int32, self._shape, 1, layout=plgpu.Layout.WGMMA)
        step = jnp.where(pixel < pixels, softplus(z, exact=self._exact), 0.0)
        # Changes a thread's pairs from neighbouring pixels to neighbouring channels.
        step = plgpu.layout_cast(step, plgpu.Layout.WGMMA_TRANSPOSED)
        store(self.values.transpose((1, 0)), step)
        sync_threads(self._barrier)
