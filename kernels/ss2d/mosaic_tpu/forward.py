"""The kernel of the forward pass (Pallas, TPU); shapes as in `way.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mtmamba_jax.kernels.ss2d.mosaic_tpu.launch import Blocks, launch, saved_shape
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tile import Tile, add, block_of, rows_of
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Way

Array = jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames="save")
def forward(
    way: Way, x: Array, maps: Array, weight: Array, bias: Array, A: Array, *, save: bool
) -> list[Array]:
    """The scan in every direction of a way.

    Args:
      way: what is static.
      x: [t b h w d].
      maps: dt, B and C of each direction, [t b h w k*c].
      weight: projection of the step sizes [t k c d], float32; only dt's rows are not zero.
      bias: [t k 1 d], float32.
      A: [t k n d], float32, times log2(e).
      save: whether to return the states too.

    Returns:
      y [t k b h w d] and, if saved, the states before each piece [t k b m lines pieces n d], in x's
      dtype.
    """
    f32 = jnp.float32

    def ss2d_forward(x_ref, maps_ref, weight_ref, bias_ref, A_ref, y_ref, *rest):
        saved_ref, *rest = rest if save else (None, *rest)
        steps, inputs, rows, columns, parts, state = rest
        *_, k, part, i = map(pl.program_id, range(5))
        tile = Tile(way, k, i, part, exact=f32 in (x.dtype, maps.dtype))

        @pl.when(i == 0)
        def _():
            state[...] = jnp.zeros_like(state)

        tile.clear_rest(steps, inputs, rows)
        tile.prepare(x_ref, maps_ref, weight_ref, bias_ref, steps, inputs, rows)

        def walk(line, piece, first):
            tile.spread(rows, columns, first)

            def scan(blocks):
                A = [[A_ref[rows_of(e), block_of(f)] for e in range(tile.states)] for f in blocks]
                states = [tile.registers(state, f) for f in blocks]
                if save:
                    for f, h in zip(blocks, states, strict=True):
                        saved_ref[line, piece, :, block_of(f)] = jnp.concatenate(h).astype(x.dtype)

                def pixel(p, states):
                    B, C = (tile.column(columns, p, which) for which in (0, 1))
                    after = []
                    for b, f in enumerate(blocks):
                        s, u = (tile.row(ref, f, first, p) for ref in (steps, inputs))
                        h = [
                            jnp.exp2(s * A) * h + u * B
                            for A, h, B in zip(A[b], states[b], B, strict=True)
                        ]
                        parts[b, rows_of(p)] = add(h * C for h, C in zip(h, C, strict=True))
                        after.append(h)
                    return after

                states = tile.walk(pixel, states)
                for b, f in enumerate(blocks):
                    tile.set_registers(state, f, states[b])
                    tile.collect(parts.at[b], steps.at[f], first)  # where the step sizes were

            tile.groups(scan)

        tile.pieces(walk)

        def write(at, pixels, _):
            tile.blocks(lambda f: tile.write(y_ref, at, f, steps[f, pixels]))

        tile.chunks(write)

    t, b, h, w, d = x.shape
    blocks, k = Blocks(way), len(way.reverses)
    outputs = [((t, k, b, h, w, d), x.dtype, blocks.directed)]
    if save:
        outputs.append((saved_shape(way, t, b), x.dtype, blocks.saved))
    return launch(
        "ss2d_forward",
        way,
        ss2d_forward,
        [
            *(blocks.images, blocks.maps, blocks.parameter(way.maps)),
            *(blocks.parameter(1), blocks.parameter(way.states)),
        ],
        outputs,
        [
            pltpu.VMEM((way.blocks, way.pixels, LANES), f32),
            pltpu.VMEM((way.blocks, way.pixels, LANES), f32),
            pltpu.VMEM((way.pixels, way.maps), f32),
            pltpu.VMEM((way.piece * 2 * way.states, LANES), f32),
            pltpu.VMEM((way.group, way.piece * SUBLANES, LANES), f32),
            pltpu.VMEM((way.blocks, way.states, LANES), f32),
        ],
        (x, maps, weight, bias, A),
    )
