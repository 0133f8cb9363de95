"""The GPU kernel that summarizes segments, so that all of them can be scanned at the same time.

Shape letters are those of `program.py`.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    STATES,
    TILE,
    Inputs,
    Program,
    Rates,
    Scan,
    Threads,
    launch,
    store,
    thread_view,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.registers import load_channels, load_states, store_states
from mtmamba_jax.kernels.ss2d.mosaic_gpu.step_sizes import Steps, scratch


@functools.partial(jax.jit, static_argnums=0, static_argnames="adjoint")
def summaries(
    scan: Scan, inputs: Inputs, A: Rates, *, adjoint: bool
) -> tuple[Float[Array, "q*(s-1) e 4 128"], Float[Array, "q*(s-1) d"]]:
    """Computes the state at the end of each segment for a start at zero, and the sum of its steps.

    With `adjoint`, `inputs.x` is dy, and adjoints are scanned from each segment's last pixel to its
    first.

    Returns:
      The final states, or decays times adjoints, and the sums of step sizes, of all segments but
      the one that is read last.
    """
    source, dt, *_ = inputs
    f32, c, exact = jnp.float32, scan.channels, source.dtype == jnp.float32
    segments = scan.segments - 1  # nothing follows the segment that is read last

    def ss2d_summaries(source_g, dt_g, weight_g, maps_g, A_g, end_g, time_g, *rest):
        source_s, maps_s, A_s, time_s, ready, once, *rest = rest
        threads, steps = Threads(scan), Steps(scan, rest, exact=exact)
        index = lax.axis_index("segment")
        program = Program(scan, index + 1 if adjoint else index)
        piece = program.q * segments + index
        source_v, step_v = (thread_view(v, scan) for v in (source_s, steps.values))

        def order(i):
            return program.first + (program.count - 1 - i if adjoint else i)

        def fetch(i, slot):
            images = [(source_g, source_s)]
            program.fetch_tile(order(i), slot, images, (dt_g, steps.dt), (maps_g, maps_s), ready)

        pl.when(program.count > 0)(lambda: fetch(0, 0))
        steps.load_weight(weight_g.at[program.weight_index, program.channels], once)
        plgpu.copy_gmem_to_smem(A_g.at[program.A_index, program.rows], A_s, once)
        plgpu.barrier_wait(once)
        A = load_states(threads, A_s)

        def tile(i, carry):
            slot = lax.rem(i, 2)
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))
            *_, pixels = program.tile(order(i))
            runs = program.count_runs(pixels)
            plgpu.barrier_wait(ready.at[slot])
            steps.compute(slot, pixels)

            def run(j, carry):
                value, time = carry
                for u in range(scan.run):
                    th = j * scan.run + u
                    p = program.pixel_index(runs * scan.run - 1 - th if adjoint else th, runs)
                    s = load_channels(threads, step_v.at[p])
                    v = load_channels(threads, source_v.at[slot, p])
                    decay = jnp.exp2(threads.broadcast(s) * A)
                    if adjoint:
                        C = threads.load_map(maps_s.at[slot, p, pl.ds(STATES, STATES)])
                        value = decay * (value + threads.broadcast(v) * C)
                    else:
                        B = threads.load_map(maps_s.at[slot, p, pl.ds(0, STATES)])
                        value = decay * value + threads.broadcast(s * v) * B
                    time = time + s
                return value, time

            carry = lax.fori_loop(0, runs, run, carry)
            plgpu.commit_smem()  # all threads have read the tile before it is overwritten
            return carry

        value, time = lax.fori_loop(
            0, program.count, tile, (threads.zeros(), threads.zeros_by_channel())
        )
        store_states(threads, A_s, value)
        store(thread_view(time_s, scan), time)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(A_s, end_g.at[piece, program.rows])
        plgpu.copy_smem_to_gmem(time_s, time_g.at[piece, program.channels])
        plgpu.wait_smem_to_gmem(0)

    tile, pieces = (2, TILE, c), scan.programs * segments
    return launch(
        scan,
        ss2d_summaries,
        (*inputs, A),
        (
            jax.ShapeDtypeStruct((pieces, *A.shape[1:]), f32),
            jax.ShapeDtypeStruct((pieces, source.shape[-1]), f32),
        ),
        (
            plgpu.SMEM(tile, source.dtype),
            plgpu.SMEM((2, TILE, 2 * STATES), f32),
            plgpu.SMEM(scan.stored_shape, f32),
            plgpu.SMEM((c,), f32),
            plgpu.Barrier(num_arrivals=3, num_barriers=2),
            plgpu.Barrier(),
            *scratch(scan, dt.shape[-1]),
        ),
        segments=segments,
    )
