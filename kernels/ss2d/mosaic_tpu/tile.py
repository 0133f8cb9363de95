"""Operations of the TPU kernels on one tile; shape letters are those of `tiling.py`.

A register holds 8 states of 128 channels. A pixel's step sizes are therefore a row that is
broadcast to all eight sublanes, and its B and C are columns that are constant along lanes. Making
columns by permuting lanes would cost as much as the scan itself, so the matrix units make them: a
row with all lanes but one set to zero, times a matrix of ones, has that lane's value in every lane
(`spread_columns`).
"""

from collections.abc import Callable, Iterable, Sequence

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float

from mtmamba_jax.kernels.ss2d.common import softplus
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Index, Tiling

UNROLL = 4  # pixels unrolled in the inner loop


def matmul(a: Array, b: Array, contract: tuple[int, int], *, exact: bool) -> Array:
    """Returns the float32 product of two matrices over axis `contract[0]` of a, `contract[1]` of b.

    Unless `exact`, the factors are rounded to bfloat16.
    """
    dtype = jnp.float32 if exact else jnp.bfloat16
    return lax.dot_general(
        a.astype(dtype),
        b.astype(dtype),
        (((contract[0],), (contract[1],)), ((), ())),
        precision=lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.float32,
    )


def block_lanes(f):
    """Returns the lanes of the f-th block of channels."""
    return pl.ds(pl.multiple_of(f * LANES, LANES), LANES)


def sublanes(register, count: int = 1):
    """Returns the sublanes of `count` consecutive registers in a stack of them."""
    return pl.ds(pl.multiple_of(register * SUBLANES, SUBLANES), count * SUBLANES)


def tree_sum(values: Iterable[Array]) -> Array:
    """Returns the sum of the values, added in pairs."""
    values = list(values)
    while len(values) > 1:
        values = [sum(values[i : i + 2][1:], values[i]) for i in range(0, len(values), 2)]
    return values[0]


