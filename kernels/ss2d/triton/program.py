"""What the Triton kernels share: their launch, and a program's place in the arrays.

Pallas Triton, for CUDA GPUs of compute capability 8.0 and later. A program is one warp. It scans a
segment of one direction of one image, for a block of channels with 16 states each, which stay in
its registers. `pallas_triton.py` prepares the arrays and sums the programs' results;
`docs/kernels.md` explains the algorithm.

Letters: q (task, direction, part of the states, image), p (task, direction, part of the states),
o copies of an image, row-major and column-major, s segments, l pixels of a padded reading order,
m tiles of it, c channels of a block, r rank of the step sizes, padded.

A segment or pixel has a place in the arrays and a place in reading order, which differ in reversed
directions.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.ss2d.common import any_of, softplus

STATES = 16  # per program
THREAD_STATES = 4  # neighbouring states of a channel that a thread holds
TILE = 16  # pixels from one saved state to the next, and of a matrix product of step sizes
RANK = 16  # of a matrix product of step sizes; ranks are padded to a multiple

Channels = Float[Array, "c"]


@dataclasses.dataclass(frozen=True)
class Scan:
    """Static description of a launch.

    Attributes:
      tasks: Number of tasks, t.
      images: Batch size, b.
      pixels: Pixels of an image, without padding.
      columns, reverses: See `common.Directions`.
      states_split: Programs that share the states of a direction, 16 each.
      block: Channels of a program, c.
      segments: Pieces of the reading order that are scanned at the same time.
      tiles: Tiles of a segment.
    """

    tasks: int
    images: int
    pixels: int
    columns: tuple[bool, ...]
    reverses: tuple[bool, ...]
    states_split: int
    block: int
    segments: int
    tiles: int

    @property
    def programs(self) -> int:
        """Tasks x directions x parts of the states x images (q)."""
        return self.tasks * len(self.columns) * self.states_split * self.images

    @property
    def segment_length(self) -> int:
        """Pixels of a segment."""
        return self.tiles * TILE

    @property
    def length(self) -> int:
        """Pixels of the arrays (l)."""
        return self.segments * self.segment_length

    @property
    def copies(self) -> tuple[bool, ...]:
        """For each copy of an image (o), whether it is column-major."""
        return tuple(sorted(set(self.columns)))


class Inputs(NamedTuple):
    """Arrays that every kernel reads.

    Attributes:
      x: Activations, or in `forward.summaries` perhaps dy, float32 or bfloat16.
      dt, weight: Factors of the step sizes, in x's dtype.
      bias: Third part of the step sizes, float32; so are the arrays below.
      A: Rates of decay times log2(e).
      B, C: Maps.
    """

    x: Float[Array, "o*t*b l d"]
    dt: Float[Array, "t*k*b l r"]
    weight: Float[Array, "t*k r d"]
    bias: Float[Array, "t*k d"]
    A: Float[Array, "p d 16"]
    B: Float[Array, "q l 16"]
    C: Float[Array, "q l 16"]


class Place(NamedTuple):
    """Indices of a program in the arrays.

    Attributes:
      q, part, weight: Indices in arrays [q ...], [p ...] and [t*k ...].
      steps: Index in arrays [t*k*b ...].
      image: Index in arrays [o*t*b ...].
      segment: Place of the segment in the arrays.
      reverse: Whether the direction starts at the last pixel.
    """

    q: Int[Array, ""]
    part: Int[Array, ""]
    weight: Int[Array, ""]
    steps: Int[Array, ""]
    image: Int[Array, ""]
    segment: Int[Array, ""]
    reverse: Bool[Array, ""]


def _locate(scan: Scan, q: Int[Array, ""], segment: Int[Array, ""]) -> Place:
    """Returns the place of program q that scans a segment, given by its place in reading order."""
    image, part = lax.rem(q, scan.images), lax.div(q, scan.images)
    weight = lax.div(part, scan.states_split)
    task, direction = lax.div(weight, len(scan.columns)), lax.rem(weight, len(scan.columns))
    reverse = any_of(direction, scan.reverses)
    # Not `where` of two constants, which Triton's lowering would turn into booleans.
    column = any_of(direction, scan.columns).astype(jnp.int32)
    copy = column * (len(scan.copies) - 1)
    return Place(
        q=q,
        part=part,
        weight=weight,
        steps=weight * scan.images + image,
        image=(copy * scan.tasks + task) * scan.images + image,
        segment=jnp.where(reverse, scan.segments - 1 - segment, segment),
        reverse=reverse,
    )


class Blocks:
    """A program's blocks of the arrays, in a launch that begins at segment `first`."""

    def __init__(self, scan: Scan, first: int = 0):
        self._scan, self._first = scan, first

    def inputs(self, inputs: Inputs) -> list[pl.BlockSpec]:
        """Returns the block of each input, in their order."""
        pixels, block, rank = self._scan.segment_length, self._scan.block, inputs.dt.shape[-1]
        maps = self._block((None, pixels, STATES), lambda at, _: (at.q, at.segment, 0))
        blocks = dict(
            x=self.image(),
            dt=self._block((None, pixels, rank), lambda at, _: (at.steps, at.segment, 0)),
            weight=self._block((None, rank, block), lambda at, j: (at.weight, 0, j)),
            bias=self._block((None, block), lambda at, j: (at.weight, j)),
            A=self._block((None, block, STATES), lambda at, j: (at.part, j, 0)),
            B=maps,
            C=maps,
        )
        return [blocks[name] for name in Inputs._fields]

    def image(self) -> pl.BlockSpec:
        """Returns the block of an image, [o*t*b l d]."""
        shape = (None, self._scan.segment_length, self._scan.block)
        return self._block(shape, lambda at, j: (at.image, at.segment, j))

    def result(self) -> pl.BlockSpec:
        """Returns the block of a result per direction, [q l d]."""
        shape = (None, self._scan.segment_length, self._scan.block)
        return self._block(shape, lambda at, j: (at.q, at.segment, j))

    def maps(self) -> pl.BlockSpec:
        """Returns the block of a result per block of channels, [q d/c l 16]."""
        shape = (None, None, self._scan.segment_length, STATES)
        return self._block(shape, lambda at, j: (at.q, j, at.segment, 0))

    def saved(self) -> pl.BlockSpec:
        """Returns the block of the states before each tile, [q m d 4 4]."""
        shape = (None, self._scan.tiles, self._scan.block, THREAD_STATES, THREAD_STATES)
        return self._block(shape, lambda at, j: (at.q, at.segment, j, 0, 0))

    def by_segment(self, *shape: int) -> pl.BlockSpec:
        """Returns the block of an array [q s d ...], with segments in reading order."""
        rest = (0,) * len(shape)

        def index(q, segment, j):
            return q, segment, j, *rest

        return pl.BlockSpec((None, None, self._scan.block, *shape), index)

    def _block(self, shape: tuple, place: Callable[[Place, Int[Array, ""]], tuple]):
        def index(q, segment, j):
            return place(_locate(self._scan, q, segment + self._first), j)

        return pl.BlockSpec(shape, index)


