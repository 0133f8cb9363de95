"""The kernel of the forward pass; shapes as in `program.py`."""

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
    out_image,
    store,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.registers import keep, kept, over_states
from mtmamba_jax.kernels.ss2d.mosaic_gpu.step_sizes import Steps, scratch

Array = jax.Array


@functools.partial(jax.jit, static_argnums=0, static_argnames="save")
def forward(
    scan: Scan,
    x: Array,
    dt: Array,
    weight: Array,
    maps: Array,
    A: Array,
    start: Array | None,
    *,
    save: bool,
) -> list[Array]:
    """The scan in every direction.

    Args:
      scan: what is static.
      x: [g h w d].
      dt, weight: `steps.operands`, [t*k*b h w columns] and [t*k d columns].
      maps: B and C, [q h w 2*16] float32.
      A: [t*k*split e 4 128], times log2(e).
      start: states before each segment [q*s e 4 128]; None for zeros and one segment.
      save: whether to return the states too.

    Returns:
      y [q h w d] and, if saved, the states before each tile [q*m e 4 128], in x's dtype.
    """
    f32, c = jnp.float32, scan.channels
    given, exact = start is not None, x.dtype == jnp.float32

    def ss2d_forward(x_g, dt_g, weight_g, maps_g, *rest):
        start_g = rest[0] if given else None
        A_g, y_g, *rest = rest[given:]
        saved_g = rest[0] if save else None
        x_s, maps_s, state_s, ready, once, *rest = rest[save:]
        save_s, *rest = rest if save else (None, *rest)
        threads, program, steps = Threads(scan), Program(scan), Steps(scan, rest, exact=exact)
        x_v, step_v = (by_thread(v, scan) for v in (x_s, steps.values))

        def fetch(i, slot):
            images = [(x_g, x_s)]
            i = program.first + i
            program.fetch(i, slot, images, (dt_g, steps.dt), (maps_g, maps_s), ready)

        pl.when(program.count > 0)(lambda: fetch(0, 0))
        steps.load_weight(weight_g.at[program.weight, program.channels], once)
        plgpu.copy_gmem_to_smem(A_g.at[program.matrix, program.rows], state_s, once)
        plgpu.barrier_wait(once)
        A = kept(threads, state_s)
        plgpu.commit_smem()
        state = threads.zeros()
        if given:
            plgpu.copy_gmem_to_smem(start_g.at[program.piece, program.rows], state_s, once)
            plgpu.barrier_wait(once)
            state = kept(threads, state_s)

        def tile(i, state):
            slot = lax.rem(i, 2)
            index, line, first, pixels = program.tile(program.first + i)
            runs = TILE // scan.run if scan.full else program.runs(pixels)
            plgpu.barrier_wait(ready.at[slot])
            steps.make(slot, pixels)
            plgpu.wait_smem_to_gmem(0, wait_read_only=True)  # the last tile has left its slot
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))
            if save:
                keep(threads, save_s, state)
                plgpu.commit_smem()
                plgpu.copy_smem_to_gmem(save_s, saved_g.at[index, program.rows])

            def run(j, state):
                places = [program.pixel(j * scan.run + u, runs) for u in range(scan.run)]
                ys = []
                for p in places:
                    s = threads.channels(step_v.at[p])
                    added = threads.spread(s * threads.channels(x_v.at[slot, p]))
                    B = threads.states(maps_s.at[slot, p, pl.ds(0, STATES)])
                    C = threads.states(maps_s.at[slot, p, pl.ds(STATES, STATES)])
                    state = jnp.exp2(threads.spread(s) * A) * state + added * B
                    ys.append(over_states(threads, state, C, exact=exact).astype(x_s.dtype))
                # Not before the last pixel is read: the compiler moves no load across a store.
                for p, y in zip(places, ys, strict=True):
                    store(x_v.at[slot, p], y)  # where x was
                return state

            state = lax.fori_loop(0, runs, run, state)
            plgpu.commit_smem()

            def send(pixels):
                to = y_g.at[(program.q, *pixels(line, first), program.channels)]
                plgpu.copy_smem_to_gmem(x_s.at[slot], to)

            program.each_way(send)
            return state

        lax.fori_loop(0, program.count, tile, state)
        plgpu.wait_smem_to_gmem(0)

    return launch(
        scan,
        ss2d_forward,
        (x, dt, weight, maps, *((start,) if given else ()), A),
        [
            out_image(scan, scan.programs, x.shape[-1], c, x.dtype),
            *(
                [
                    jax.ShapeDtypeStruct(
                        (scan.programs * scan.tiles, A.shape[1], *scan.stored[1:]), x.dtype
                    )
                ]
                if save
                else []
            ),
        ],
        (
            plgpu.SMEM((2, TILE, c), x.dtype),
            plgpu.SMEM((2, TILE, 2 * STATES), f32),
            plgpu.SMEM(scan.stored, f32),
            plgpu.Barrier(num_arrivals=3, num_barriers=2),
            plgpu.Barrier(),
            *([plgpu.SMEM(scan.stored, x.dtype)] if save else []),
            *scratch(scan, dt.shape[-1]),
        ),
    )
