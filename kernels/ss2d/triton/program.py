"""What the Triton kernels share: their launch, and a program's place in the arrays.

Pallas Triton, for CUDA GPUs of compute capability 8.0 and later. A program is one warp. It scans a
segment of one direction of one image, for a block of channels with 16 states each, which stay in
its registers. `pallas_triton.py` prepares the arrays and sums the programs' results;
`docs/kernels.md` explains the algorithm.

Letters: q (task, direction, part of the states, image), g (orientation, task, image), p (task,
direction, part of the states), s segments, l pixels of a padded reading order, c channels of a
block, r rank of the step sizes, padded.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from mtmamba_jax.kernels.ss2d.common import any_of, softplus

STATES = 16  # per program
TILE = 16  # pixels from one saved state to the next, and of one product of step sizes
RUN = 4  # pixels unrolled in the backward pass, whose states stay in registers
RANK = 16  # divisor of a padded rank: the smallest matrix product

Channels = Float[Array, "c"]
States = Float[Array, "c 16"]


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
    def orientations(self) -> tuple[bool, ...]:
        """For each stored copy of an image, whether it is read down columns."""
        return tuple(sorted(set(self.columns)))


class Inputs(NamedTuple):
    """Arrays that every kernel reads.

    Attributes:
      x: Activations, or in `summaries` perhaps dy, float32 or bfloat16.
      dt, weight: Factors of the step sizes, in x's dtype.
      bias, A, B, C: Float32; A times log2(e). In `summaries` B is C for the adjoints.
    """

    x: Float[Array, "g l d"]
    dt: Float[Array, "t*k*b l r"]
    weight: Float[Array, "t*k r d"]
    bias: Float[Array, "t*k d"]
    A: Float[Array, "p d 16"]
    B: Float[Array, "q l 16"]
    C: Float[Array, "q l 16"]


class Place(NamedTuple):
    """Indices of a program in the arrays."""

    q: Int[Array, ""]
    direction: Int[Array, ""]
    image: Int[Array, ""]
    step: Int[Array, ""]
    weight: Int[Array, ""]
    part: Int[Array, ""]
    reading: Int[Array, ""]
    segment: Int[Array, ""]
    reverse: Bool[Array, ""]


def locate(scan: Scan, q, reading) -> Place:
    """Returns the place of program q of the segment `reading`, counted in reading order."""
    image, part = lax.rem(q, scan.images), lax.div(q, scan.images)
    weight = lax.div(part, scan.states_split)
    task, direction = lax.div(weight, len(scan.columns)), lax.rem(weight, len(scan.columns))
    column = any_of(direction, scan.columns)
    reverse = any_of(direction, scan.reverses)
    # Not `where` of two constants, which Triton's lowering would make booleans.
    other = column.astype(jnp.int32) * ((len(scan.orientations) - 1) * scan.tasks)
    return Place(
        q, direction, (other + task) * scan.images + image,
        weight * scan.images + image, weight, part, reading,
        jnp.where(reverse, scan.segments - 1 - reading, reading), reverse,
    )


class Blocks:
    """A program's blocks of the arrays, for a launch whose first segment is `first`."""

    def __init__(self, scan: Scan, first: int = 0):
        self.scan, self.first = scan, first

    def _spec(self, shape, place: Callable[[Place, Array], tuple]) -> pl.BlockSpec:
        def index(q, segment, block):
            return place(locate(self.scan, q, segment + self.first), block)

        return pl.BlockSpec(shape, index)

    def inputs(self, inputs: Inputs) -> Inputs:
        length, c, rank = self.scan.segment_length, self.scan.block, inputs.dt.shape[-1]
        maps = self._spec((None, length, STATES), lambda at, _: (at.q, at.segment, 0))
        return Inputs(
            x=self.image(),
            dt=self._spec((None, length, rank), lambda at, _: (at.step, at.segment, 0)),
            weight=self._spec((None, rank, c), lambda at, block: (at.weight, 0, block)),
            bias=self._spec((None, c), lambda at, block: (at.weight, block)),
            A=self._spec((None, c, STATES), lambda at, block: (at.part, block, 0)),
            B=maps, C=maps,
        )

    def image(self) -> pl.BlockSpec:
        """[g l d]."""
        shape = (None, self.scan.segment_length, self.scan.block)
        return self._spec(shape, lambda at, block: (at.image, at.segment, block))

    def result(self) -> pl.BlockSpec:
        """[q l d]."""
        shape = (None, self.scan.segment_length, self.scan.block)
        return self._spec(shape, lambda at, block: (at.q, at.segment, block))

    def saved(self) -> pl.BlockSpec:
        """[q l/16 d 16]."""
        shape = (None, self.scan.tiles, self.scan.block, STATES)
        return self._spec(shape, lambda at, block: (at.q, at.segment, block, 0))

    def states(self, count: int = 0) -> pl.BlockSpec:
        """[q s d 16], segments in reading order."""
        shape = (None, None, self.scan.block, STATES)
        return self._spec(shape, lambda at, block: (at.q, at.reading - self.first, block, 0))

    def times(self) -> pl.BlockSpec:
        """[q s d], segments in reading order."""
        shape = (None, None, self.scan.block)
        return self._spec(shape, lambda at, block: (at.q, at.reading - self.first, block))

    def maps(self) -> pl.BlockSpec:
        """[q blocks l 16]."""
        shape = (None, None, self.scan.segment_length, STATES)
        return self._spec(shape, lambda at, block: (at.q, block, at.segment, 0))

    def private(self, *shape: int) -> pl.BlockSpec:
        """[q s blocks ...]: memory of one program."""
        tail = (0,) * len(shape)
        return self._spec(
            (None, None, None, *shape),
            lambda at, block: (at.q, at.reading - self.first, block, *tail),
        )