class Program:
    """One program: the order of its pixels, and their step sizes.

    The step sizes of a tile are a matrix product. They go through memory of the program's own,
    since Triton cannot take a row out of an array in registers.

    Args:
      scan: Static description of the launch.
      inputs: Blocks of the inputs.
      memory: Block of `private` memory, for the step sizes of two tiles.
      first: Segment at which the launch begins.
      backwards: Whether to go through the segment against the reading order.
    """

    def __init__(self, scan: Scan, inputs: Inputs, memory, first: int = 0, *, backwards=False):
        at = _locate(scan, pl.program_id(0), pl.program_id(1) + first)
        self._scan, self._inputs, self._memory = scan, inputs, memory
        self._begin = at.segment * scan.segment_length
        self._reverse = jnp.logical_not(at.reverse) if backwards else at.reverse
        last = self._reverse.astype(jnp.int32)
        self._first, self._sign = last * (TILE - 1), 1 - 2 * last

    def tile(self, i) -> Int[Array, ""]:
        """Returns the place in the blocks of the i-th tile."""
        return jnp.where(self._reverse, self._scan.tiles - 1 - i, i)

    def pixel(self, i, j) -> Int[Array, ""]:
        """Returns the place in the blocks of the j-th pixel of the i-th tile."""
        return self.tile(i) * TILE + self._row(j)

    def step(self, i, j) -> Channels:
        """Returns the step sizes of the j-th pixel of the i-th tile, which must be prepared."""
        return self._memory[lax.rem(i, 2), self._row(j), :]

    def prepare_steps(self, i) -> None:
        """Computes the step sizes of the i-th tile, zeros past the image's last pixel.

        They can be read after the next `instructions.sync`. Past the last tile, the last one's are
        computed again.
        """
        slot, i = lax.rem(i, 2), jnp.minimum(i, self._scan.tiles - 1)
        start = self.tile(i) * TILE
        _, dt, weight, bias, *_ = self._inputs
        exact = dt.dtype == jnp.float32
        z = jnp.broadcast_to(bias[...][None, :], (TILE, self._scan.block))
        for r in range(0, dt.shape[-1], RANK):
            z += jnp.dot(
                dt[pl.ds(start, TILE), pl.ds(r, RANK)],
                weight[pl.ds(r, RANK), :],
                precision=lax.Precision.HIGHEST if exact else None,
                preferred_element_type=jnp.float32,
            )
        step = softplus(z, exact=exact)
        if self._scan.length > self._scan.pixels:
            row = lax.broadcasted_iota(jnp.int32, step.shape, 0)
            step = jnp.where(self._begin + start + row < self._scan.pixels, step, 0.0)
        self._memory[slot, :, :] = step

    def _row(self, j) -> Int[Array, ""]:
        return self._first + self._sign * j


