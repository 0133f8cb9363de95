"""Computes how much VMEM the TPU kernels need; shape letters are those of `tiling.py`."""

import math

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike

from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Tiling

COMPILER_RESERVE = 3 * 2**20  # bytes that the compiler uses beyond what is requested


def backward_scratch(tiling: Tiling) -> list:
    """Returns the scratch memory of the backward kernel."""

    def memory(*shape):
        return pltpu.VMEM(shape, jnp.float32)

    pixels = memory(tiling.blocks, tiling.pixels, LANES)
    map_registers = tiling.map_lanes // LANES
    column = memory(tiling.piece_pixels * 2 * tiling.states, LANES)
    part = memory(tiling.group, tiling.piece_pixels * SUBLANES, LANES)
    state = memory(tiling.blocks, tiling.states, LANES)
    return [
        *(pixels, pixels, pixels, memory(tiling.pixels, tiling.map_lanes)),
        *(memory(map_registers, tiling.pixels, LANES), column, column),
        memory(tiling.group, tiling.piece_pixels * tiling.states, LANES),
        *(part, part, memory(map_registers, tiling.piece_pixels * SUBLANES, LANES), state, state),
    ]


def vmem_bytes(tiling: Tiling, dtype: DTypeLike) -> int:
    """Returns the bytes of a backward program, whose kernel is the larger, for x of `dtype`."""
    scratch = sum(4 * math.prod(v.shape) for v in backward_scratch(tiling))
    size, pixels = jnp.dtype(dtype).itemsize, math.prod(tiling.shape)
    images, maps = 3 * pixels * tiling.lanes * size, pixels * tiling.map_lanes * (4 + 4)
    saved = tiling.lines * tiling.pieces * tiling.states * tiling.lanes * size
    parameters = 2 * (tiling.map_lanes + tiling.states + SUBLANES) * tiling.lanes * 4
    # Blocks of the arrays are double-buffered.
    return scratch + 2 * (images + maps + saved + parameters) + COMPILER_RESERVE
