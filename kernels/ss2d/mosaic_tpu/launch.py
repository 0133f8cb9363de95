"""Launches the TPU kernels: the grid, and each program's blocks of the arrays.

Shape letters are those of `tiling.py`. The grid is (t, b, directions of the tiling, parts of the
channels, tiles m). An image's tiles are read in sequence; the other axes may be split over cores. k
counts the tiling's directions in maps and results, the call's directions in parameters.
"""

from collections.abc import Callable, Sequence

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.ss2d.mosaic_tpu.memory import vmem_bytes
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import Tiling

SEMANTICS = ("parallel",) * 4 + ("arbitrary",)  # of the grid's axes


class Blocks:
    """A program's block of each kind of array; `backwards` visits tiles against the reading order.

    Attributes:
      image, directed_image: Blocks of arrays [t b h w d] and [k t b h w d].
      maps, map_gradients: Blocks of arrays [t b h w k*c] and [t b h w k*parts*c].
      saved: Block of the saved states [t k b m lines pieces n d].
    """

    def __init__(self, tiling: Tiling, *, backwards: bool = False):
        def position(k, i):
            return tiling.tile_position(k, tiling.tiles - 1 - i if backwards else i)

        def index(k, i):
            return tiling.tile_index(k, tiling.tiles - 1 - i if backwards else i)

        self._tiling = tiling
        one, shape, maps = (None,), tiling.shape, tiling.map_lanes  # None: an axis of one element
        self.image = pl.BlockSpec(
            (*one * 2, *shape, tiling.lanes), lambda t, b, k, part, i: (t, b, *position(k, i), part)
        )
        self.directed_image = pl.BlockSpec(
            (*one * 3, *shape, tiling.lanes),
            lambda t, b, k, part, i: (k, t, b, *position(k, i), part),
        )
        self.maps = pl.BlockSpec(
            (*one * 2, *shape, maps),
            lambda t, b, k, part, i: (t, b, *position(k, i), k),
        )
        self.map_gradients = pl.BlockSpec(
            (*one * 2, *shape, maps),
            lambda t, b, k, part, i: (t, b, *position(k, i), k * tiling.parts + part),
        )
        self.saved = pl.BlockSpec(
            (*one * 4, tiling.lines, tiling.pieces, tiling.states, tiling.lanes),
            lambda t, b, k, part, i: (t, k, b, index(k, i), 0, 0, 0, part),
        )

    def parameter(self, rows: int) -> pl.BlockSpec:
        """Returns the block of a parameter [t k rows d]."""
        return pl.BlockSpec(
            (None, None, rows, self._tiling.lanes),
            lambda t, b, k, part, i: (t, self._tiling.direction_index(k), 0, part),
        )

    def parameter_gradient(self, rows: int) -> pl.BlockSpec:
        """Returns the block of a gradient [t k b rows d], which stays in VMEM for all tiles."""
        return pl.BlockSpec(
            (None, None, None, rows, self._tiling.lanes),
            lambda t, b, k, part, i: (t, k, b, 0, part),
        )


def saved_shape(tiling: Tiling, t: int, b: int) -> tuple[int, ...]:
    """Returns the shape of the states before each piece, [t k b m lines pieces n d]."""
    k, channels = len(tiling.reverses), tiling.parts * tiling.lanes
    return (t, k, b, tiling.tiles, tiling.lines, tiling.pieces, tiling.states, channels)


def launch(
    name: str,
    tiling: Tiling,
    kernel: Callable,
    inputs: Sequence[pl.BlockSpec],
    outputs: Sequence[tuple[tuple[int, ...], DTypeLike, pl.BlockSpec]],
    scratch: Sequence,
    arrays: Sequence[jax.Array],
) -> list[jax.Array]:
    """Runs a kernel in every program of the grid.

    Args:
      name: Name of the kernel; in profiles and dumps the orientation is appended.
      tiling: Static description of the launch.
      kernel: Function of references to inputs, outputs and scratch memory.
      inputs: Block of each of `arrays`, of which x is the first.
      outputs: Shape, dtype and block of each result.
      scratch: Scratch memory of a program.
      arrays: Arrays to read.
    """
    t, b = arrays[0].shape[:2]
    return pl.pallas_call(
        kernel,
        name=f"{name}_{tiling.name}",
        grid=(t, b, len(tiling.reverses), tiling.parts, tiling.tiles),
        in_specs=inputs,
        out_specs=[spec for *_, spec in outputs],
        out_shape=[shape_like(arrays[0], shape, dtype) for shape, dtype, _ in outputs],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=SEMANTICS, vmem_limit_bytes=vmem_bytes(tiling, arrays[0].dtype)
        ),
    )(*arrays)