class Program:
    """One program's order of pixels, and the step sizes of its tiles."""

    def __init__(self, scan: Scan, inputs: Inputs, memory, first: int = 0, *, backwards=False):
        place = locate(scan, pl.program_id(0), pl.program_id(1) + first)
        self.scan, self._inputs, self._memory = scan, inputs, memory
        self._start = place.segment * scan.segment_length
        self._reverse = jnp.logical_not(place.reverse) if backwards else place.reverse
        last = self._reverse.astype(jnp.int32)
        self._first, self._sign = last * (TILE - 1), 1 - 2 * last

    def pixel(self, i, j) -> Int[Array, ""]:
        """Returns the place in the blocks of the j-th pixel of the i-th tile."""
        return self.tile(i) * TILE + self._row(j)

    def tile(self, i) -> Int[Array, ""]:
        """Returns the place in the blocks of the i-th tile."""
        return jnp.where(self._reverse, self.scan.tiles - 1 - i, i)

    def _row(self, j):
        return self._first + self._sign * j

    def prepare_steps(self, i) -> None:
        """Computes the step sizes of the i-th tile, zeros past the image's last pixel."""
        _, dt, weight, bias, *_ = self._inputs
        i = jnp.minimum(i, self.scan.tiles - 1)
        start = self.tile(i) * TILE
        exact = dt.dtype == jnp.float32
        z = jnp.broadcast_to(bias[...][None, :], (TILE, self.scan.block))
        for r in range(0, dt.shape[-1], RANK):
            z += jnp.dot(
                dt[pl.ds(start, TILE), pl.ds(r, RANK)],
                weight[pl.ds(r, RANK), :],
                precision=lax.Precision.HIGHEST if exact else None,
                preferred_element_type=jnp.float32,
            )
        step = softplus(z, exact=exact)
        if self.scan.length > self.scan.pixels:
            row = lax.broadcasted_iota(jnp.int32, step.shape, 0)
            step = jnp.where(self._start + start + row < self.scan.pixels, step, 0.0)
        self._memory[lax.rem(i, 2), :, :] = step

    def step(self, i, j) -> Channels:
        """Returns the step sizes of the j-th pixel of the i-th tile, which must be prepared."""
        return self._memory[lax.rem(i, 2), self._row(j), :]

    @staticmethod
    def sync() -> None:
        """Makes a program's writes to memory visible to all its threads."""
        triton.debug_barrier()


def exp2(v: Array) -> Array:
    """Returns 2**v, accurate to two units in the last place, or 0 below 2**-126."""
    # jnp.exp2 keeps numbers below 2**-126, in four instructions.
    return _inline("ex2.approx.ftz.f32 $0, $1;", v)


def multiply_add(a: Array, b: Array, c: Array) -> Array:
    """Returns a * b + c in one instruction, which Triton does not choose."""
    return _inline("fma.rn.f32 $0, $1, $2, $3;", *jnp.broadcast_arrays(a, b, c))


def _inline(instruction: str, *operands: Array) -> Array:
    result = jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)
    (out,) = triton.elementwise_inline_asm(
        instruction, args=operands, constraints=",".join(["=f", *"f" * len(operands)]), pack=1,
        result_shape_dtypes=[result],
    )
    return out


def launch(
    scan: Scan,
    body: Callable,
    inputs: Sequence[tuple[Array, pl.BlockSpec]],
    outputs: Sequence[tuple[tuple[int, ...], DTypeLike, pl.BlockSpec]],
    segments: int,
) -> list[Array]:
    """Runs a kernel in every program."""
    arrays, specs = zip(*inputs, strict=True)
    blocks = arrays[0].shape[-1] // scan.block
    results = pl.pallas_call(
        body,
        out_shape=[jax.ShapeDtypeStruct(shape, dtype) for shape, dtype, _ in outputs],
        grid=(scan.programs, segments, blocks),
        in_specs=specs,
        out_specs=[spec for *_, spec in outputs],
        compiler_params=triton.CompilerParams(num_warps=1, num_stages=1),
        interpret=INTERPRET,
    )(*arrays)
    # Inside shard_map results vary over the same mesh axes as the image; the call drops them.
    axes = tuple(jax.typeof(arrays[0]).manual_axis_type.varying)
    return [lax.pcast(v, axes, to="varying") if axes else v for v in results]
INTERPRET = False
