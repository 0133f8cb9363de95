"""Chooses how the TPU kernels cut an image into tiles, for directions along rows or down columns.

The grid copies tiles to VMEM one after another in reading order: a few whole rows, or eight
columns, the fewest that a copy can move (16 of bfloat16 on a TPU7x). A tile's lines, its rows or
columns, are cut into equal pieces of at most `MAX_PIECE_PIXELS` pixels. Sizes are rounded up;
pixels outside the image get steps of size zero, which change no state.

Letters: m tiles of an image, c lanes of a pixel's maps, p pixels of a tile, f blocks of 128
channels, e groups of 8 states.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from mtmamba_jax.kernels.ss2d.common import any_of

Index = Int[Array, ""]

SUBLANES, LANES = 8, 128  # shape of a vector register
MAX_PIECE_PIXELS = 56  # from one saved state to the next
MAX_PIECES = 4  # per line in a tile of rows
MAX_STATE_REGISTERS = 6  # for the states of one pixel in the inner loop
TILE_ELEMENTS = 2**18  # pixels times channels of a tile of rows


@dataclasses.dataclass(frozen=True)
class Tiling:
    """Static description of how all directions of one orientation read an image.

    Attributes:
      height, width, channels: Size of the image.
      column: Whether the directions read down columns rather than along rows.
      directions: Indices of the directions in the call's arrays.
      reverses: Whether each of the directions starts at the last pixel.
      states: States per channel, a multiple of 8.
      rank: Rank of the step sizes.
      parts: Number of programs that share the channels.
      group: Blocks of channels that the inner loop processes together.
      groups: Groups of a program.
      lines: Lines of a tile.
      pieces: Pieces per line in a tile.
      piece_pixels: Pixels of a piece, a multiple of 8.
    """

    height: int
    width: int
    channels: int
    column: bool
    directions: tuple[int, ...]
    reverses: tuple[bool, ...]
    states: int
    rank: int
    parts: int = 1
    group: int = 1
    groups: int = 1
    lines: int = 1
    pieces: int = 1
    piece_pixels: int = SUBLANES

    @property
    def name(self) -> str:
        """Orientation: "row" or "column"."""
        return "column" if self.column else "row"

    @property
    def blocks(self) -> int:
        """Blocks of channels per program (f)."""
        return self.groups * self.group

    @property
    def lanes(self) -> int:
        """Channels per program."""
        return self.blocks * LANES

    @property
    def map_lanes(self) -> int:
        """Lanes of dt, B and C of one pixel and direction, rounded up to whole registers (c)."""
        return pl.cdiv(self.rank + 2 * self.states, LANES) * LANES

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width of a tile, which may reach past the image on the right and below."""
        along = self.pieces * self.piece_pixels
        return (self.height, self.lines) if self.column else (self.lines, along)

    @property
    def grid(self) -> tuple[int, int]:
        """Tiles of an image, vertically and horizontally."""
        return pl.cdiv(self.height, self.shape[0]), pl.cdiv(self.width, self.shape[1])

    @property
    def tiles(self) -> int:
        """Tiles of an image (m)."""
        return math.prod(self.grid)

    @property
    def pixels(self) -> int:
        """Pixels of a tile (p)."""
        return self.lines * self.pieces * self.piece_pixels

    @property
    def strides(self) -> tuple[int, int]:
        """Distances in p between neighbouring lines and between neighbours on a line."""
        return (1, self.lines) if self.column else (self.pieces * self.piece_pixels, 1)

    def direction_index(self, k: Index) -> Index:
        """Returns the index in the call's arrays of the k-th direction, of two at most."""
        return self.directions[0] + k * (self.directions[-1] - self.directions[0])

    def is_reversed(self, k: Index) -> Bool[Array, ""]:
        """Returns whether the k-th direction starts at the last pixel."""
        return any_of(k, self.reverses)

    def tile_index(self, k: Index, i: Index) -> Index:
        """Returns the row- or column-major index of the i-th tile that the k-th direction reads."""
        return jnp.where(self.is_reversed(k), self.tiles - 1 - i, i)

    def tile_position(self, k: Index, i: Index) -> tuple[Index, Index]:
        """Returns the row and column in `grid` of the i-th tile that the k-th direction reads."""
        tile = self.tile_index(k, i)
        return lax.div(tile, self.grid[1]), lax.rem(tile, self.grid[1])


class Inputs(NamedTuple):
    """Arrays that both kernels read; parameters are float32.

    Attributes:
      x: Activations, float32 or bfloat16.
      maps: dt, B and C of each direction of the tiling.
      weight, bias: Projection of the step sizes; the rows of `weight` for B and C are zero.
      A: Rates times log2(e).
    """

    x: Float[Array, "t b h w d"]
    maps: Float[Array, "t b h w k*c"]
    weight: Float[Array, "t k c d"]
    bias: Float[Array, "t k 1 d"]
    A: Float[Array, "t k n d"]


def choose_tiling(
    call: Tiling, fits: Callable[[Tiling], bool], copied: int = SUBLANES
) -> Tiling | None:
    """Returns a tiling of a call with as few parts of the channels as fit, or None if none fits.

    Args:
      call: The attributes that the call determines, from `height` to `rank`.
      fits: Whether the programs of a tiling fit in VMEM.
      copied: The fewest columns of an image that a copy moves.
    """
    column = call.column
    length, across = (call.height, call.width) if column else (call.width, call.height)
    needed = pl.cdiv(call.channels, LANES)
    for parts in range(1, needed + 1):
        group = _choose_group(pl.cdiv(needed, parts), call.states)
        groups = pl.cdiv(pl.cdiv(needed, parts), group)
        pieces, piece = (
            _cut_line(length, SUBLANES)
            if column
            else _cut_line(min(length, MAX_PIECES * MAX_PIECE_PIXELS), copied)
        )
        lines = copied
        if not column:
            pixels = max(1, TILE_ELEMENTS // (groups * group * LANES))
            # Only a tile that holds whole lines may have several, to stay in reading order.
            most = pixels // (pieces * piece) if pieces * piece >= length else 1
            lines = pl.cdiv(across, pl.cdiv(across, max(1, most)))
        while lines:
            sizes = dict(parts=parts, group=group, groups=groups, lines=lines)
            tiling = dataclasses.replace(call, **sizes, pieces=pieces, piece_pixels=piece)
            if fits(tiling):
                return tiling
            lines = 0 if column else lines // 2
    return None


def _choose_group(blocks: int, states: int) -> int:
    """Returns as many blocks as fit the registers, where that adds few empty ones."""
    most = max(1, MAX_STATE_REGISTERS * SUBLANES // states)
    return min(range(1, most + 1), key=lambda n: (pl.cdiv(blocks, n) * n * (1 + 1 / n), -n))


def _cut_line(length: int, multiple: int) -> tuple[int, int]:
    """Returns the number and the pixels of pieces that cover a line with little to spare."""
    least = pl.cdiv(length, MAX_PIECE_PIXELS)
    cuts = ((n, pl.cdiv(pl.cdiv(length, n), multiple) * multiple) for n in (least, least + 1))
    return min(cuts, key=math.prod)
