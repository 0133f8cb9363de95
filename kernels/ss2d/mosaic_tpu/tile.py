"""What the kernels of both passes do with a tile (Pallas, TPU); shapes as in `way.py`.

Registers hold 8 states of 128 channels, so a pixel's step sizes are a row that is read into all
eight sublanes, and its B and C are columns. Made by permutations of lanes, columns would cost as
much as the scan itself. The matrix units make them: a row with all but one of its lanes set to
zero, times a matrix of ones, is that lane's value in every lane (`spread`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Way
from mtmamba_jax.kernels.ss2d.softplus import softplus

Array = jax.Array

RUN = 4  # pixels unrolled in the inner loop


def product(a: Array, b: Array, contract: tuple[int, int], *, exact: bool) -> Array:
    """Matrix product over axis `contract[0]` of a and `contract[1]` of b, float32.

    Args:
      a, b: matrices.
      contract: the axes.
      exact: to float32; otherwise of the factors rounded to bfloat16.
    """
    dtype = jnp.float32 if exact else jnp.bfloat16
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def block_of(f) -> pl.Slice:
    """The lanes of the f-th block of channels."""
    return pl.ds(pl.multiple_of(f * LANES, LANES), LANES)


def rows_of(register, count: int = 1) -> pl.Slice:
    """The sublanes of a register in a stack of them, or of `count` from it on."""
    return pl.ds(pl.multiple_of(register * SUBLANES, SUBLANES), count * SUBLANES)


class Tile:
    """Where one program is in its tile, and the loops over it.

    Args:
      way: what is static.
      k: which of the way's directions.
      i: which tile in reading order.
      part: which share of the channels.
      exact: products to float32.
    """

    def __init__(self, way: Way, k: Array, i: Array, part: Array, *, exact: bool):
        self.way, self.exact, self._part = way, exact, part
        self._reverse = way.reverse(k)
        self._place = way.place(k, i)
        self.states = way.states // SUBLANES  # e
        self._many = next(n for n in (24, 16, 8) if way.piece % n == 0)  # pixels of a product
        # Of an image's tile, what `chunks` takes at a time: about 64 pixels.
        height, width = way.shape
        self._chunk = (min(height, SUBLANES), width) if way.column else (1, way.piece)

    def chunks(self, use: Callable) -> None:
        """Calls `use(at, pixels, valid)` for pieces of the tile, whatever the order.

        `at` is a piece's rows and columns in the tile, `pixels` its place in p, and `valid`
        [pixels 128] tells whether the image has a pixel.
        """
        (height, width), (rows, columns) = self.way.shape, self._chunk

        def chunk(y, rows):
            for x in range(0, width, columns):
                shape = (rows, columns, LANES)
                top, left = (n * size for n, size in zip(self._place, (height, width), strict=True))
                down = top + y + lax.broadcasted_iota(jnp.int32, shape, 0)
                right = left + x + lax.broadcasted_iota(jnp.int32, shape, 1)
                valid = (down < self.way.height) & (right < self.way.width)
                pixels = pl.ds(pl.multiple_of(y * width + x, SUBLANES), rows * columns)
                use((pl.ds(y, rows), slice(x, x + columns)), pixels, valid.reshape(-1, LANES))

        pl.loop(0, height // rows)(lambda i: chunk(i * rows, rows))
        if height % rows:
            chunk(height // rows * rows, height % rows)

    def load(self, ref, at, f) -> Array:
        """The f-th block of channels of a piece of an image's tile, [pixels 128] float32."""
        return ref[(*at, block_of(f))].astype(jnp.float32).reshape(-1, LANES)

    def write(self, ref, at, f, value: Array) -> None:
        """Inverse of `load`, in the dtype of `ref`."""
        shape = (at[0].size, at[1].stop - at[1].start, LANES)
        ref[(*at, block_of(f))] = value.reshape(shape).astype(ref.dtype)

    def copy(self, source, to) -> None:
        """An image's tile as [f p 128] float32, with zeros where the image has nothing."""

        def chunk(at, pixels, valid):
            def block(f):
                value = self.load(source, at, f)
                to[f, pixels] = jnp.where(self.has(f, valid), value, 0.0)

            self.blocks(block)

        self.chunks(chunk)

    def prepare(self, x, maps, weight, bias, steps, inputs, rows) -> None:
        """Step sizes and what they put in: softplus(dt @ weight + bias), and that times x.

        Args:
          x, maps, weight, bias: the tile's blocks.
          steps, inputs: results [f p 128].
          rows: result, maps as [p c] float32 with zeros where the image has nothing.
        """

        def chunk(at, pixels, valid):
            row = maps[at].astype(jnp.float32).reshape(-1, self.way.maps)
            row = jnp.where(valid[:, :1], row, 0.0)
            rows[pixels] = row

            def block(f):
                lanes = block_of(f)
                z = product(row, weight[:, lanes], (1, 0), exact=self.exact) + bias[:, lanes]
                step, has = softplus(z, exact=self.exact), self.has(f, valid)
                steps[f, pixels] = jnp.where(has, step, 0.0)
                inputs[f, pixels] = jnp.where(has, step * self.load(x, at, f), 0.0)

            self.blocks(block)

        self.chunks(chunk)

    def blocks(self, use: Callable) -> None:
        """Calls `use(f)` for each block of channels, a group unrolled."""

        def group(blocks):
            for f in blocks:
                use(f)

        self.groups(group)

    def has(self, f: int, valid: Array) -> Array:
        """`valid`, and false for channels that the image does not have."""
        way = self.way
        if way.channels == way.parts * way.lanes:
            return valid
        first = (self._part * way.blocks + f) * LANES
        lane = lax.broadcasted_iota(jnp.int32, valid.shape, 1)
        return valid & (lane < way.channels - first)

    def clear_rest(self, *refs) -> None:
        """Sets to zero what the pieces of a column have more than the image."""
        used = self.way.height * self.way.lines
        if self.way.column and used < self.way.pixels:
            for ref in refs:
                at = (..., slice(used, self.way.pixels), slice(None))
                ref[at] = jnp.zeros_like(ref[at])

    def pieces(self, use: Callable, *, backwards: bool = False) -> None:
        """Calls `use(line, piece, first)` for the image's pieces in reading order.

        Args:
          use: is given the piece's line, its place on it, and its first pixel in p.
          backwards: against the reading order.
        """
        way, (across, along) = self.way, self.way.strides
        size = way.width if way.column else way.height
        lines = jnp.minimum(way.lines, size - self._place[way.column] * way.lines)
        count = lines * way.pieces
        flip = jnp.logical_xor(self._reverse, backwards)

        @pl.loop(0, count)
        def _(i):
            i = jnp.where(flip, count - 1 - i, i)
            line, piece = lax.div(i, way.pieces), lax.rem(i, way.pieces)
            use(line, piece, line * across + piece * (way.piece * along))

    def selected(self, i: int) -> Array:
        """[8 c], true where a row of maps has what the i-th register's sublanes are to hold.

        Registers are B's states, then C's.
        """
        shape = (SUBLANES, self.way.maps)
        lane = self.way.rank + i * SUBLANES + lax.broadcasted_iota(jnp.int32, shape, 0)
        return lax.broadcasted_iota(jnp.int32, shape, 1) == lane

    def spread(self, rows, columns, first: Array) -> None:
        """Writes a piece's B and C as columns: register (pixel, i) has `selected(i)` in all lanes.

        Args:
          rows: maps [p c].
          columns: result [registers*8 128].
          first: pixel of the piece, in p.
        """
        way, registers, many = self.way, 2 * self.states, self._many
        ones = jnp.ones((way.maps, LANES), jnp.float32)
        selected = [self.selected(i) for i in range(registers)]

        @pl.loop(0, way.piece // many)
        def _(i):
            left = []
            for j in range(many):
                row = rows[pl.ds(first + (i * many + j) * way.strides[1], 1)]
                row = jnp.broadcast_to(row, (SUBLANES, way.maps))
                left += [jnp.where(lane, row, 0.0) for lane in selected]
            at = rows_of(i * (many * registers), many * registers)
            columns[at] = product(jnp.concatenate(left), ones, (1, 0), exact=self.exact)

    def gather(self, columns, parts) -> None:
        """Adds columns over their lanes into rows of maps: the gradient of `spread`.

        Args:
          columns: [registers*8 128] of a piece's pixels.
          parts: result [c/128 pixels*8 128], to be added over each pixel's sublanes (`collect`).
        """
        way, registers, many = self.way, 2 * self.states, self._many
        ones = jnp.ones((LANES, way.maps), jnp.float32)
        selected = [self.selected(i) for i in range(registers)]

        @pl.loop(0, way.piece // many)
        def _(i):
            at = rows_of(i * (many * registers), many * registers)
            sums = product(columns[at], ones, (1, 0), exact=self.exact)
            for j in range(many):
                values = (
                    sums[(j * registers + e) * SUBLANES :][:SUBLANES] for e in range(registers)
                )
                values = [jnp.where(lane, v, 0.0) for lane, v in zip(selected, values, strict=True)]
                row = add(values)
                for m in range(parts.shape[0]):
                    parts[m, rows_of(i * many + j)] = row[:, m * LANES :][:, :LANES]

    def groups(self, use: Callable) -> None:
        """Calls `use(blocks)` for each group of blocks of channels."""
        group = self.way.group

        pl.loop(0, self.way.groups)(lambda g: use([g * group + b for b in range(group)]))

    def walk(self, use: Callable, carry, *, backwards: bool = False):
        """Returns carry = use(pixel, carry) after a piece's pixels in reading order.

        Args:
          use: is given the pixel's place in its piece.
          carry: a tree of arrays.
          backwards: against the reading order.
        """
        last = self.way.piece - 1
        flip = jnp.logical_xor(self._reverse, backwards)

        def run(i, carry):
            for j in range(RUN):
                j = i * RUN + j
                carry = use(jnp.where(flip, last - j, j), carry)
            return carry

        return lax.fori_loop(0, self.way.piece // RUN, run, carry)

    def row(self, ref, f, first: Array, pixel: Array) -> Array:
        """A pixel's channels of [f p 128], in all sublanes."""
        row = ref[f, pl.ds(first + pixel * self.way.strides[1], 1)]
        return jnp.broadcast_to(row, (SUBLANES, LANES))

    def column(self, columns, pixel: Array, which: int) -> list[Array]:
        """B (0) or C (1) of a pixel, e registers."""
        first = self.column_register(pixel, which)
        return [columns[rows_of(first + e)] for e in range(self.states)]

    def column_register(self, pixel: Array, which: int) -> Array:
        """The first of a pixel's e registers of B (0) or C (1), in the columns of a piece."""
        return (pixel * 2 + which) * self.states

    def registers(self, ref, f, pixel: Array | int = 0) -> list[Array]:
        """A pixel's states of the f-th block of channels, e registers of [f pixels*n 128]."""
        return [ref[f, rows_of(pixel * self.states + e)] for e in range(self.states)]

    def set_registers(self, ref, f, values: Sequence[Array], pixel: Array | int = 0) -> None:
        """Inverse of `registers`."""
        for e, value in enumerate(values):
            ref[f, rows_of(pixel * self.states + e)] = value

    def collect(self, parts, to, first: Array) -> None:
        """Adds each pixel's sublanes: `parts` [pixels*8 128] to its piece's pixels of `to`."""
        along = self.way.strides[1]
        for j in range(0, self.way.piece, SUBLANES):
            sums = add(parts[pl.ds(j * SUBLANES + i, SUBLANES, SUBLANES)] for i in range(SUBLANES))
            at = first + j * along
            to[pl.ds(at, SUBLANES) if along == 1 else pl.ds(at, SUBLANES, along)] = sums


def add(values: Sequence[Array]) -> Array:
    """Sum of the values, by pairs."""
    values = list(values)
    while len(values) > 1:
        values = [sum(values[i : i + 2][1:], values[i]) for i in range(0, len(values), 2)]
    return values[0]
