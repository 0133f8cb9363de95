"""What a program takes of a TPU core's vector memory; shapes as in `way.py`."""

from __future__ import annotations

import math

import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Way

SPARE_MEMORY = 3 * 2**20  # bytes that the compiler takes beside what is asked for


def backward_scratch(way: Way) -> list[pltpu.MemoryRef]:
    """Memory of the backward kernel beside its blocks."""

    def memory(*shape):
        return pltpu.VMEM(shape, jnp.float32)

    pixels = memory(way.blocks, way.pixels, LANES)
    column, lanes = memory(way.piece * 2 * way.states, LANES), way.maps // LANES
    part = memory(way.group, way.piece * SUBLANES, LANES)
    state = memory(way.blocks, way.states, LANES)
    return [
        *(pixels, pixels, pixels, memory(way.pixels, way.maps)),
        *(memory(lanes, way.pixels, LANES), column, column),
        memory(way.group, way.piece * way.states, LANES),
        *(part, part, memory(lanes, way.piece * SUBLANES, LANES), state, state),
    ]


def vector_memory(way: Way, dtype) -> int:
    """Bytes of a backward program, the larger one: scratch, blocks in two slots, what is spare."""
    scratched = sum(4 * math.prod(v.shape) for v in backward_scratch(way))
    size, pixels = jnp.dtype(dtype).itemsize, math.prod(way.shape)
    images, maps = 3 * pixels * way.lanes * size, pixels * way.maps * (4 + 4)
    saved = way.lines * way.pieces * way.states * way.lanes * size
    parameters = 2 * (way.maps + way.states + SUBLANES) * way.lanes * 4
    return scratched + 2 * (images + maps + saved + parameters) + SPARE_MEMORY
