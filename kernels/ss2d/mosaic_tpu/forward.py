"""The forward TPU kernel; shape letters are those of `tiling.py`."""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from mtmamba_jax.kernels.ss2d.mosaic_tpu.launch import Blocks, launch, saved_shape
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tile import Tile, block_lanes, sublanes, tree_sum
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Inputs, Tiling


@functools.partial(jax.jit, static_argnums=0, static_argnames="save")
def forward(tiling: Tiling, inputs: Inputs, *, save: bool) -> list[Array]:
    """Scans every direction of a tiling.

    Returns:
      y [k t b h w d] and, if `save`, the states before each piece [t k b m lines pieces n d], in
      x's dtype.
    """
    x, maps, *_ = inputs
    f32 = jnp.float32

    def ss2d_forward(x_ref, maps_ref, weight_ref, bias_ref, A_ref, y_ref, *rest):
        saved_ref, rest = (rest[0], rest[1:]) if save else (None, rest)
        steps, inputs, rows, columns, parts, state = rest
        _t, _b, k, part, i = map(pl.program_id, range(5))
        tile = Tile(tiling, k, i, part, exact=f32 in (x.dtype, maps.dtype))

        @pl.when(i == 0)
        def _():
            state[...] = jnp.zeros_like(state)

        tile.clear_padding(steps, inputs, rows)
        tile.compute_steps(x_ref, maps_ref, weight_ref, bias_ref, steps, inputs, rows)

        def walk(line, piece, first):
            tile.spread_columns(rows, columns, first)

            def scan(blocks):
                A = [tile.load_rates(A_ref, f) for f in blocks]
                states = [tile.load_states(state, f) for f in blocks]
                if saved_ref is not None:
                    for f, h in zip(blocks, states, strict=True):
                        before = jnp.concatenate(h).astype(x.dtype)
                        saved_ref[line, piece, :, block_lanes(f)] = before

                def pixel(p, states):
                    B, C = (tile.load_column(columns, p, which) for which in (0, 1))
                    after = []
                    for b, f in enumerate(blocks):
                        s, u = (tile.load_row(ref, f, first, p) for ref in (steps, inputs))
                        h = [
                            jnp.exp2(s * A) * h + u * B
                            for A, h, B in zip(A[b], states[b], B, strict=True)
                        ]
                        parts[b, sublanes(p)] = tree_sum(h * C for h, C in zip(h, C, strict=True))
                        after.append(h)
                    return after

                states = tile.scan_pixels(pixel, states)
                for b, f in enumerate(blocks):
                    tile.store_states(state, f, states[b])
                    tile.sum_sublanes(parts.at[b], steps.at[f], first)  # over the step sizes

            tile.for_each_group(scan)

        tile.for_each_piece(walk)

        def write(at, pixels, _):
            tile.for_each_block(lambda f: tile.store_block(y_ref, at, f, steps[f, pixels]))

        tile.for_each_chunk(write)

    t, b, h, w, d = x.shape
    blocks, k = Blocks(tiling), len(tiling.reverses)
    outputs: list = [((k, t, b, h, w, d), x.dtype, blocks.directed_image)]
    if save:
        outputs.append((saved_shape(tiling, t, b), x.dtype, blocks.saved))
    return launch(
        "ss2d_forward",
        tiling,
        ss2d_forward,
        [
            *(blocks.image, blocks.maps, blocks.parameter(tiling.map_lanes)),
            *(blocks.parameter(1), blocks.parameter(tiling.states)),
        ],
        outputs,
        [
            *[pltpu.VMEM((tiling.blocks, tiling.pixels, LANES), f32)] * 2,
            pltpu.VMEM((tiling.pixels, tiling.map_lanes), f32),
            pltpu.VMEM((tiling.piece_pixels * 2 * tiling.states, LANES), f32),
            pltpu.VMEM((tiling.group, tiling.piece_pixels * SUBLANES, LANES), f32),
            pltpu.VMEM((tiling.blocks, tiling.states, LANES), f32),
        ],
        inputs,
    )
