"""What the GPU kernels share: their launch, the layout of threads, and a program's tiles.

Pallas Mosaic GPU, for Hopper and data-center Blackwell GPUs. A program scans one direction of one
image for a block of channels with 16 states each. It reads its segment of the reading order in
tiles, which the copy engine (TMA) brings to shared memory. `pallas_gpu.py` prepares the arrays and
sums the programs' results; `docs/kernels.md` explains the algorithm.

Letters: q (task, direction, part of the states, image), g (task, image), s segments, m tiles of a
whole reading order, c channels of a block, e rows of stored states, split parts of the states. A
block's channels have the shape [warps groups group_channels], its states [warps 16 groups
group_channels].

In the kernels, the suffix _g is for arrays in global memory, _s for shared memory, _v and _w for
views of shared memory by thread and by warp.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.mosaic.gpu.fragmented_array import TiledLayout
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from mtmamba_jax.kernels.ss2d.common import any_of

STATES = 16  # per program
WARPS = 4  # per program, each with channels of its own
GROUPS = 8  # groups of channels per warp
GROUP_THREADS = 4  # threads that share a group's states
GROUP_CHANNELS = 4  # channels of a group, at most
ROW_CHANNELS = GROUPS * GROUP_CHANNELS  # channels of a row of stored states
THREAD_STATES = STATES // GROUP_THREADS
TILE = 16  # pixels per copy to shared memory, and from one saved state to the next
RUN = 4  # pixels unrolled in the backward pass, whose states stay in registers


@dataclasses.dataclass(frozen=True)
class Scan:
    """Static description of a launch.

    Attributes:
      tasks: Number of tasks, t.
      images: Batch size, b.
      height, width: Size of the image in pixels; arrays may be larger, see `padded_size`.
      columns, reverses: See `common.Directions`.
      states_split: Programs that share the states of a direction, 16 each.
      group_channels: Channels of a group: `GROUP_CHANNELS`, or half of that for more programs.
      segments: Pieces of the reading order, each scanned by programs of its own.
      run: Consecutive pixels that are unrolled.
      chained: Whether a segment starts from the state that the one before it has passed on. Else
        all segments are scanned at the same time, from states that `summaries` finds.
    """

    tasks: int
    images: int
    height: int
    width: int
    columns: tuple[bool, ...]
    reverses: tuple[bool, ...]
    states_split: int
    group_channels: int
    segments: int
    run: int = RUN
    chained: bool = False

    @property
    def programs(self) -> int:
        """Tasks x directions x parts of the states x images (q)."""
        return self.tasks * len(self.columns) * self.states_split * self.images

    @property
    def tiles(self) -> int:
        """Tiles of the longest reading order. Tiles do not continue on the next line."""
        return max(lines * tiles for lines, tiles in self.lines)

    @property
    def lines(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Number of lines and tiles per line, for columns and for rows."""
        return ((self.width, pl.cdiv(self.height, TILE)), (self.height, pl.cdiv(self.width, TILE)))

    @property
    def has_full_tiles(self) -> bool:
        """Whether every tile has TILE pixels, in rows and in columns."""
        return self.height % TILE == self.width % TILE == 0

    def padded_size(self, multiple: int = 1) -> tuple[int, int]:
        """Returns the height and width of the arrays: at least one tile, for the copy engine.

        Args:
          multiple: Divisor of the sizes along the axes that are read in tiles.
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
        """Channels of a block (c)."""
        return WARPS * GROUPS * self.group_channels

    @property
    def bank_padding(self) -> int:
        """Columns after float32 channels in shared memory, so that rows start in other banks."""
        return 32 // self.group_channels

    @property
    def channel_shape(self) -> tuple[int, int, int]:
        """Shape of a block's channels."""
        return (WARPS, GROUPS, self.group_channels)

    @property
    def state_shape(self) -> tuple[int, int, int, int]:
        """Shape of a block's states."""
        return (WARPS, STATES, GROUPS, self.group_channels)

    @property
    def stored_shape(self) -> tuple[int, int, int]:
        """Shape of a block's states in memory.

        A row has 32 channels in the order of a warp's threads with 4 channels each, so that the
        order does not depend on `group_channels`.
        """
        return (self.channels // ROW_CHANNELS, THREAD_STATES, ROW_CHANNELS * GROUP_THREADS)


class Inputs(NamedTuple):
    """Arrays that every kernel reads.

    Attributes:
      x: Activations, or in `summaries` perhaps dy, float32 or bfloat16.
      dt, weight: Results of `step_sizes.operands`.
      maps: B and C, float32.
    """

    x: Float[Array, "g h w d"]
    dt: Float[Array, "t*k*b h w columns"]
    weight: Float[Array, "t*k d columns"]
    maps: Float[Array, "q h w 2*16"]


Rates = Float[Array, "t*k*split e 4 128"]
"""A times log2(e), in the order of threads."""
SegmentStates = Float[Array, "q*s e 4 128"]
Channels = Float[Array, "warps groups group_channels"]
States = Float[Array, "warps 16 groups group_channels"]


class Threads:
    """How a block's values are distributed over threads.

    Lane 4 x group + part of a warp holds one part of the states of a group's channels, such as 4
    states of each of 4 channels. A value that depends only on the channel, or only on the state, is
    held by every thread concerned. The tensor cores determine the order of lanes (`registers`).

    Attributes:
      by_channel_and_state: Layout of states.
      by_channel: Layout of values per channel, [warps groups group_channels].
      by_state: Layout of values per state, [16].
      by_group: Layout of sums over a thread's channels, [warps 16 groups].
      state_shape: Shape of a block's states, [warps 16 groups group_channels].
      channel_shape: Shape of a block's channels, [warps groups group_channels].
    """

    def __init__(self, scan: Scan):
        self.state_shape, self.channel_shape = scan.state_shape, scan.channel_shape
        tiling = plgpu.Tiling((self.state_shape, (THREAD_STATES, 1, scan.group_channels)))
        # Axes -7 to -4 of a tile: warps, parts of the states, groups, 1; then a thread's values.
        layout = TiledLayout(tiling, (-7,), (-5, -6), -1)
        self.by_channel_and_state, self.by_channel, self.by_state, self.by_group = (
            plgpu.Layout.TILED(v.tiling, v.warp_dims, v.lane_dims, v.vector_dim)
            for v in (layout, *(layout.reduce(axes) for axes in ((1,), (0, 2, 3), (3,))))
        )

    def load_map(self, ref) -> States:
        """Loads a pixel's values per state [16] and broadcasts them to every channel."""
        return self._broadcast(plgpu.layout_cast(ref[...], self.by_state), (1,))

    def broadcast(self, values: Channels) -> States:
        """Broadcasts values per channel to every state."""
        return self._broadcast(values, (0, 2, 3))

    def zeros(self) -> States:
        """Returns states that are zero."""
        return plgpu.layout_cast(
            jnp.zeros(self.state_shape, jnp.float32), self.by_channel_and_state
        )

    def zeros_by_channel(self) -> Channels:
        """Returns values per channel that are zero."""
        return plgpu.layout_cast(jnp.zeros(self.channel_shape, jnp.float32), self.by_channel)

    def _broadcast(self, v: Array, dims: tuple[int, ...]) -> Array:
        spread = lax.broadcast_in_dim(v, self.state_shape, dims)
        return plgpu.layout_cast(spread, self.by_channel_and_state)


def store(ref, value: Array) -> None:
    """Writes to shared memory even if that causes bank conflicts."""
    write = getattr(plgpu, "store", None)
    if write:  # jax 0.12 and later, where plain assignment rejects bank conflicts
        write(ref, value, optimized=False)
    else:
        ref[...] = value


def sync_threads(barrier) -> None:
    """Synchronizes all threads and makes their stores to shared memory visible to each other."""
    plgpu.barrier_arrive(barrier)
    plgpu.barrier_wait(barrier)


def inline_mgpu(**options) -> Callable[[Callable], Callable]:
    """Types `plgpu.inline_mgpu`: functions lose their first parameter, the lowering context."""
    return plgpu.inline_mgpu(**options)


@inline_mgpu()
def sync_warp(_) -> None:
    """Synchronizes a warp and makes its stores to shared memory visible to its threads."""
    mosaic.utils.warp_barrier()


class Program:
    """One program: its place in the arrays, and the tiles of its segment.

    Args:
      scan: Static description of the launch.
      segment: Index of the segment; None for the one given by the grid.

    Attributes:
      block, q: Indices from the grid.
      image_index, weight_index, dt_index, A_index: Indices in the arrays of these names.
      segment_index: Index of the segment in arrays [q*s ...].
      channels, rows: The block's channels and rows of states, in arrays of all blocks.
      column, reverse: Whether the direction reads down columns, and starts at the last pixel.
      first, count: The segment's first tile in reading order, and number of tiles, possibly zero.
    """

    def __init__(self, scan: Scan, segment: Array | None = None):
        self.scan = scan
        parts = len(scan.columns) * scan.states_split
        self.block = lax.axis_index("block")
        self.q = lax.axis_index("q")
        image, task_part = lax.rem(self.q, scan.images), lax.div(self.q, scan.images)
        self.A_index = task_part
        task, part = lax.div(task_part, parts), lax.rem(task_part, parts)
        direction = lax.div(part, scan.states_split)
        self.image_index = task * scan.images + image
        # The parts of a direction's states share its step sizes.
        self.weight_index = lax.div(task_part, scan.states_split)
        self.dt_index = self.weight_index * scan.images + image
        segment = lax.axis_index("segment") if segment is None else segment
        self.segment_index = self.q * scan.segments + segment
        self.channels = pl.ds(self.block * scan.channels, scan.channels)
        rows = scan.stored_shape[0]
        self.rows = pl.ds(self.block * rows, rows)
        self.column = any_of(direction, scan.columns)
        self.reverse = any_of(direction, scan.reverses)
        self._length = jnp.where(self.column, scan.height, scan.width)
        self._line_tiles = jnp.where(self.column, *(tiles for _, tiles in scan.lines))
        columns, rows = (lines * tiles for lines, tiles in scan.lines)
        self._tiles = jnp.where(self.column, columns, rows)
        share = lax.div(self._tiles + scan.segments - 1, scan.segments)
        self.first = jnp.minimum(segment * share, self._tiles)
        self.count = jnp.minimum(share, self._tiles - self.first)

    def tile(self, i) -> tuple:
        """Returns the i-th tile's index in `saved`, line, first pixel and number of pixels."""
        index = jnp.where(self.reverse, self._tiles - 1 - i, i)
        # Both quotients: division by a constant is cheap. The compiler would turn a choice of one
        # of them into a division by a variable.
        down, along = (lax.div(index, tiles) for _, tiles in self.scan.lines)
        line = along + self.column.astype(jnp.int32) * (down - along)
        start = (index - line * self._line_tiles) * TILE
        index = self.q * self.scan.tiles + index
        return index, line, start, jnp.minimum(self._length - start, TILE)

    def count_runs(self, pixels: Int[Array, ""]) -> Int[Array, ""]:
        """Returns how many runs cover a number of pixels."""
        return lax.div(pixels + self.scan.run - 1, self.scan.run)

    def pixel_index(self, j, runs) -> Int[Array, ""]:
        """Returns the index in its tile of `runs` of the j-th pixel in reading order.

        Runs are always complete: past the line step sizes are zero, which changes no state.
        """
        return jnp.where(self.reverse, runs * self.scan.run - 1 - j, j)

    def call_oriented(self, copy: Callable) -> None:
        """Calls `copy(pixels)`, where `pixels(line, start)` indexes a tile along the direction."""

        def down(line, start):
            return pl.ds(start, TILE), line

        def along(line, start):
            return line, pl.ds(start, TILE)

        if any(self.scan.columns) and not all(self.scan.columns):
            pl.when(self.column)(lambda: copy(down))
            pl.when(jnp.logical_not(self.column))(lambda: copy(along))
        else:  # arrays are padded for this orientation only
            copy(down if any(self.scan.columns) else along)

    def fetch_tile(self, i, slot, images, dt, maps, ready) -> None:
        """Starts copying the i-th tile in reading order to shared memory, zeros past the line.

        `images` holds pairs of an array and its shared memory; `dt` and `maps` are such pairs.
        `slot` is that of the double-buffered memory, `ready` holds the slots' barriers.
        """
        _, line, first, _ = self.tile(i)

        def copy(pixels):
            at = pixels(line, first)
            for source, to in (
                *((source.at[(self.image_index, *at, self.channels)], to) for source, to in images),
                (dt[0].at[(self.dt_index, *at)], dt[1]),
                (maps[0].at[(self.q, *at)], maps[1]),
            ):
                plgpu.copy_gmem_to_smem(source, to.at[slot], ready.at[slot])

        self.call_oriented(copy)


def launch(
    scan: Scan,
    body: Callable,
    arrays: Sequence[Array],
    outputs: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence,
    segments: int | None = None,
):
    """Runs a kernel in every program; the first of `arrays` is the image, the last is A."""
    blocks = arrays[-1].shape[1] // scan.stored_shape[0]
    results = plgpu.kernel(
        body,
        out_type=outputs,
        scratch_types=scratch,
        # The last axis is the fastest; `Chain` relies on segments starting one after the other.
        grid=(segments or scan.segments, blocks, scan.programs),
        grid_names=("segment", "block", "q"),
        compiler_params=plgpu.CompilerParams(
            approx_math=True,  # ex2.approx: 2 units in the last place
            # Safe: threads exchange values in shared memory only across `sync_threads`, `sync_warp`
            # or commit_smem, and an input is overwritten by the same warp that has read it.
            unsafe_no_auto_barriers=True,
            reduction_scratch_bytes=128,  # unused; the minimum
            lowering_semantics=plgpu.LoweringSemantics.Lane,
        ),
    )(*arrays)
    # Inside shard_map results vary over the same mesh axes as the image; the call drops them.
    axes = tuple(jax.typeof(arrays[0]).manual_axis_type.varying)
    return jax.tree.map(lambda v: lax.pcast(v, axes, to="varying") if axes else v, results)


def output_image(
    scan: Scan, images: int, channels: int, block: int, dtype: DTypeLike
) -> jax.ShapeDtypeStruct:
    """Returns the shape and dtype of a result [images h w channels], written in blocks of channels.

    A single block gets a second, unused one: otherwise the copy engine would write a line's whole
    block as consecutive bytes, past the end of the line.
    """
    channels += block if channels == block else 0
    return jax.ShapeDtypeStruct((images, *scan.padded_size(), channels), dtype)


def thread_view(ref, scan: Scan):
    """Views [..., c] in shared memory as [..., warps groups group_channels]."""
    return ref.reshape(*ref.shape[:-1], *scan.channel_shape)


def warp_view(ref, scan: Scan):
    """Views [..., c] in shared memory as [..., warps channels]."""
    return ref.reshape(*ref.shape[:-1], WARPS, GROUPS * scan.group_channels)
