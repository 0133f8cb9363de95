"""How the kernels walk an image, along its rows or down its columns (Pallas, TPU).

A way is cut into tiles, which the grid brings to vector memory one after another in reading order:
a few rows of an image, or eight columns, the least that a copy takes. A tile's lines, rows or
columns, are cut into equal pieces of at most `PIECE` pixels. Sizes are rounded up; pixels that no
image has get steps of size zero, which change no state.

Shapes: m counts tiles, c lanes of a row of maps, p pixels of a tile, f blocks of 128 channels, e
groups of 8 states.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl

SUBLANES, LANES = 8, 128  # of a vector register
PIECE = 56  # pixels, at most, from one saved state to the next
PIECES = 4  # of a line in one tile, at most
REGISTERS = 6  # that states of one pixel may take in the inner loop
ENOUGH = 2**18  # elements, pixels times channels, of a tile of rows


@dataclasses.dataclass(frozen=True)
class Way:
    """What is static about a walk.

    Attributes:
      height, width, channels: of the image, in pixels, and of its last axis.
      column: down columns, not along rows.
      which: the call's directions that walk this way, by their place in its arrays.
      reverses: for each of them, whether from the last pixel to the first.
      states: of a channel, a multiple of 8.
      rank: of the step sizes.
      parts: programs that share the channels.
      group: blocks of channels that the inner loop walks together.
      groups: of a program.
      lines: of a tile.
      pieces: of a line in a tile.
      piece: pixels of a piece, a multiple of 8.
    """

    height: int
    width: int
    channels: int
    column: bool
    which: tuple[int, ...]
    reverses: tuple[bool, ...]
    states: int
    rank: int
    parts: int
    group: int
    groups: int
    lines: int
    pieces: int
    piece: int

    @property
    def name(self) -> str:
        """Row or column."""
        return "column" if self.column else "row"

    @property
    def blocks(self) -> int:
        """f, blocks of channels of one program."""
        return self.groups * self.group

    @property
    def lanes(self) -> int:
        """Channels of one program."""
        return self.blocks * LANES

    @property
    def maps(self) -> int:
        """c: dt, B and C of a pixel and direction, in whole registers."""
        return pl.cdiv(self.rank + 2 * self.states, LANES) * LANES

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a tile; a tile may reach past the image to the right and below."""
        along = self.pieces * self.piece
        return (self.height, self.lines) if self.column else (self.lines, along)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of an image, downwards and to the right."""
        return pl.cdiv(self.height, self.shape[0]), pl.cdiv(self.width, self.shape[1])

    @property
    def tiles(self) -> int:
        """m."""
        return math.prod(self.grid)

    @property
    def pixels(self) -> int:
        """p."""
        return self.lines * self.pieces * self.piece

    @property
    def strides(self) -> tuple[int, int]:
        """Pixels between neighbours in p: of lines, and on a line."""
        return (1, self.lines) if self.column else (self.pieces * self.piece, 1)

    def direction(self, k: Array) -> Array:
        """Place in the call's arrays of the way's k-th direction, of two at most."""
        return self.which[0] + k * (self.which[-1] - self.which[0])

    def reverse(self, k: Array) -> Array:
        """Whether the way's k-th direction walks from the last pixel to the first."""
        flags = [k == i for i, flag in enumerate(self.reverses) if flag]
        return functools.reduce(jnp.logical_or, flags) if flags else k < 0

    def tile(self, k: Array, i: Array) -> Array:
        """Which tile, counted along the way, is the i-th in the k-th direction's reading order."""
        return jnp.where(self.reverse(k), self.tiles - 1 - i, i)

    def place(self, k: Array, i: Array) -> tuple[Array, Array]:
        """Row and column of that tile in `grid`."""
        tile = self.tile(k, i)
        return lax.div(tile, self.grid[1]), lax.rem(tile, self.grid[1])


def cut(
    height: int,
    width: int,
    channels: int,
    column: bool,
    which: tuple[int, ...],
    reverses: tuple[bool, ...],
    states: int,
    rank: int,
    fits: Callable[[Way], bool],
) -> Way | None:
    """Cuts a way into tiles, and the channels into as few parts as fit.

    Args:
      height, width, channels, column, which, reverses, states, rank: of `Way`.
      fits: whether a way's programs have memory enough.

    Returns:
      None if no cut fits: columns are too long.
    """
    length, across = (height, width) if column else (width, height)
    needed = pl.cdiv(channels, LANES)
    for parts in range(1, needed + 1):
        group = _group(pl.cdiv(needed, parts), states)
        groups = pl.cdiv(pl.cdiv(needed, parts), group)
        pieces, piece = _pieces(length if column else min(length, PIECES * PIECE))
        lines = SUBLANES
        if not column:
            pixels = max(1, ENOUGH // (groups * group * LANES))
            most = pixels // (pieces * piece) if pieces * piece >= length else 1  # lines in order
            lines = pl.cdiv(across, pl.cdiv(across, max(1, most)))
        while lines:
            way = Way(
                *(height, width, channels, column, which, reverses, states, rank),
                *(parts, group, groups, lines, pieces, piece),
            )
            if fits(way):
                return way
            lines = 0 if column else lines // 2
    return None


def _group(blocks: int, states: int) -> int:
    """As many blocks as fit the registers, where that adds few empty ones."""
    most = max(1, REGISTERS * SUBLANES // states)
    return min(range(1, most + 1), key=lambda n: (pl.cdiv(blocks, n) * n * (1 + 1 / n), -n))


def _pieces(length: int) -> tuple[int, int]:
    """Number and pixels of a line's pieces, which reach over it with few pixels to spare."""
    least = pl.cdiv(length, PIECE)
    cuts = ((n, pl.cdiv(pl.cdiv(length, n), SUBLANES) * SUBLANES) for n in (least, least + 1))
    return min(cuts, key=math.prod)
