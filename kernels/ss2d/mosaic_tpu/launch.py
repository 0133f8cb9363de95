"""Which blocks of a call's arrays a program has (Pallas, TPU); shapes as in `way.py`.

The grid is (t, b, directions of the way, parts of the channels, tiles m); the tiles of an image
follow one another, the other axes may be split over cores. k counts a way's directions in results,
the call's directions in arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mtmamba_jax.kernels.ss2d.mosaic_tpu.memory import vector_memory
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import Way

Array = jax.Array

SEMANTICS = ("parallel",) * 4 + ("arbitrary",)  # of the grid's axes


class Blocks:
    """The block of each kind of array; `None` axes are one element.

    Args:
      way: what is static.
      backwards: whether the grid's tiles are against the reading order.

    Attributes:
      images: [t b h w d].
      directed: [t k b h w d], one image a direction.
      maps: [t b h w k*c].
      map_sums: [t b h w k*parts*c].
      saved: [t k b m lines pieces n d].
    """

    def __init__(self, way: Way, *, backwards: bool = False):
        def place(k, i):
            return way.place(k, way.tiles - 1 - i if backwards else i)

        def tile(k, i):
            return way.tile(k, way.tiles - 1 - i if backwards else i)

        self._way = way
        one, shape, maps = (None,), way.shape, way.maps
        self.images = pl.BlockSpec(
            (*one * 2, *shape, way.lanes), lambda t, b, k, part, i: (t, b, *place(k, i), part)
        )
        self.directed = pl.BlockSpec(
            (*one * 3, *shape, way.lanes), lambda t, b, k, part, i: (t, k, b, *place(k, i), part)
        )
        self.maps = pl.BlockSpec(
            (*one * 2, *shape, maps),
            lambda t, b, k, part, i: (t, b, *place(k, i), way.direction(k)),
        )
        self.map_sums = pl.BlockSpec(
            (*one * 2, *shape, maps),
            lambda t, b, k, part, i: (t, b, *place(k, i), k * way.parts + part),
        )
        self.saved = pl.BlockSpec(
            (*one * 4, way.lines, way.pieces, way.states, way.lanes),
            lambda t, b, k, part, i: (t, k, b, tile(k, i), 0, 0, 0, part),
        )

    def parameter(self, rows: int) -> pl.BlockSpec:
        """Of an array [t k rows d]."""
        return pl.BlockSpec(
            (None, None, rows, self._way.lanes),
            lambda t, b, k, part, i: (t, self._way.direction(k), 0, part),
        )

    def sums(self, rows: int) -> pl.BlockSpec:
        """Of an array [t k b rows d], which stays while a program walks its tiles."""
        return pl.BlockSpec(
            (None, None, None, rows, self._way.lanes), lambda t, b, k, part, i: (t, k, b, 0, part)
        )


def saved_shape(way: Way, t: int, b: int) -> tuple[int, ...]:
    """Of the states before each piece, [t k b m lines pieces n d]."""
    k, channels = len(way.reverses), way.parts * way.lanes
    return (t, k, b, way.tiles, way.lines, way.pieces, way.states, channels)


def launch(
    name: str,
    way: Way,
    kernel: Callable,
    inputs: Sequence[pl.BlockSpec],
    outputs: Sequence[tuple[tuple[int, ...], object, pl.BlockSpec]],
    scratch: Sequence,
    arrays: Sequence[Array],
) -> list[Array]:
    """Runs a kernel in every program.

    Args:
      name: of the kernel; in profiles and dumps its way follows.
      way: what is static.
      kernel: of the references: inputs, outputs, scratch.
      inputs: the arrays' blocks.
      outputs: shape, dtype and block of each result.
      scratch: memory of a program.
      arrays: x and the others.
    """
    t, b = arrays[0].shape[:2]
    axes = jax.typeof(arrays[0]).manual_axis_type  # of the mesh, inside shard_map
    return pl.pallas_call(
        kernel,
        name=f"{name}_{way.name}",
        grid=(t, b, len(way.reverses), way.parts, way.tiles),
        in_specs=inputs,
        out_specs=[spec for *_, spec in outputs],
        out_shape=[
            jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=axes) for shape, dtype, _ in outputs
        ],
        scratch_shapes=scratch,
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=SEMANTICS,
            vmem_limit_bytes=vector_memory(way, arrays[0].dtype),
        ),
    )(*arrays)
