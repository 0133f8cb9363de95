"""What the kernels of the scan share (Pallas Mosaic GPU, Hopper).

A program scans one direction of one image for a block of channels, all 16 states of each. It walks
its segment of the reading order in tiles, which the copy engine brings to shared memory.
`pallas_gpu.py` prepares the arrays and adds the programs' results; `kernels/README.md` explains the
algorithm.

Shapes: q counts (task, direction, part of the states, image), g (task, image), s segments, m tiles
of a whole reading order; c is the channels of a block, [warps groups own], whose states are [warps
16 groups own].
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.mosaic.gpu.fragmented_array import TiledLayout
from jax.experimental.pallas import mosaic_gpu as plgpu

Array = jax.Array

STATES = 16  # of a program
WARPS = 4  # of a program, each with channels of its own
GROUPS = 8  # of channels in a warp
SHARERS = 4  # threads of a group, each with its share of the states
WIDE = 4  # channels of a group, at most
ROW = GROUPS * WIDE  # channels of a row of states in memory
OWN_STATES = STATES // SHARERS
TILE = 16  # pixels whose inputs are in shared memory, and from one saved state to the next
RUN = 4  # pixels unrolled in the backward pass, which keeps their states in registers


@dataclasses.dataclass(frozen=True)
class Scan:
    """What is static about a launch.

    Attributes:
      tasks, images: t and b.
      height, width: of the map, in pixels; arrays may hold more, see `padded`.
      columns, reverses: for each direction, whether it reads down columns and backwards.
      states_split: programs that share one direction's states, 16 each.
      own: channels of a group, WIDE or half of it, which makes more programs.
      segments: pieces of the reading order that run side by side.
      run: pixels unrolled.
    """

    tasks: int
    images: int
    height: int
    width: int
    columns: tuple[bool, ...]
    reverses: tuple[bool, ...]
    states_split: int
    own: int
    segments: int
    run: int = RUN

    @property
    def programs(self) -> int:
        """q: tasks x directions x parts of the states x images."""
        return self.tasks * len(self.columns) * self.states_split * self.images

    @property
    def tiles(self) -> int:
        """Most tiles of a reading order; they do not cross from line to line."""
        return max(lines * tiles for lines, tiles in self.lines)

    @property
    def lines(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Number of lines and tiles of a line, for columns and for rows."""
        return (
            (self.width, pl.cdiv(self.height, TILE)),
            (self.height, pl.cdiv(self.width, TILE)),
        )

    @property
    def full(self) -> bool:
        """Whether every tile has TILE pixels, in rows and in columns."""
        return self.height % TILE == self.width % TILE == 0

    def padded(self, multiple: int = 1) -> tuple[int, int]:
        """Height and width of the arrays, `multiple` dividing what is read in tiles.

        The copy engine wants room for one tile at least.
        """
        height, width = (
            pl.cdiv(max(size, TILE), multiple) * multiple for size in (self.height, self.width)
        )
        return (
            height if any(self.columns) else self.height,
            self.width if all(self.columns) else width,
        )

    @property
    def channels(self) -> int:
        """c, channels of a block."""
        return WARPS * GROUPS * self.own

    @property
    def spare(self) -> int:
        """Columns behind float32 channels in shared memory, so that rows begin in other banks."""
        return 32 // self.own

    @property
    def row(self) -> tuple[int, int, int]:
        """Shape of a block's channels."""
        return (WARPS, GROUPS, self.own)

    @property
    def block(self) -> tuple[int, int, int, int]:
        """Shape of a block's states."""
        return (WARPS, STATES, GROUPS, self.own)

    @property
    def stored(self) -> tuple[int, int, int]:
        """Shape of a block's states in memory.

        A row is of 32 channels in the order of a warp's threads with 4 channels each, so that it
        means the same to programs of any width.
        """
        return (self.channels // ROW, OWN_STATES, ROW * SHARERS)


class Threads:
    """Which thread holds what.

    Lane 4 group + part of a warp holds, of the channels of a group, the states of a part, such as 4
    channels of 4 states each. What depends on the channel alone, or on the state alone, is held by
    every thread it concerns. The order of lanes is the tensor cores' (`registers`).

    Args:
      scan: what is static.

    Attributes:
      block: layout of states.
      by_channel: of what depends on the channel alone, [warps groups own].
      by_state: of what depends on the state alone, [16].
      by_group: of what is summed over a thread's channels, [warps 16 groups].
    """

    def __init__(self, scan: Scan):
        self.shape, self.row = scan.block, scan.row
        tiling = plgpu.Tiling((self.shape, (OWN_STATES, 1, scan.own)))
        # Axes -7 to -4 of a tile: warps, parts of the states, groups, 1; then what a thread holds.
        layout = TiledLayout(tiling, (-7,), (-5, -6), -1)
        self.block, self.by_channel, self.by_state, self.by_group = (
            plgpu.Layout.TILED(v.tiling, v.warp_dims, v.lane_dims, v.vector_dim)
            for v in (layout, *(layout.reduce(axes) for axes in ((1,), (0, 2, 3), (3,))))
        )

    def channels(self, ref) -> Array:
        """A pixel's values [warps groups own] by channel, float32."""
        return plgpu.layout_cast(ref[...], self.by_channel).astype(jnp.float32)

    def states(self, ref) -> Array:
        """A pixel's values [16], at every channel."""
        return self._spread(plgpu.layout_cast(ref[...], self.by_state), (1,))

    def spread(self, values: Array) -> Array:
        """Values by channel, at every state."""
        return self._spread(values, (0, 2, 3))

    def zeros(self) -> Array:
        """States that are zero."""
        return plgpu.layout_cast(jnp.zeros(self.shape, jnp.float32), self.block)

    def zeros_by_channel(self) -> Array:
        """Values by channel that are zero."""
        return plgpu.layout_cast(jnp.zeros(self.row, jnp.float32), self.by_channel)

    def _spread(self, v: Array, dims: tuple[int, ...]) -> Array:
        return plgpu.layout_cast(lax.broadcast_in_dim(v, self.shape, dims), self.block)


def store(ref, value: Array) -> None:
    """Writes to shared memory, whatever the bank conflicts."""
    if hasattr(plgpu, "store"):  # since jax 0.12, where plain assignment refuses conflicts
        plgpu.store(ref, value, optimized=False)
    else:
        ref[...] = value


def meet(barrier) -> None:
    """All threads wait for one another, and see what the others stored in shared memory."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


@plgpu.inline_mgpu()
def meet_in_warp(_) -> None:
    """A warp's threads wait for one another, and see what the others stored in shared memory."""
    mosaic.utils.warp_barrier()


class Program:
    """Where one program is: its indices and the way through its segment.

    Args:
      scan: what is static.
      segment: which piece of the reading order; None for that of the grid.

    Attributes:
      block, q: of the grid.
      image, weight, dt, matrix: where its image, projection of the step sizes, low-rank step sizes
        and A are in their arrays.
      piece: where what belongs to its segment is.
      channels, rows: which channels and rows of states are its own, in arrays of all blocks.
      column, reverse: whether it reads down columns, and backwards.
      first, count: its first tile in reading order and how many there are, maybe none.
    """

    def __init__(self, scan: Scan, segment: Array | None = None):
        self.scan = scan
        parts = len(scan.columns) * scan.states_split
        self.block = lax.axis_index("block")
        self.q = lax.axis_index("q")
        image, task_part = lax.rem(self.q, scan.images), lax.div(self.q, scan.images)
        self.matrix = task_part  # of A
        task, part = lax.div(task_part, parts), lax.rem(task_part, parts)
        direction = lax.div(part, scan.states_split)
        self.image = task * scan.images + image  # g
        # Step sizes are shared by the parts of a direction's states.
        self.weight = lax.div(task_part, scan.states_split)
        self.dt = self.weight * scan.images + image
        segment = lax.axis_index("segment") if segment is None else segment
        self.piece = self.q * scan.segments + segment
        self.channels = pl.ds(self.block * scan.channels, scan.channels)
        rows = scan.stored[0]
        self.rows = pl.ds(self.block * rows, rows)
        self.column = _any_of(direction, scan.columns)
        self.reverse = _any_of(direction, scan.reverses)
        self.length = jnp.where(self.column, scan.height, scan.width)
        columns, rows = (lines * tiles for lines, tiles in scan.lines)
        self.tiles = jnp.where(self.column, columns, rows)
        share = lax.div(self.tiles + scan.segments - 1, scan.segments)
        self.first = jnp.minimum(segment * share, self.tiles)
        self.count = jnp.minimum(share, self.tiles - self.first)

    def tile(self, i) -> tuple:
        """Where in `saved`, line, start and number of pixels of the i-th tile in reading order."""
        index = jnp.where(self.reverse, self.tiles - 1 - i, i)
        # Both quotients, since division by a constant is cheap and by a variable it is not.
        (line, place), row = (
            (lax.div(index, tiles), lax.rem(index, tiles)) for _, tiles in self.scan.lines
        )
        line = jnp.where(self.column, line, row[0])
        start = jnp.where(self.column, place, row[1]) * TILE
        return self.q * self.scan.tiles + index, line, start, jnp.minimum(self.length - start, TILE)

    def runs(self, pixels) -> Array:
        """How many runs hold so many pixels."""
        return lax.div(pixels + self.scan.run - 1, self.scan.run)

    def pixel(self, j, runs) -> Array:
        """Where in its tile of `runs` the j-th pixel in reading order is.

        Step sizes past the line are zero and such a step changes nothing, so runs are always read
        whole.
        """
        return jnp.where(self.reverse, runs * self.scan.run - 1 - j, j)

    def each_way(self, copy: Callable) -> None:
        """Calls `copy(pixels)`, `pixels(line, start)` being a tile's index, for either way."""

        def down(line, start):
            return pl.ds(start, TILE), line

        def along(line, start):
            return line, pl.ds(start, TILE)

        if any(self.scan.columns) and not all(self.scan.columns):
            pl.when(self.column)(lambda: copy(down))
            pl.when(jnp.logical_not(self.column))(lambda: copy(along))
        else:  # arrays are padded for this way only
            copy(down if any(self.scan.columns) else along)

    def fetch(self, i, slot, images, dt, maps, ready) -> None:
        """Starts the copy engine on the i-th tile's inputs; it fills what is past the line with 0.

        Args:
          i: of the tile, in reading order.
          slot: of the shared memory that they go to.
          images: pairs of an image's array and its shared memory.
          dt, maps: the same for the low-rank step sizes and the maps.
          ready: barriers of the slots.
        """
        _, line, first, _ = self.tile(i)

        def copy(pixels):
            at = pixels(line, first)
            for source, to in (
                *((source.at[(self.image, *at, self.channels)], to) for source, to in images),
                (dt[0].at[(self.dt, *at)], dt[1]),
                (maps[0].at[(self.q, *at)], maps[1]),
            ):
                plgpu.copy_gmem_to_smem(source, to.at[slot], ready.at[slot])

        self.each_way(copy)


def _any_of(index, flags: Sequence[bool]):
    if len(set(flags)) == 1:
        return index < len(flags) if flags[0] else index < 0
    return functools.reduce(jnp.logical_or, [index == i for i, flag in enumerate(flags) if flag])


def launch(scan: Scan, body, arrays, outputs, scratch, segments: int | None = None):
    """Runs `body` in every program; the first of `arrays` is the image, the last is A."""
    results = plgpu.kernel(
        body,
        out_type=outputs,
        scratch_types=scratch,
        grid=(arrays[-1].shape[1] // scan.stored[0], scan.programs, segments or scan.segments),
        grid_names=("block", "q", "segment"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # ex2.approx: 2 units in the last place
            # Safe: what threads pass on in shared memory is behind `meet`, `meet_in_warp` or
            # commit_smem; a result is written over an input by the warp that has read it.
            unsafe_no_auto_barriers=True,
            reduction_scratch_bytes=128,  # no reduction uses it; the least there can be
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )(*arrays)
    # Inside shard_map results vary over the mesh axes that the image does; the call forgets it.
    axes = tuple(jax.typeof(arrays[0]).manual_axis_type.varying)
    return jax.tree.map(lambda v: lax.pcast(v, axes, to="varying") if axes else v, results)


def out_image(scan: Scan, images: int, channels: int, block: int, dtype=jnp.float32):
    """A result [images h w channels] that blocks of channels are written to.

    One block more than is used if there is but one: the copy engine would write a whole line's
    block as a run of bytes, past the line's end.
    """
    channels += block if channels == block else 0
    return jax.ShapeDtypeStruct((images, *scan.padded(), channels), dtype)


def by_thread(ref, scan: Scan):
    """[..., c] in shared memory as [..., warps groups own]."""
    return ref.reshape(*ref.shape[:-1], *scan.row)


def by_warp(ref, scan: Scan):
    """[..., c] in shared memory as [..., warps channels]."""
    return ref.reshape(*ref.shape[:-1], WARPS, GROUPS * scan.own)