class Tile:
    """One program's tile: loads, stores, and loops over its chunks, blocks, pieces and pixels.

    Args:
      tiling: Static description of the launch.
      k, i, part: Indices: of the direction among the tiling's, of the tile in reading order, of the
        program's part of the channels.
      exact: Whether matrix products are computed in float32.
    """

    def __init__(self, tiling: Tiling, k: Index, i: Index, part: Index, *, exact: bool):
        self.tiling, self.exact, self._part = tiling, exact, part
        self._reverse = tiling.is_reversed(k)
        self._position = tiling.tile_position(k, i)
        self.registers = tiling.states // SUBLANES  # of a pixel (e)
        # Pixels of a matrix product in `spread_columns`.
        self._product_pixels = next(n for n in (24, 16, 8) if tiling.piece_pixels % n == 0)
        # Rows and columns of a chunk, about 64 pixels.
        height, width = tiling.shape
        self._chunk = (min(height, SUBLANES), width) if tiling.column else (1, tiling.piece_pixels)

    def for_each_chunk(self, body: Callable) -> None:
        """Calls `body(at, pixels, valid)` for chunks of the tile, in any order.

        `at` holds the chunk's rows and columns in the tile, `pixels` its range in p, and `valid`
        [pixels 128] whether each pixel is inside the image.
        """
        (height, width), (rows, columns) = self.tiling.shape, self._chunk

        def chunk(y, rows):
            for x in range(0, width, columns):
                shape = (rows, columns, LANES)
                top, left = (
                    n * size for n, size in zip(self._position, (height, width), strict=True)
                )
                down = top + y + lax.broadcasted_iota(jnp.int32, shape, 0)
                right = left + x + lax.broadcasted_iota(jnp.int32, shape, 1)
                valid = (down < self.tiling.height) & (right < self.tiling.width)
                pixels = pl.ds(pl.multiple_of(y * width + x, SUBLANES), rows * columns)
                body((pl.ds(y, rows), slice(x, x + columns)), pixels, valid.reshape(-1, LANES))

        pl.loop(0, height // rows)(lambda i: chunk(i * rows, rows))
        if height % rows:
            chunk(height // rows * rows, height % rows)

    def for_each_group(self, body: Callable) -> None:
        """Calls `body(blocks)` for each group of blocks of channels."""
        group = self.tiling.group
        pl.loop(0, self.tiling.groups)(lambda g: body([g * group + b for b in range(group)]))

    def for_each_block(self, body: Callable) -> None:
        """Calls `body(f)` for each block of channels; the blocks of a group are unrolled."""

        def group(blocks):
            for f in blocks:
                body(f)

        self.for_each_group(group)

    def for_each_piece(self, body: Callable, *, backwards: bool = False) -> None:
        """Calls `body(line, piece, first)` for the pieces inside the image, in reading order.

        The arguments are indices: of the line, of the piece on it, of its first pixel in p.
        """
        tiling, (across, along) = self.tiling, self.tiling.strides
        size = tiling.width if tiling.column else tiling.height
        lines = jnp.minimum(tiling.lines, size - self._position[tiling.column] * tiling.lines)
        count = lines * tiling.pieces
        flip = jnp.logical_xor(self._reverse, backwards)

        @pl.loop(0, count)
        def _(i):
            i = jnp.where(flip, count - 1 - i, i)
            line, piece = lax.div(i, tiling.pieces), lax.rem(i, tiling.pieces)
            body(line, piece, line * across + piece * (tiling.piece_pixels * along))

    def scan_pixels(self, body: Callable, carry, *, backwards: bool = False):
        """Repeats `carry = body(pixel, carry)` over a piece's pixels in reading order."""
        last = self.tiling.piece_pixels - 1
        flip = jnp.logical_xor(self._reverse, backwards)

        def iteration(i, carry):
            for j in range(UNROLL):
                j = i * UNROLL + j
                carry = body(jnp.where(flip, last - j, j), carry)
            return carry

        return lax.fori_loop(0, self.tiling.piece_pixels // UNROLL, iteration, carry)

    def load_block(self, ref, at, f) -> Float[Array, "pixels 128"]:
        """Loads the f-th block of channels of a chunk of an image, float32."""
        return ref[(*at, block_lanes(f))].astype(jnp.float32).reshape(-1, LANES)

    def store_block(self, ref, at, f, value: Float[Array, "pixels 128"]) -> None:
        """Stores the f-th block of channels of a chunk of an image, in the dtype of `ref`."""
        shape = (at[0].size, at[1].stop - at[1].start, LANES)
        ref[(*at, block_lanes(f))] = value.reshape(shape).astype(ref.dtype)

    def load_image(self, source, to) -> None:
        """Copies an image's tile to [f p 128] float32, with zeros outside the image."""

        def chunk(at, pixels, valid):
            def block(f):
                value = self.load_block(source, at, f)
                to[f, pixels] = jnp.where(self.mask_channels(f, valid), value, 0.0)

            self.for_each_block(block)

        self.for_each_chunk(chunk)

    def compute_steps(self, x, maps, weight, bias, steps, inputs, rows) -> None:
        """Computes step sizes and related inputs, with zeros outside the image.

        Writes softplus(dt @ weight + bias) to `steps` [f p 128], steps * x to `inputs` [f p 128]
        and the maps to `rows` [p c], float32.
        """

        def chunk(at, pixels, valid):
            row = maps[at].astype(jnp.float32).reshape(-1, self.tiling.map_lanes)
            row = jnp.where(valid[:, :1], row, 0.0)
            rows[pixels] = row

            def block(f):
                lanes = block_lanes(f)
                z = matmul(row, weight[:, lanes], (1, 0), exact=self.exact) + bias[:, lanes]
                step, inside = softplus(z, exact=self.exact), self.mask_channels(f, valid)
                steps[f, pixels] = jnp.where(inside, step, 0.0)
                inputs[f, pixels] = jnp.where(inside, step * self.load_block(x, at, f), 0.0)

            self.for_each_block(block)

        self.for_each_chunk(chunk)

    def mask_channels(self, f: int, valid: Bool[Array, "pixels 128"]) -> Bool[Array, "pixels 128"]:
        """Returns `valid`, but False for channels beyond the image's."""
        tiling = self.tiling
        if tiling.channels == tiling.parts * tiling.lanes:
            return valid
        first = (self._part * tiling.blocks + f) * LANES
        lane = lax.broadcasted_iota(jnp.int32, valid.shape, 1)
        return valid & (lane < tiling.channels - first)

    def clear_padding(self, *refs) -> None:
        """Sets the pixels of columns' pieces that lie below the tile's block to zero."""
        used = self.tiling.height * self.tiling.lines
        if self.tiling.column and used < self.tiling.pixels:
            for ref in refs:
                at = (..., slice(used, self.tiling.pixels), slice(None))
                ref[at] = jnp.zeros_like(ref[at])

    def spread_columns(self, rows, columns, first: Index) -> None:
        """Makes columns of a piece's B and C: register (pixel, i) has `_selected(i)` in all lanes.

        Reads maps [p c] from pixel `first` on; writes [registers*8 128].
        """
        tiling, registers, count = self.tiling, 2 * self.registers, self._product_pixels
        ones = jnp.ones((tiling.map_lanes, LANES), jnp.float32)
        selected = [self._selected(i) for i in range(registers)]

        @pl.loop(0, tiling.piece_pixels // count)
        def _(i):
            left = []
            for j in range(count):
                row = rows[pl.ds(first + (i * count + j) * tiling.strides[1], 1)]
                row = jnp.broadcast_to(row, (SUBLANES, tiling.map_lanes))
                left += [jnp.where(lane, row, 0.0) for lane in selected]
            at = sublanes(i * (count * registers), count * registers)
            columns[at] = matmul(jnp.concatenate(left), ones, (1, 0), exact=self.exact)

    def gather_columns(self, columns, parts) -> None:
        """Sums columns over their lanes into rows of maps: the transpose of `spread_columns`.

        Writes `parts` [c/128 pixels*8 128], still to be summed over sublanes (`sum_sublanes`).
        """
        tiling, registers, count = self.tiling, 2 * self.registers, self._product_pixels
        ones = jnp.ones((LANES, tiling.map_lanes), jnp.float32)
        selected = [self._selected(i) for i in range(registers)]

        @pl.loop(0, tiling.piece_pixels // count)
        def _(i):
            at = sublanes(i * (count * registers), count * registers)
            sums = matmul(columns[at], ones, (1, 0), exact=self.exact)
            for j in range(count):
                values = (
                    sums[(j * registers + e) * SUBLANES :][:SUBLANES] for e in range(registers)
                )
                values = [jnp.where(lane, v, 0.0) for lane, v in zip(selected, values, strict=True)]
                row = tree_sum(values)
                for m in range(parts.shape[0]):
                    parts[m, sublanes(i * count + j)] = row[:, m * LANES :][:, :LANES]

    def _selected(self, i: int) -> Bool[Array, "8 c"]:
        """Returns which lane of a row of maps belongs in each sublane of the i-th register.

        The registers hold B's states, then C's.
        """
        shape = (SUBLANES, self.tiling.map_lanes)
        lane = self.tiling.rank + i * SUBLANES + lax.broadcasted_iota(jnp.int32, shape, 0)
        return lax.broadcasted_iota(jnp.int32, shape, 1) == lane

    def load_row(self, ref, f, first: Index, pixel: Index) -> Float[Array, "8 128"]:
        """Loads a pixel's channels from [f p 128] into all sublanes."""
        row = ref[f, pl.ds(first + pixel * self.tiling.strides[1], 1)]
        return jnp.broadcast_to(row, (SUBLANES, LANES))

    def load_column(self, columns, pixel: Index, which: int) -> list[Array]:
        """Loads the e registers of a pixel's B (`which` 0) or C (1)."""
        first = self.column_register(pixel, which)
        return [columns[sublanes(first + e)] for e in range(self.registers)]

    def column_register(self, pixel: Index, which: int) -> Index:
        """Returns the index of the first register of a pixel's B (`which` 0) or C (1)."""
        return (pixel * 2 + which) * self.registers

    def load_rates(self, ref, f) -> list[Array]:
        """Loads the e registers of A's f-th block of channels from [n d]."""
        return [ref[sublanes(e), block_lanes(f)] for e in range(self.registers)]

    def load_states(self, ref, f, pixel: Index | int = 0) -> list[Array]:
        """Loads the e registers of a pixel's states from [f pixels*n 128]."""
        return [ref[f, sublanes(pixel * self.registers + e)] for e in range(self.registers)]

    def store_states(self, ref, f, values: Sequence[Array], pixel: Index | int = 0) -> None:
        """Stores the e registers of a pixel's states in [f pixels*n 128]."""
        for e, value in enumerate(values):
            ref[f, sublanes(pixel * self.registers + e)] = value

    def sum_sublanes(self, parts, to, first: Index) -> None:
        """Sums each pixel's sublanes of `parts` [pixels*8 128] into the piece's pixels of `to`."""
        along = self.tiling.strides[1]
        for j in range(0, self.tiling.piece_pixels, SUBLANES):
            sums = tree_sum(
                parts[pl.ds(j * SUBLANES + i, SUBLANES, SUBLANES)] for i in range(SUBLANES)
            )
            at = first + j * along
            to[pl.ds(at, SUBLANES) if along == 1 else pl.ds(at, SUBLANES, along)] = sums
