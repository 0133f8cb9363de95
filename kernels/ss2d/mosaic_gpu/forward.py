"""The forward GPU kernel; shape letters are those of `program.py`."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from mtmamba_jax.kernels.ss2d.mosaic_gpu.chain import Chain, passed_states
from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    STATES,
    TILE,
    Inputs,
    Program,
    Rates,
    Scan,
    SegmentStates,
    Threads,
    launch,
    output_image,
    store,
    thread_view,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.registers import (
    load_channels,
    load_states,
    store_states,
    sum_over_states,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.step_sizes import Steps, scratch


@functools.partial(jax.jit, static_argnums=0, static_argnames="save")
def forward(
    scan: Scan, inputs: Inputs, A: Rates, start: SegmentStates | None, *, save: bool
) -> list[Array]:
    """Scans every direction; `start` holds the states before each segment, None for one or chained.

    Returns:
      y [q h w d] and, if `save`, the states before each tile [q*m e 4 128], in x's dtype.
    """
    x, dt, *_ = inputs
    f32, c = jnp.float32, scan.channels
    has_start, exact = start is not None, x.dtype == jnp.float32

    def ss2d_forward(x_g, dt_g, weight_g, maps_g, *rest):
        start_g = rest[0] if has_start else None
        A_g, y_g, *rest = rest[has_start:]
        saved_g, *rest = rest if save else (None, *rest)
        passed_g, *rest = rest if scan.chained else (None, *rest)
        x_s, maps_s, state_s, ready, once, *rest = rest
        save_s, *rest = rest if save else (None, *rest)
        threads, program, steps = Threads(scan), Program(scan), Steps(scan, rest, exact=exact)
        x_v, step_v = (thread_view(v, scan) for v in (x_s, steps.values))
        chain = passed_g is not None and Chain(threads, program, passed_g, once)

        def fetch(i, slot):
            images = [(x_g, x_s)]
            i = program.first + i
            program.fetch_tile(i, slot, images, (dt_g, steps.dt), (maps_g, maps_s), ready)

        pl.when(program.count > 0)(lambda: fetch(0, 0))
        steps.load_weight(weight_g.at[program.weight_index, program.channels], once)
        plgpu.copy_gmem_to_smem(A_g.at[program.A_index, program.rows], state_s, once)
        plgpu.barrier_wait(once)
        A = load_states(threads, state_s)
        plgpu.commit_smem()
        state = threads.zeros()
        if start_g is not None:
            plgpu.copy_gmem_to_smem(start_g.at[program.segment_index, program.rows], state_s, once)
            plgpu.barrier_wait(once)
            state = load_states(threads, state_s)
        if chain:
            state = chain.receive()

        def tile(i, state):
            slot = lax.rem(i, 2)
            index, line, first, pixels = program.tile(program.first + i)
            runs = TILE // scan.run if scan.has_full_tiles else program.count_runs(pixels)
            plgpu.barrier_wait(ready.at[slot])
            steps.compute(slot, pixels)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the previous tile has left its slot
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))
            if save_s is not None and saved_g is not None:
                store_states(threads, save_s, state)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(save_s, saved_g.at[index, program.rows])

            def run(j, state):
                places = [program.pixel_index(j * scan.run + u, runs) for u in range(scan.run)]
                ys = []
                for p in places:
                    s = load_channels(threads, step_v.at[p])
                    added = threads.broadcast(s * load_channels(threads, x_v.at[slot, p]))
                    B = threads.load_map(maps_s.at[slot, p, pl.ds(0, STATES)])
                    C = threads.load_map(maps_s.at[slot, p, pl.ds(STATES, STATES)])
                    state = jnp.exp2(threads.broadcast(s) * A) * state + added * B
                    ys.append(sum_over_states(threads, state, C, exact=exact).astype(x_s.dtype))
                # After all loads: the compiler does not move a load across a store.
                for p, y in zip(places, ys, strict=True):
                    store(x_v.at[slot, p], y)  # over x
                return state

            state = lax.fori_loop(0, runs, run, state)
            plgpu.commit_smem()

            def send(pixels):
                to = y_g.at[(program.q, *pixels(line, first), program.channels)]
                plgpu.copy_smem_to_gmem(x_s.at[slot], to)

            program.call_oriented(send)
            return state

        state = lax.fori_loop(0, program.count, tile, state)
        if chain:
            chain.send(state)
        plgpu.wait_smem_to_gmem(0)

    outputs = [output_image(scan, scan.programs, x.shape[-1], c, x.dtype)]
    if save:
        shape = (scan.programs * scan.tiles, A.shape[1], *scan.stored_shape[1:])
        outputs.append(jax.ShapeDtypeStruct(shape, x.dtype))
    passed = [passed_states(scan, A)] if scan.chained else []
    return launch(
        scan,
        ss2d_forward,
        (*inputs, *(() if start is None else (start,)), A),
        [*outputs, *passed],
        (
            plgpu.SMEM((2, TILE, c), x.dtype),
            plgpu.SMEM((2, TILE, 2 * STATES), f32),
            plgpu.SMEM(scan.stored_shape, f32),
            plgpu.Barrier(num_arrivals=3, num_barriers=2),
            plgpu.Barrier(),
            *([plgpu.SMEM(scan.stored_shape, x.dtype)] if save else []),
            *scratch(scan, dt.shape[-1]),
        ),
    )[: len(outputs)]