class Output(NamedTuple):
    """An array that a kernel writes, and a program's block of it."""

    shape: tuple[int, ...]
    dtype: DTypeLike
    block: pl.BlockSpec


def private(scan: Scan, inputs: Inputs, segments: int, *shape: int) -> Output:
    """Returns float32 memory of a given shape for each program of a launch."""

    def index(q, segment, j):
        return q, segment, j, *(0,) * len(shape)

    programs = (scan.programs, segments, inputs.x.shape[-1] // scan.block)
    return Output((*programs, *shape), jnp.float32, pl.BlockSpec((None, None, None, *shape), index))


def launch(
    scan: Scan,
    body: Callable,
    inputs: Inputs,
    more: Sequence[tuple[Array, pl.BlockSpec]],
    outputs: Sequence[Output],
    *,
    first: int = 0,
    segments: int,
) -> list[Array]:
    """Runs a kernel in every program.

    Args:
      scan: Static description of the launch.
      body: Kernel; its arguments are the blocks of the inputs, of `more` and of the outputs.
      inputs: Arrays that every kernel reads.
      more: Other arrays that it reads, with their blocks.
      outputs: Arrays that it writes.
      first, segments: First segment in reading order, and number of segments.
    """
    arrays, blocks = [v for v, _ in more], [block for _, block in more]
    return pl.pallas_call(
        body,
        out_shape=[shape_like(inputs.x, v.shape, v.dtype) for v in outputs],
        grid=(scan.programs, segments, inputs.x.shape[-1] // scan.block),
        in_specs=[*Blocks(scan, first).inputs(inputs), *blocks],
        out_specs=[v.block for v in outputs],
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
    )(*inputs, *arrays)
