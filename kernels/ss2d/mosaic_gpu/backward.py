"""The kernel of the backward pass; shapes as in `program.py`."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mtmamba_jax.kernels.ss2d.fused import LN2
from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    GROUPS,
    RUN,
    STATES,
    TILE,
    WARPS,
    Program,
    Scan,
    Threads,
    by_thread,
    by_warp,
    launch,
    meet,
    meet_in_warp,
    out_image,
    store,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.registers import keep, kept, over_own, over_states
from mtmamba_jax.kernels.ss2d.mosaic_gpu.step_sizes import Steps, scratch
from mtmamba_jax.kernels.ss2d.softplus import softplus_gradient

Array = jax.Array

# Columns of a row of sums over a thread's channels: for B, for C, and none against bank conflicts.
PART = 3 * STATES


@functools.partial(jax.jit, static_argnums=0)
def backward(
    scan: Scan,
    x: Array,
    dt: Array,
    weight: Array,
    maps: Array,
    dy: Array,
    saved: Array,
    A: Array,
    end: Array | None,
):
    """Gradients in every direction, from the states that `forward` saved.

    Args:
      scan, x, dt, weight, maps, A: as in `forward`.
      dy: [g h w d], in x's dtype.
      saved: [q*m e 4 128], in x's dtype.
      end: decay times adjoint of the pixel after each segment [q*s e 4 128]; None for
        zeros and one segment.

    Returns:
      dx [q h w d], the gradient before softplus [q h w d] and those of B and C by block of channels
      [q h w blocks*32], in x's dtype; of A, without its factor, [q*s e 4 128].
    """
    f32, c = jnp.float32, scan.channels
    given, exact = end is not None, x.dtype == jnp.float32
    # Measured on an H200: unrolling a tile's runs makes 2 % less time of eleven segments, and 13 %
    # more of one (`stage3_t1_b8`, `stage3_t4_b8`).
    unrolled = scan.full and scan.segments > 1

    def ss2d_backward(x_g, dt_g, weight_g, maps_g, dy_g, saved_g, *rest):
        end_g = rest[0] if given else None
        A_g, dx_g, dz_g, dmaps_g, dA_g, *rest = rest[given:]
        x_s, maps_s, dy_s, start_s, states_s, pool_s, dstep_s, shares_s, dmaps_s, *rest = rest
        ready, once, met, *rest = rest
        threads, program, steps = Threads(scan), Program(scan), Steps(scan, rest, exact=exact)
        buffers = (x_s, steps.values, dy_s, dstep_s.at[:, pl.ds(0, c)])
        x_v, step_v, dy_v, dstep_v = (by_thread(v, scan) for v in buffers)
        block_s = pool_s.at[pl.ds(0, scan.stored[0])]  # until the first run, and after the last
        parts_s = pool_s.reshape(RUN, WARPS, GROUPS, PART)
        _, step_w, dy_w, dstep_w = (by_warp(v, scan) for v in buffers)
        # Sums over all channels: a warp a pixel, a lane a state of B or C.
        sums = plgpu.Layout.TILED(plgpu.Tiling(((WARPS, 2 * STATES), (1,))), (-3,), (-2,), -1)

        def rows(ref):
            """A run's pixels [pixels warps n], spread over the lanes of each warp."""
            tiling = plgpu.Tiling((tuple(ref.shape), (ref.shape[-1] * RUN // 32,)))
            return plgpu.layout_cast(ref[...], plgpu.Layout.TILED(tiling, (-3,), (-4, -2), -1))

        def order(i):  # the i-th tile from the segment's last
            return program.first + program.count - 1 - i

        def fetch(i, slot):
            images = [(x_g, x_s), (dy_g, dy_s.at[:, pl.ds(0, TILE)])]
            program.fetch(order(i), slot, images, (dt_g, steps.dt), (maps_g, maps_s), ready)
            index, *_ = program.tile(order(i))
            plgpu.copy_gmem_to_smem(saved_g.at[index, program.rows], start_s, ready.at[slot])

        steps.load_weight(weight_g.at[program.weight, program.channels], once)
        plgpu.copy_gmem_to_smem(A_g.at[program.matrix, program.rows], block_s, once)
        plgpu.barrier_wait(once)
        A = kept(threads, block_s)
        adjoint = threads.zeros()
        if given:
            plgpu.commit_smem()
            plgpu.copy_gmem_to_smem(end_g.at[program.piece, program.rows], block_s, once)
            plgpu.barrier_wait(once)
            adjoint = kept(threads, block_s)
        plgpu.commit_smem()
        pl.when(program.count > 0)(lambda: fetch(0, 0))

        def tile(i, carry):
            slot = lax.rem(i, 2)
            _, line, first, pixels = program.tile(order(i))
            runs = TILE // RUN if unrolled else program.runs(pixels)
            plgpu.barrier_wait(ready.at[slot])
            steps.make(slot, pixels)

            def pixel(p):
                """Step size, x, their product and B of a pixel."""
                s, x = threads.channels(step_v.at[p]), threads.channels(x_v.at[slot, p])
                B = threads.states(maps_s.at[slot, p, pl.ds(0, STATES)])
                return s, x, threads.spread(s * x), B

            def all_of(p):
                """C and dy of a pixel too."""
                C = threads.states(maps_s.at[slot, p, pl.ds(STATES, STATES)])
                return *pixel(p), C, threads.spread(threads.channels(dy_v.at[slot, p]))

            def advance(j, state):
                """Keeps the state before each run."""
                keep(threads, states_s.at[j], state)
                for u in range(RUN):
                    s, _, added, B = pixel(program.pixel(j * RUN + u, runs))
                    state = jnp.exp2(threads.spread(s) * A) * state + added * B
                return state

            last = kept(threads, start_s)
            if unrolled:
                for j in range(runs - 1):
                    last = advance(j, last)
            else:
                last = lax.fori_loop(0, runs - 1, advance, last)
            keep(threads, states_s.at[runs - 1], last)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last tile has left its slot
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))

            def finish(first):
                """Loads what `run` left of the pixels from `first` on; returns what ends them."""
                at = pl.ds(jnp.minimum(first, TILE - RUN), RUN)
                shares = _sum(
                    rows(parts_s.at[:, :, g, pl.ds(0, 2 * STATES)]) for g in range(GROUPS)
                )
                dstep, step = rows(dstep_w), rows(step_w.at[at])

                def complete():
                    shares_s[at] = shares
                    dz = dstep * softplus_gradient(step)
                    store(dy_w.at[slot, pl.ds(first, RUN)], dz.astype(dy_s.dtype))  # where dy was

                return complete

            def run(i, carry):
                adjoint, dA, last = carry
                j = runs - 1 - i
                meet_in_warp()
                # Between loads and stores, since their waiting is hidden there.
                complete = finish(last)
                places = [program.pixel(j * RUN + u, runs) for u in range(RUN)]
                decays, states = [], [kept(threads, states_s.at[j])]
                for p in places:
                    s, _, added, B = pixel(p)
                    decays.append(jnp.exp2(threads.spread(s) * A))
                    states.append(decays[-1] * states[-1] + added * B)
                inputs = all_of(places[-1])
                complete()
                meet_in_warp()
                for u in reversed(range(RUN)):
                    p = places[u]
                    s, x, added, B, C, dy = inputs
                    adjoint = adjoint + dy * C
                    dB, dC = over_own(threads, adjoint, added), over_own(threads, dy, states[u + 1])
                    dadded = over_states(threads, adjoint, B, exact=exact)
                    adjoint = decays[u] * adjoint
                    dlog = adjoint * states[u]  # of the logarithm of the decay, step * A
                    dlog_A = LN2 * over_states(threads, dlog, A, exact=exact)
                    dA = dA + threads.spread(s) * dlog
                    if u:  # before the stores: the compiler moves no load across one
                        inputs = all_of(places[u - 1])
                    row = lax.rem(p, RUN)
                    part = parts_s.at[row].transpose((0, 2, 1))
                    store(part.at[:, pl.ds(0, STATES)], dB)
                    store(part.at[:, pl.ds(STATES, STATES)], dC)
                    store(x_v.at[slot, p], (s * dadded).astype(x_s.dtype))  # dx, where x was
                    store(dstep_v.at[row], x * dadded + dlog_A)
                return adjoint, dA, jnp.minimum(places[0], places[-1])

            # Before the first run, rows that nobody reads, or that are written again.
            *carry, last = lax.fori_loop(0, runs, run, (*carry, jnp.int32(TILE)))
            meet_in_warp()
            finish(last)()
            meet(met)
            shares = (shares_s.at[:, warp] for warp in range(WARPS))
            dmaps = _sum(plgpu.layout_cast(share[...], sums) for share in shares)
            store(dmaps_s, dmaps.astype(dmaps_s.dtype))
            plgpu.commit_smem()

            def send(pixels):
                at = (program.q, *pixels(line, first))
                maps_at = pl.ds(program.block * 2 * STATES, 2 * STATES)
                for source, to in (
                    (x_s.at[slot], dx_g.at[(*at, program.channels)]),
                    (dy_s.at[slot, pl.ds(0, TILE)], dz_g.at[(*at, program.channels)]),
                    (dmaps_s, dmaps_g.at[(*at, maps_at)]),
                ):
                    plgpu.copy_smem_to_gmem(source, to, commit_group=False)

            program.each_way(send)
            plgpu.commit_smem_to_gmem_group()
            return tuple(carry)

        _, dA = lax.fori_loop(0, program.count, tile, (adjoint, threads.zeros()))
        keep(threads, block_s, dA)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(block_s, dA_g.at[program.piece, program.rows])
        plgpu.wait_smem_to_gmem(0)

    q, d = scan.programs, x.shape[-1]
    return launch(
        scan,
        ss2d_backward,
        (x, dt, weight, maps, dy, saved, *((end,) if given else ()), A),
        (
            out_image(scan, q, d, c, x.dtype),
            out_image(scan, q, d, c, x.dtype),
            out_image(scan, q, d // c * 2 * STATES, 2 * STATES, x.dtype),
            jax.ShapeDtypeStruct((q * scan.segments, *A.shape[1:]), f32),
        ),
        memory(scan, x.dtype, dt.shape[-1]),
    )


def memory(scan: Scan, dtype, columns: int) -> tuple:
    """Shared memory and barriers of a program; no kernel has more.

    Args:
      scan: what is static.
      dtype: of x.
      columns: of `steps.operands`' matrices.
    """
    f32, c = jnp.float32, scan.channels
    parts = RUN * WARPS * GROUPS * PART
    return (
        plgpu.SMEM((2, TILE, c), dtype),
        plgpu.SMEM((2, TILE, 2 * STATES), f32),
        plgpu.SMEM((2, TILE + RUN, c), dtype),
        plgpu.SMEM(scan.stored, dtype),
        plgpu.SMEM((TILE // RUN, *scan.stored), dtype),
        plgpu.SMEM((parts // math.prod(scan.stored[1:]), *scan.stored[1:]), f32),
        plgpu.SMEM((RUN, c + scan.spare), f32),
        plgpu.SMEM((TILE, WARPS, 2 * STATES), f32),
        plgpu.SMEM((TILE, 2 * STATES), dtype),
        plgpu.Barrier(num_arrivals=5, num_barriers=2),
        plgpu.Barrier(),
        plgpu.Barrier(),
        *scratch(scan, columns),
    )


def _sum(values: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, values)
