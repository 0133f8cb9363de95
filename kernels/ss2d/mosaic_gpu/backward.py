"""The kernel of the backward pass; shapes as in `program.py`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    GROUP,
    STATES,
    TILE,
    WARPS,
    Program,
    Scan,
    Threads,
    by_thread,
    launch,
    meet,
    out_image,
    store,
)

Array = jax.Array

LN2 = 0.6931471805599453


@functools.partial(jax.jit, static_argnums=0)
def backward(
    scan: Scan,
    x: Array,
    step: Array,
    maps: Array,
    dy: Array,
    saved: Array,
    A: Array,
    end: Array | None,
):
    """Gradients in every direction, from the states that `forward` saved.

    Args:
      scan, x, step, maps, A: as in `forward`.
      dy: [g h w d], in x's dtype.
      saved: [q*m e 16 groups 4].
      end: decay times adjoint of the pixel after each segment [q*s e 16 groups 4]; None for
        zeros and one segment.

    Returns:
      dx [q h w d] and the gradient before softplus [q h w d], in x's dtype; those of B and C by
      block of channels [q h w blocks*32]; of A, without its factor, [q*s e 16 groups 4].
    """
    f32, c = jnp.float32, scan.channels
    given = end is not None

    def body(x_g, step_g, maps_g, dy_g, saved_g, *rest):
        end_g = rest[0] if given else None
        A_g, dx_g, dz_g, dmaps_g, dA_g, *rest = rest[given:]
        x_s, step_s, maps_s, dy_s, states_s, parts_s, dx_s, dstep_s, dz_s, dmaps_s, *rest = rest
        ready, once, met = rest
        threads, program = Threads(scan), Program(scan)
        x_v, step_v, dy_v, dx_v, dstep_v = (
            by_thread(v, scan) for v in (x_s, step_s, dy_s, dx_s, dstep_s)
        )
        # The sums over all channels: a warp a pixel, a lane a state of B or C.
        sums = plgpu.Layout.TILED(plgpu.Tiling(((GROUP, 2 * STATES), (1,))), (-3,), (-2,), -1)

        def order(i):  # the i-th tile from the segment's last
            return program.first + program.count - 1 - i

        def fetch(i, slot):
            images = [(x_g, x_s), (dy_g, dy_s)]
            program.fetch(order(i), slot, images, (step_g, step_s), (maps_g, maps_s), ready)
            index, *_ = program.tile(order(i))
            plgpu.copy_gmem_to_smem(
                saved_g.at[index, program.warps], states_s.at[slot], ready.at[slot]
            )

        plgpu.copy_gmem_to_smem(A_g.at[program.matrix, program.warps], states_s.at[0], once)
        plgpu.barrier_wait(once)
        A = threads.load(states_s.at[0])
        adjoint = threads.zeros()
        if given:
            plgpu.copy_gmem_to_smem(end_g.at[program.piece, program.warps], states_s.at[1], once)
            plgpu.barrier_wait(once)
            adjoint = threads.load(states_s.at[1])
        plgpu.commit_smem()
        pl.when(program.count > 0)(lambda: fetch(0, 0))

        def tile(i, carry):
            slot = lax.rem(i, 2)
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))
            _, line, first, groups = program.tile(order(i))
            plgpu.barrier_wait(ready.at[slot])

            def pixel(p):
                """Step size, x, their product and B of a pixel."""
                s, x = threads.channels(step_v.at[slot, p]), threads.channels(x_v.at[slot, p])
                B = threads.states(maps_s.at[slot, p, pl.ds(0, STATES)])
                return s, x, threads.spread(s * x), B

            def advance(j, state):
                """Keeps the state before each group but the first."""
                for u in range(GROUP):
                    s, _, added, B = pixel(program.pixel(j * GROUP + u, groups))
                    state = jnp.exp2(threads.spread(s) * A) * state + added * B
                states_s[2 + j] = state
                return state

            lax.fori_loop(0, groups - 1, advance, threads.load(states_s.at[slot]))
            plgpu.wait_smem_to_gmem(0)

            def group(i, carry):
                adjoint, dA = carry
                j = groups - 1 - i
                state = threads.load(states_s.at[jnp.where(j == 0, slot, 1 + j)])
                places = [program.pixel(j * GROUP + u, groups) for u in range(GROUP)]
                decays, befores = [], []  # decay, and decay times state before, of each pixel
                for p in places:
                    s, _, added, B = pixel(p)
                    decays.append(jnp.exp2(threads.spread(s) * A))
                    befores.append(decays[-1] * state)
                    state = befores[-1] + added * B
                for p, decay, before in reversed(list(zip(places, decays, befores, strict=True))):
                    s, x, added, B = pixel(p)
                    C = threads.states(maps_s.at[slot, p, pl.ds(STATES, STATES)])
                    dy = threads.spread(threads.channels(dy_v.at[slot, p]))
                    adjoint = adjoint + dy * C
                    part = parts_s.at[lax.rem(p, GROUP)].transpose((0, 2, 1))
                    store(part.at[:, pl.ds(0, STATES)], jnp.sum(adjoint * added, axis=3))
                    store(
                        part.at[:, pl.ds(STATES, STATES)],
                        jnp.sum(dy * (before + added * B), axis=3),
                    )
                    dlog = adjoint * before  # of the logarithm of the decay, step * A
                    dadded = jnp.sum(adjoint * B, axis=1)
                    dlog_A = LN2 * jnp.sum(dlog * A, axis=1)
                    store(dx_v.at[p], (s * dadded).astype(dx_s.dtype))
                    store(dstep_v.at[lax.rem(p, GROUP)], x * dadded + dlog_A)
                    dA = dA + threads.spread(s) * dlog
                    adjoint = decay * adjoint
                meet(met)
                # The group's pixels as they lie in the tile.
                pixels = pl.ds(program.pixel(j * GROUP, groups) // GROUP * GROUP, GROUP)
                dz = dstep_s[...] * _sigmoid(step_s[slot, pixels])
                dz_s[pixels] = dz.astype(dz_s.dtype)
                dmaps_s[pixels] = functools.reduce(
                    jnp.add,
                    (
                        plgpu.layout_cast(parts_s[:, warp, v, pl.ds(0, 2 * STATES)], sums)
                        for warp in range(WARPS)
                        for v in range(scan.groups)
                    ),
                )
                meet(met)
                return adjoint, dA

            carry = lax.fori_loop(0, groups, group, carry)
            plgpu.commit_smem()

            def send(pixels):
                at = (program.q, *pixels(line, first))
                maps_at = pl.ds(program.block * 2 * STATES, 2 * STATES)
                for source, to in (
                    (dx_s, dx_g.at[(*at, program.channels)]),
                    (dz_s, dz_g.at[(*at, program.channels)]),
                    (dmaps_s, dmaps_g.at[(*at, maps_at)]),
                ):
                    plgpu.copy_smem_to_gmem(source, to, commit_group=False)

            program.each_way(send)
            plgpu.commit_smem_to_gmem_group()
            return carry

        _, dA = lax.fori_loop(0, program.count, tile, (adjoint, threads.zeros()))
        states_s[0] = dA
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(states_s.at[0], dA_g.at[program.piece, program.warps])
        plgpu.wait_smem_to_gmem(0)

    q, tile, d = scan.programs, (TILE, c), x.shape[-1]
    return launch(
        scan,
        body,
        (x, step, maps, dy, saved, *((end,) if given else ()), A),
        (
            out_image(scan, q, d, c, x.dtype),
            out_image(scan, q, d, c, x.dtype),
            out_image(scan, q, d // c * 2 * STATES, 2 * STATES),
            jax.ShapeDtypeStruct((q * scan.segments, *A.shape[1:]), f32),
        ),
        (
            plgpu.SMEM((2, *tile), x.dtype),
            plgpu.SMEM((2, *tile), f32),
            plgpu.SMEM((2, TILE, 2 * STATES), f32),
            plgpu.SMEM((2, *tile), x.dtype),
            # The state before the tile, in two slots, then before its other groups.
            plgpu.SMEM((1 + TILE // GROUP, *scan.block), f32),
            # Sums over a thread's channels for B and C, rows padded against bank conflicts.
            plgpu.SMEM((GROUP, WARPS, scan.groups, 2 * STATES + 4), f32),
            plgpu.SMEM(tile, x.dtype),
            plgpu.SMEM((GROUP, c), f32),
            plgpu.SMEM(tile, x.dtype),
            plgpu.SMEM((TILE, 2 * STATES), f32),
            plgpu.Barrier(num_arrivals=5, num_barriers=2),
            plgpu.Barrier(),
            plgpu.Barrier(),
        ),
    )


def _sigmoid(step: Array) -> Array:
    """The derivative of softplus where it is `step`: 1 - exp(-step), exact for small steps too."""
    series = step * (1 - step / 2 * (1 - step / 3 * (1 - step / 4 * (1 - step / 5))))
    return jnp.where(step < 0.25, series, 1 - jnp.exp(-step))
