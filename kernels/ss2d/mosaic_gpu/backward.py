"""The backward GPU kernel; shape letters are those of `program.py`."""

import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.common import LN2, softplus_gradient
from mtmamba_jax.kernels.ss2d.mosaic_gpu.chain import Chain, passed_states
from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    GROUPS,
    RUN,
    STATES,
    TILE,
    WARPS,
    Inputs,
    Program,
    Rates,
    Scan,
    SegmentStates,
    Threads,
    launch,
    output_image,
    store,
    sync_threads,
    sync_warp,
    thread_view,
    warp_view,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.registers import (
    load_channels,
    load_states,
    store_states,
    sum_over_channels,
    sum_over_states,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.step_sizes import Steps, scratch

# Columns of a row of sums over a thread's channels: B's, C's, and padding against bank conflicts.
PART = 3 * STATES


@functools.partial(jax.jit, static_argnums=0)
def backward(
    scan: Scan,
    inputs: Inputs,
    dy: Float[Array, "g h w d"],
    saved: Float[Array, "q*m e 4 128"],
    A: Rates,
    end: SegmentStates | None,
) -> tuple[Array, ...]:
    """Computes the gradients in every direction, from the states that `forward` saved.

    `dy` is the gradient of y in x's dtype; `end` is the decay times adjoint of the pixel after each
    segment, None for a single one or chained ones.

    Returns:
      Gradients of x [q h w d], of softplus's argument [q h w d] and, per block of channels, of B
      and C [q h w blocks*32], in x's dtype; of A, before the factor log2(e), [q*s e 4 128].
    """
    x, dt, *_ = inputs
    f32, c = jnp.float32, scan.channels
    has_end, exact = end is not None, x.dtype == jnp.float32
    # Unrolling a tile's runs takes 2 % less time with eleven segments and 13 % more with one,
    # measured on an H200 (`stage3_t1_b8`, `stage3_t4_b8`).
    unrolled = scan.has_full_tiles and scan.segments > 1 and not scan.chained

    def ss2d_backward(x_g, dt_g, weight_g, maps_g, dy_g, saved_g, *rest):
        end_g = rest[0] if has_end else None
        A_g, dx_g, dz_g, dmaps_g, dA_g, *rest = rest[has_end:]
        passed_g, *rest = rest if scan.chained else (None, *rest)
        x_s, maps_s, dy_s, start_s, states_s, pool_s, dstep_s, shares_s, dmaps_s, *rest = rest
        ready, once, met, *rest = rest
        threads, steps = Threads(scan), Steps(scan, rest, exact=exact)
        # The first programs scan the last segment.
        program = Program(scan, scan.segments - 1 - lax.axis_index("segment"))
        chain = passed_g is not None and Chain(threads, program, passed_g, met)
        buffers = (x_s, steps.values, dy_s, dstep_s.at[:, pl.ds(0, c)])
        x_v, step_v, dy_v, dstep_v = (thread_view(v, scan) for v in buffers)
        # Memory that is free before the first run and after the last.
        block_s = pool_s.at[pl.ds(0, scan.stored_shape[0])]
        parts_s = pool_s.reshape(RUN, WARPS, GROUPS, PART)
        _, step_w, dy_w, dstep_w = (warp_view(v, scan) for v in buffers)
        # Layout of sums over all channels: one warp per pixel, one lane per state of B or C.
        sums = plgpu.Layout.TILED(plgpu.Tiling(((WARPS, 2 * STATES), (1,))), (-3,), (-2,), -1)

        def rows(ref):
            """Loads a run's pixels [pixels warps n], distributed over the lanes of each warp."""
            tiling = plgpu.Tiling((tuple(ref.shape), (ref.shape[-1] * RUN // 32,)))
            return plgpu.layout_cast(ref[...], plgpu.Layout.TILED(tiling, (-3,), (-4, -2), -1))

        def order(i):  # counts tiles from the segment's last
            return program.first + program.count - 1 - i

        def fetch(i, slot):
            images = [(x_g, x_s), (dy_g, dy_s.at[:, pl.ds(0, TILE)])]
            program.fetch_tile(order(i), slot, images, (dt_g, steps.dt), (maps_g, maps_s), ready)
            index, *_ = program.tile(order(i))
            plgpu.copy_gmem_to_smem(saved_g.at[index, program.rows], start_s, ready.at[slot])

        steps.load_weight(weight_g.at[program.weight_index, program.channels], once)
        plgpu.copy_gmem_to_smem(A_g.at[program.A_index, program.rows], block_s, once)
        plgpu.barrier_wait(once)
        A = load_states(threads, block_s)
        adjoint = threads.zeros()
        if end_g is not None:
            plgpu.commit_smem()
            plgpu.copy_gmem_to_smem(end_g.at[program.segment_index, program.rows], block_s, once)
            plgpu.barrier_wait(once)
            adjoint = load_states(threads, block_s)
        plgpu.commit_smem()
        pl.when(program.count > 0)(lambda: fetch(0, 0))
        if chain:
            adjoint = chain.receive()

        def tile(i, carry):
            slot = lax.rem(i, 2)
            _, line, first, pixels = program.tile(order(i))
            runs = TILE // RUN if unrolled else program.count_runs(pixels)
            plgpu.barrier_wait(ready.at[slot])
            steps.compute(slot, pixels)

            def pixel(p):
                """Loads a pixel's step size, x, their product and B."""
                s, x = load_channels(threads, step_v.at[p]), load_channels(threads, x_v.at[slot, p])
                B = threads.load_map(maps_s.at[slot, p, pl.ds(0, STATES)])
                return s, x, threads.broadcast(s * x), B

            def load_all(p):
                """Loads the same and the pixel's C and dy."""
                C = threads.load_map(maps_s.at[slot, p, pl.ds(STATES, STATES)])
                return *pixel(p), C, threads.broadcast(load_channels(threads, dy_v.at[slot, p]))

            def advance(j, state):
                """Stores the state before the j-th run."""
                store_states(threads, states_s.at[j], state)
                for u in range(RUN):
                    s, _, added, B = pixel(program.pixel_index(j * RUN + u, runs))
                    state = jnp.exp2(threads.broadcast(s) * A) * state + added * B
                return state

            last = load_states(threads, start_s)
            if unrolled:
                for j in range(runs - 1):
                    last = advance(j, last)
            else:
                last = lax.fori_loop(0, runs - 1, advance, last)
            store_states(threads, states_s.at[runs - 1], last)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the previous tile has left its slot
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))

            def finish(first):
                """Loads a run's partial sums; returns a function that completes and stores them."""
                at = pl.ds(jnp.minimum(first, TILE - RUN), RUN)
                shares = _sum(
                    rows(parts_s.at[:, :, g, pl.ds(0, 2 * STATES)]) for g in range(GROUPS)
                )
                dstep, step = rows(dstep_w), rows(step_w.at[at])

                def complete():
                    shares_s[at] = shares
                    dz = dstep * softplus_gradient(step)
                    store(dy_w.at[slot, pl.ds(first, RUN)], dz.astype(dy_s.dtype))  # over dy

                return complete

            def run(i, carry):
                adjoint, dA, last = carry
                j = runs - 1 - i
                sync_warp()
                # Loads here and stores below, so that other work hides their latency.
                complete = finish(last)
                places = [program.pixel_index(j * RUN + u, runs) for u in range(RUN)]
                decays, states = [], [load_states(threads, states_s.at[j])]
                for p in places:
                    s, _, added, B = pixel(p)
                    decays.append(jnp.exp2(threads.broadcast(s) * A))
                    states.append(decays[-1] * states[-1] + added * B)
                inputs = load_all(places[-1])
                complete()
                sync_warp()
                for u in reversed(range(RUN)):
                    p = places[u]
                    s, x, added, B, C, dy = inputs
                    adjoint = adjoint + dy * C
                    dB = sum_over_channels(threads, adjoint, added)
                    dC = sum_over_channels(threads, dy, states[u + 1])
                    dadded = sum_over_states(threads, adjoint, B, exact=exact)
                    adjoint = decays[u] * adjoint
                    dlog = adjoint * states[u]  # gradient of the decay's logarithm, step * A
                    dlog_A = LN2 * sum_over_states(threads, dlog, A, exact=exact)
                    dA = dA + threads.broadcast(s) * dlog
                    if u:  # before the stores: the compiler does not move a load across one
                        inputs = load_all(places[u - 1])
                    row = lax.rem(p, RUN)
                    part = parts_s.at[row].transpose((0, 2, 1))
                    store(part.at[:, pl.ds(0, STATES)], dB)
                    store(part.at[:, pl.ds(STATES, STATES)], dC)
                    store(x_v.at[slot, p], (s * dadded).astype(x_s.dtype))  # dx, over x
                    store(dstep_v.at[row], x * dadded + dlog_A)
                return adjoint, dA, jnp.minimum(places[0], places[-1])

            # Before the first run, `finish` writes rows that are not read or are overwritten later.
            *carry, last = lax.fori_loop(0, runs, run, (*carry, jnp.int32(TILE)))
            sync_warp()
            finish(last)()
            sync_threads(met)
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

            program.call_oriented(send)
            plgpu.commit_smem_to_gmem_group()
            return tuple(carry)

        adjoint, dA = lax.fori_loop(0, program.count, tile, (adjoint, threads.zeros()))
        if chain:
            chain.send(adjoint)
        store_states(threads, block_s, dA)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(block_s, dA_g.at[program.segment_index, program.rows])
        plgpu.wait_smem_to_gmem(0)

    q, d = scan.programs, x.shape[-1]
    dx, dz, dmaps, dA, *_ = launch(
        scan,
        ss2d_backward,
        (*inputs, dy, saved, *(() if end is None else (end,)), A),
        (
            output_image(scan, q, d, c, x.dtype),
            output_image(scan, q, d, c, x.dtype),
            output_image(scan, q, d // c * 2 * STATES, 2 * STATES, x.dtype),
            jax.ShapeDtypeStruct((q * scan.segments, *A.shape[1:]), f32),
            *([passed_states(scan, A)] if scan.chained else []),
        ),
        scratch_memory(scan, x.dtype, dt.shape[-1]),
    )
    return dx, dz, dmaps, dA


def scratch_memory(scan: Scan, dtype: DTypeLike, columns: int) -> tuple:
    """Returns the shared memory and barriers of a program; the other kernels need less.

    `dtype` is that of x, `columns` the width of the matrices of `step_sizes.operands`.
    """
    f32, c = jnp.float32, scan.channels
    parts = RUN * WARPS * GROUPS * PART
    return (
        plgpu.SMEM((2, TILE, c), dtype),
        plgpu.SMEM((2, TILE, 2 * STATES), f32),
        plgpu.SMEM((2, TILE + RUN, c), dtype),
        plgpu.SMEM(scan.stored_shape, dtype),
        plgpu.SMEM((TILE // RUN, *scan.stored_shape), dtype),
        plgpu.SMEM((parts // math.prod(scan.stored_shape[1:]), *scan.stored_shape[1:]), f32),
        plgpu.SMEM((RUN, c + scan.bank_padding), f32),
        plgpu.SMEM((TILE, WARPS, 2 * STATES), f32),
        plgpu.SMEM((TILE, 2 * STATES), dtype),
        plgpu.Barrier(num_arrivals=5, num_barriers=2),
        plgpu.Barrier(),
        plgpu.Barrier(),
        *scratch(scan, columns),
    )


def _sum(values: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, values)
