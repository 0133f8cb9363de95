"""The backward TPU kernel; shape letters are those of `tiling.py`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.common import LN2, softplus_gradient
from mtmamba_jax.kernels.ss2d.mosaic_tpu.launch import Blocks, launch
from mtmamba_jax.kernels.ss2d.mosaic_tpu.memory import backward_scratch
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tile import Tile, block_lanes, matmul, sublanes, tree_sum
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Inputs, Tiling


@functools.partial(jax.jit, static_argnums=0)
def backward(
    tiling: Tiling,
    inputs: Inputs,
    dy: Float[Array, "t b h w d"],
    saved: Float[Array, "t k b m lines pieces n d"],
) -> list[Array]:
    """Computes the gradients in every direction of a tiling, from the states `forward` saved.

    `dy` is the gradient of y in x's dtype.

    Returns:
      Gradients of x [k t b h w d], in x's dtype; of the maps, per part of the channels,
      [t b h w k*parts*c], in the maps' dtype if there is one part; of the projection [t k b c d],
      its bias [t k b 1 d] and A, before the factor log2(e), [t k b n d]. All others are float32.
    """
    x, maps, *_ = inputs
    f32 = jnp.float32
    exact = f32 in (x.dtype, maps.dtype)

    def ss2d_backward(x_ref, maps_ref, weight_ref, bias_ref, A_ref, dy_ref, saved_ref, *rest):
        dx_ref, dmaps_ref, dweight_ref, dbias_ref, dA_ref, *rest = rest
        steps, inputs, dys, rows, drows, columns, dcolumns, states, *rest = rest
        dadded_parts, dlog_parts, drow_parts, adjoint, dA = rest
        _t, _b, k, part, i = map(pl.program_id, range(5))
        tile = Tile(tiling, k, tiling.tiles - 1 - i, part, exact=exact)

        @pl.when(i == 0)
        def _():
            for ref in (adjoint, dA, dweight_ref, dbias_ref):
                ref[...] = jnp.zeros_like(ref)

        tile.clear_padding(steps, inputs, rows, dys)
        tile.compute_steps(x_ref, maps_ref, weight_ref, bias_ref, steps, inputs, rows)
        tile.load_image(dy_ref, dys)

        def walk(line, piece, first):
            tile.spread_columns(rows, columns, first)
            dcolumns[...] = jnp.zeros_like(dcolumns)

            def scan(blocks):
                A = [tile.load_rates(A_ref, f) for f in blocks]

                def decay(b, s):
                    return [jnp.exp2(s * A) for A in A[b]]

                def advance(p, carry):
                    """Stores the state before each pixel."""
                    B = tile.load_column(columns, p, 0)
                    after = []
                    for b, f in enumerate(blocks):
                        s, u = (tile.load_row(ref, f, first, p) for ref in (steps, inputs))
                        tile.store_states(states, b, carry[b], p)
                        terms = zip(decay(b, s), carry[b], B, strict=True)
                        after.append([a * h + u * B for a, h, B in terms])
                    return after

                start = [saved_ref[line, piece, :, block_lanes(f)].astype(f32) for f in blocks]
                last = tile.scan_pixels(
                    advance,
                    [[h[e * SUBLANES :][:SUBLANES] for e in range(tile.registers)] for h in start],
                )

                def pixel(p, carry):
                    adjoints, dAs, after = carry
                    B, C = (tile.load_column(columns, p, which) for which in (0, 1))
                    dB, dC, carry = [], [], ([], [], [])
                    for b, f in enumerate(blocks):
                        s, u, dy = (tile.load_row(ref, f, first, p) for ref in (steps, inputs, dys))
                        before = tile.load_states(states, b, p)
                        g = [g + dy * C for g, C in zip(adjoints[b], C, strict=True)]
                        dB.append([g * u for g in g])
                        dC.append([h * dy for h in after[b]])
                        dadded_parts[b, sublanes(p)] = tree_sum(
                            g * B for g, B in zip(g, B, strict=True)
                        )
                        g = [a * g for a, g in zip(decay(b, s), g, strict=True)]
                        # The gradient of the decay's logarithm, step * A.
                        dlog = [g * h for g, h in zip(g, before, strict=True)]
                        dlog_parts[b, sublanes(p)] = tree_sum(
                            v * A for v, A in zip(dlog, A[b], strict=True)
                        )
                        carry[0].append(g)
                        carry[1].append([v + s * d for v, d in zip(dAs[b], dlog, strict=True)])
                        carry[2].append(before)
                    for which, sums in enumerate((dB, dC)):
                        for e, values in enumerate(zip(*sums, strict=True)):
                            at = sublanes(tile.column_register(p, which) + e)
                            dcolumns[at] = dcolumns[at] + tree_sum(values)
                    return carry

                carry = [[tile.load_states(ref, f) for f in blocks] for ref in (adjoint, dA)]
                adjoints, dAs, _ = tile.scan_pixels(pixel, (*carry, last), backwards=True)
                for b, f in enumerate(blocks):
                    tile.store_states(adjoint, f, adjoints[b])
                    tile.store_states(dA, f, dAs[b])
                    tile.sum_sublanes(dadded_parts.at[b], inputs.at[f], first)  # over the inputs
                    tile.sum_sublanes(dlog_parts.at[b], dys.at[f], first)

            tile.for_each_group(scan)
            tile.gather_columns(dcolumns, drow_parts)
            for m in range(tiling.map_lanes // LANES):
                tile.sum_sublanes(drow_parts.at[m], drows.at[m], first)

        tile.for_each_piece(walk, backwards=True)

        def finish(at, pixels, valid):
            row = rows[pixels]
            drow = jnp.concatenate([drows[m, pixels] for m in range(tiling.map_lanes // LANES)], 1)

            def group(g, drow):
                for b in range(tiling.group):
                    f = g * tiling.group + b
                    lanes, step, dadded = block_lanes(f), steps[f, pixels], inputs[f, pixels]
                    tile.store_block(dx_ref, at, f, step * dadded)
                    dstep = tile.load_block(x_ref, at, f) * dadded + LN2 * dys[f, pixels]
                    dz = jnp.where(
                        tile.mask_channels(f, valid), dstep * softplus_gradient(step), 0.0
                    )
                    dbias_ref[:, lanes] += jnp.sum(dz, 0, keepdims=True)
                    dweight_ref[:, lanes] += matmul(row, dz, (0, 0), exact=exact)
                    drow += matmul(dz, weight_ref[:, lanes], (1, 1), exact=exact)
                return drow

            drow = lax.fori_loop(0, tiling.groups, group, drow)
            shape = (at[0].size, at[1].stop - at[1].start, tiling.map_lanes)
            dmaps_ref[at] = drow.reshape(shape).astype(dmaps_ref.dtype)

        tile.for_each_chunk(finish)

        @pl.when(i == tiling.tiles - 1)
        def _():
            tile.for_each_block(lambda f: dA_ref.__setitem__((slice(None), block_lanes(f)), dA[f]))

    t, b, h, w, d = x.shape
    blocks, k = Blocks(tiling, backwards=True), len(tiling.reverses)
    return launch(
        "ss2d_backward",
        tiling,
        ss2d_backward,
        [
            *(blocks.image, blocks.maps, blocks.parameter(tiling.map_lanes), blocks.parameter(1)),
            *(blocks.parameter(tiling.states), blocks.image, blocks.saved),
        ],
        [
            ((k, t, b, h, w, d), x.dtype, blocks.directed_image),
            (
                (t, b, h, w, k * tiling.parts * tiling.map_lanes),
                maps.dtype if tiling.parts == 1 else f32,
                blocks.map_gradients,
            ),
            ((t, k, b, tiling.map_lanes, d), f32, blocks.parameter_gradient(tiling.map_lanes)),
            ((t, k, b, 1, d), f32, blocks.parameter_gradient(1)),
            ((t, k, b, tiling.states, d), f32, blocks.parameter_gradient(tiling.states)),
        ],
        backward_scratch(tiling),
        (*inputs, dy, saved),
    )
