"""The kernel of the backward pass (Pallas, TPU); shapes as in `way.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from mtmamba_jax.kernels.ss2d.fused import LN2
from mtmamba_jax.kernels.ss2d.mosaic_tpu.launch import Blocks, launch
from mtmamba_jax.kernels.ss2d.mosaic_tpu.memory import backward_scratch
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tile import Tile, add, block_of, product, rows_of
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import LANES, SUBLANES, Way
from mtmamba_jax.kernels.ss2d.softplus import softplus_gradient

Array = jax.Array


@functools.partial(jax.jit, static_argnums=0)
def backward(
    way: Way, x: Array, maps: Array, weight: Array, bias: Array, A: Array, dy: Array, saved: Array
) -> list[Array]:
    """Gradients in every direction of a way, from the states that `forward` saved.

    Args:
      way, x, maps, weight, bias, A: as in `forward`.
      dy: [t b h w d], in x's dtype.
      saved: [t k b m lines pieces n d], in x's dtype.

    Returns:
      dx [t k b h w d] in x's dtype; of the maps by part of the channels [t b h w k*parts*c]; of the
      projection [t k b c d], its bias [t k b 1 d] and A, without its factor, [t k b n d]; float32.
    """
    f32 = jnp.float32
    exact = f32 in (x.dtype, maps.dtype)

    def ss2d_backward(x_ref, maps_ref, weight_ref, bias_ref, A_ref, dy_ref, saved_ref, *rest):
        dx_ref, dmaps_ref, dweight_ref, dbias_ref, dA_ref, *rest = rest
        steps, inputs, dys, rows, drows, columns, dcolumns, states, *rest = rest
        dadded_parts, dlog_parts, drow_parts, adjoint, dA = rest
        *_, k, part, i = map(pl.program_id, range(5))
        tile = Tile(way, k, way.tiles - 1 - i, part, exact=exact)

        @pl.when(i == 0)
        def _():
            for ref in (adjoint, dA, dweight_ref, dbias_ref):
                ref[...] = jnp.zeros_like(ref)

        tile.clear_rest(steps, inputs, rows, dys)
        tile.prepare(x_ref, maps_ref, weight_ref, bias_ref, steps, inputs, rows)
        tile.copy(dy_ref, dys)

        def walk(line, piece, first):
            tile.spread(rows, columns, first)
            dcolumns[...] = jnp.zeros_like(dcolumns)

            def scan(blocks):
                A = [[A_ref[rows_of(e), block_of(f)] for e in range(tile.states)] for f in blocks]

                def decay(b, s):
                    return [jnp.exp2(s * A) for A in A[b]]

                def advance(p, carry):
                    """Keeps the state before each pixel."""
                    B = tile.column(columns, p, 0)
                    after = []
                    for b, f in enumerate(blocks):
                        s, u = (tile.row(ref, f, first, p) for ref in (steps, inputs))
                        tile.set_registers(states, b, carry[b], p)
                        terms = zip(decay(b, s), carry[b], B, strict=True)
                        after.append([a * h + u * B for a, h, B in terms])
                    return after

                start = [saved_ref[line, piece, :, block_of(f)].astype(f32) for f in blocks]
                last = tile.walk(
                    advance,
                    [[h[e * SUBLANES :][:SUBLANES] for e in range(tile.states)] for h in start],
                )

                def pixel(p, carry):
                    adjoints, dAs, after = carry
                    B, C = (tile.column(columns, p, which) for which in (0, 1))
                    dB, dC, carry = [], [], ([], [], [])
                    for b, f in enumerate(blocks):
                        s, u, dy = (tile.row(ref, f, first, p) for ref in (steps, inputs, dys))
                        before = tile.registers(states, b, p)
                        g = [g + dy * C for g, C in zip(adjoints[b], C, strict=True)]
                        dB.append([g * u for g in g])
                        dC.append([h * dy for h in after[b]])
                        dadded_parts[b, rows_of(p)] = add(g * B for g, B in zip(g, B, strict=True))
                        g = [a * g for a, g in zip(decay(b, s), g, strict=True)]
                        # Of the logarithm of the decay, step * A.
                        dlog = [g * h for g, h in zip(g, before, strict=True)]
                        dlog_parts[b, rows_of(p)] = add(
                            v * A for v, A in zip(dlog, A[b], strict=True)
                        )
                        carry[0].append(g)
                        carry[1].append([v + s * d for v, d in zip(dAs[b], dlog, strict=True)])
                        carry[2].append(before)
                    for which, sums in enumerate((dB, dC)):
                        for e, values in enumerate(zip(*sums, strict=True)):
                            at = rows_of(tile.column_register(p, which) + e)
                            dcolumns[at] = dcolumns[at] + add(values)
                    return carry

                carry = [[tile.registers(ref, f) for f in blocks] for ref in (adjoint, dA)]
                adjoints, dAs, _ = tile.walk(pixel, (*carry, last), backwards=True)
                for b, f in enumerate(blocks):
                    tile.set_registers(adjoint, f, adjoints[b])
                    tile.set_registers(dA, f, dAs[b])
                    tile.collect(dadded_parts.at[b], inputs.at[f], first)  # where they were read
                    tile.collect(dlog_parts.at[b], dys.at[f], first)

            tile.groups(scan)
            tile.gather(dcolumns, drow_parts)
            for m in range(way.maps // LANES):
                tile.collect(drow_parts.at[m], drows.at[m], first)

        tile.pieces(walk, backwards=True)

        def finish(at, pixels, valid):
            row = rows[pixels]
            drow = jnp.concatenate([drows[m, pixels] for m in range(way.maps // LANES)], 1)

            def group(g, drow):
                for b in range(way.group):
                    f = g * way.group + b
                    lanes, step, dadded = block_of(f), steps[f, pixels], inputs[f, pixels]
                    tile.write(dx_ref, at, f, step * dadded)
                    dstep = tile.load(x_ref, at, f) * dadded + LN2 * dys[f, pixels]
                    dz = jnp.where(tile.has(f, valid), dstep * softplus_gradient(step), 0.0)
                    dbias_ref[:, lanes] += jnp.sum(dz, 0, keepdims=True)
                    dweight_ref[:, lanes] += product(row, dz, (0, 0), exact=exact)
                    drow += product(dz, weight_ref[:, lanes], (1, 1), exact=exact)
                return drow

            drow = lax.fori_loop(0, way.groups, group, drow)
            dmaps_ref[at] = drow.reshape(at[0].size, at[1].stop - at[1].start, way.maps)

        tile.chunks(finish)

        @pl.when(i == way.tiles - 1)
        def _():
            tile.blocks(lambda f: dA_ref.__setitem__((slice(None), block_of(f)), dA[f]))

    t, b, h, w, d = x.shape
    blocks, k = Blocks(way, backwards=True), len(way.reverses)
    return launch(
        "ss2d_backward",
        way,
        ss2d_backward,
        [
            *(blocks.images, blocks.maps, blocks.parameter(way.maps), blocks.parameter(1)),
            *(blocks.parameter(way.states), blocks.images, blocks.saved),
        ],
        [
            ((t, k, b, h, w, d), x.dtype, blocks.directed),
            ((t, b, h, w, k * way.parts * way.maps), f32, blocks.map_sums),
            ((t, k, b, way.maps, d), f32, blocks.sums(way.maps)),
            ((t, k, b, 1, d), f32, blocks.sums(1)),
            ((t, k, b, way.states, d), f32, blocks.sums(way.states)),
        ],
        backward_scratch(way),
        (x, maps, weight, bias, A, dy, saved),
    )
