"""The kernel that lets segments of a reading order start at once; shapes as in `program.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    STATES,
    TILE,
    Program,
    Scan,
    Threads,
    by_thread,
    launch,
    store,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.registers import keep, kept
from mtmamba_jax.kernels.ss2d.mosaic_gpu.step_sizes import Steps, scratch

Array = jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames="adjoint")
def summaries(
    scan: Scan, source: Array, dt: Array, weight: Array, maps: Array, A: Array, *, adjoint: bool
):
    """What each segment adds to the state behind it, and how much time passes in it.

    Args:
      scan, dt, weight, maps, A: as in `forward`.
      source: x, or dy if `adjoint`, [g h w d].
      adjoint: of the adjoint, from each segment's last pixel to its first, instead of the state.

    Returns:
      The state, or decay times adjoint, that a segment ends with if it starts from zero
      [q*(s-1) e 4 128], and its step sizes' sum [q*(s-1) d], for all segments but the one that is
      read last.
    """
    f32, c, exact = jnp.float32, scan.channels, source.dtype == jnp.float32
    segments = scan.segments - 1  # nothing starts from what the one read last ends with

    def ss2d_summaries(source_g, dt_g, weight_g, maps_g, A_g, end_g, time_g, *rest):
        source_s, maps_s, A_s, time_s, ready, once, *rest = rest
        threads, steps = Threads(scan), Steps(scan, rest, exact=exact)
        index = lax.axis_index("segment")
        program = Program(scan, index + 1 if adjoint else index)
        piece = program.q * segments + index
        source_v, step_v = (by_thread(v, scan) for v in (source_s, steps.values))

        def order(i):
            return program.first + (program.count - 1 - i if adjoint else i)

        def fetch(i, slot):
            images = [(source_g, source_s)]
            program.fetch(order(i), slot, images, (dt_g, steps.dt), (maps_g, maps_s), ready)

        pl.when(program.count > 0)(lambda: fetch(0, 0))
        steps.load_weight(weight_g.at[program.weight, program.channels], once)
        plgpu.copy_gmem_to_smem(A_g.at[program.matrix, program.rows], A_s, once)
        plgpu.barrier_wait(once)
        A = kept(threads, A_s)

        def tile(i, carry):
            slot = lax.rem(i, 2)
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))
            *_, pixels = program.tile(order(i))
            runs = program.runs(pixels)
            plgpu.barrier_wait(ready.at[slot])
            steps.make(slot, pixels)

            def run(j, carry):
                value, time = carry
                for u in range(scan.run):
                    th = j * scan.run + u
                    p = program.pixel(runs * scan.run - 1 - th if adjoint else th, runs)
                    s = threads.channels(step_v.at[p])
                    v = threads.channels(source_v.at[slot, p])
                    decay = jnp.exp2(threads.spread(s) * A)
                    if adjoint:
                        C = threads.states(maps_s.at[slot, p, pl.ds(STATES, STATES)])
                        value = decay * (value + threads.spread(v) * C)
                    else:
                        B = threads.states(maps_s.at[slot, p, pl.ds(0, STATES)])
                        value = decay * value + threads.spread(s * v) * B
                    time = time + s
                return value, time

            carry = lax.fori_loop(0, runs, run, carry)
            plgpu.commit_smem()  # all have read the tile before it is overwritten
            return carry

        value, time = lax.fori_loop(
            0, program.count, tile, (threads.zeros(), threads.zeros_by_channel())
        )
        keep(threads, A_s, value)
        store(by_thread(time_s, scan), time)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(A_s, end_g.at[piece, program.rows])
        plgpu.copy_smem_to_gmem(time_s, time_g.at[piece, program.channels])
        plgpu.wait_smem_to_gmem(0)

    tile, pieces = (2, TILE, c), scan.programs * segments
    return launch(
        scan,
        ss2d_summaries,
        (source, dt, weight, maps, A),
        (
            jax.ShapeDtypeStruct((pieces, *A.shape[1:]), f32),
            jax.ShapeDtypeStruct((pieces, source.shape[-1]), f32),
        ),
        (
            plgpu.SMEM(tile, source.dtype),
            plgpu.SMEM((2, TILE, 2 * STATES), f32),
            plgpu.SMEM(scan.stored, f32),
            plgpu.SMEM((c,), f32),
            plgpu.Barrier(num_arrivals=3, num_barriers=2),
            plgpu.Barrier(),
            *scratch(scan, dt.shape[-1]),
        ),
        segments=segments,
    )
