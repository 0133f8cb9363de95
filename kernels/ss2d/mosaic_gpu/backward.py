"""The kernel of the backward pass; shapes as in `program.py`."""

from __future__ import annotations

import functools
from collections.abc import Iterable

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
    across_lanes,
    by_state,
    by_thread,
    by_warp,
    groups_of,
    launch,
    meet,
    meet_in_warp,
    out_image,
    store,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.steps import Steps, scratch, softplus_gradient

Array = jax.Array

LN2 = 0.6931471805599453
PAIR = 2  # pixels whose sums over channels a warp adds at a time


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
      saved: [q*m e 16 groups*4], in x's dtype.
      end: decay times adjoint of the pixel after each segment [q*s e 16 groups 4]; None for
        zeros and one segment.

    Returns:
      dx [q h w d] and the gradient before softplus [q h w d], in x's dtype; those of B and C by
      block of channels [q h w blocks*32]; of A, without its factor, [q*s e 16 groups 4].
    """
    f32, c = jnp.float32, scan.channels
    given = end is not None

    def ss2d_backward(x_g, dt_g, weight_g, maps_g, dy_g, saved_g, *rest):
        end_g = rest[0] if given else None
        A_g, dx_g, dz_g, dmaps_g, dA_g, *rest = rest[given:]
        x_s, maps_s, dy_s, starts_s, states_s, parts_s, dstep_s, shares_s, dmaps_s, *rest = rest
        ready, once, met, *rest = rest
        threads, program, steps = Threads(scan, own=4), Program(scan), Steps(scan, rest)
        buffers = (x_s, steps.values, dy_s, dstep_s)
        x_v, step_v, dy_v, dstep_v = (by_thread(v, scan) for v in buffers)
        _, step_w, dy_w, dstep_w = (by_warp(v, scan) for v in buffers)
        # Sums over all channels: a warp a pixel, a lane a state of B or C.
        sums = plgpu.Layout.TILED(plgpu.Tiling(((WARPS, 2 * STATES), (1,))), (-3,), (-2,), -1)

        def order(i):  # the i-th tile from the segment's last
            return program.first + program.count - 1 - i

        def fetch(i, slot):
            images = [(x_g, x_s), (dy_g, dy_s)]
            program.fetch(order(i), slot, images, (dt_g, steps.dt), (maps_g, maps_s), ready)
            index, *_ = program.tile(order(i))
            plgpu.copy_gmem_to_smem(
                saved_g.at[index, program.warps], starts_s.at[slot], ready.at[slot]
            )

        steps.load_weight(weight_g.at[program.weight, program.channels], once)
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
            _, line, first, pixels = program.tile(order(i))
            groups = groups_of(pixels)
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
                """Keeps the state before each group."""
                states_s[j] = state
                for u in range(GROUP):
                    s, _, added, B = pixel(program.pixel(j * GROUP + u, groups))
                    state = jnp.exp2(threads.spread(s) * A) * state + added * B
                return state

            start = threads.load(by_state(starts_s.at[slot], scan)).astype(f32)
            states_s[groups - 1] = lax.fori_loop(0, groups - 1, advance, start)
            plgpu.wait_smem_to_gmem(0)  # the last tile's results have left its slot
            pl.when(i + 1 < program.count)(lambda: fetch(i + 1, 1 - slot))

            def group(i, carry):
                adjoint, dA = carry
                j = groups - 1 - i
                state = threads.load(states_s.at[j])
                places = [program.pixel(j * GROUP + u, groups) for u in range(GROUP)]
                decays, befores = [], []  # decay, and decay times state before, of each pixel
                for p in places:
                    s, _, added, B = pixel(p)
                    decays.append(jnp.exp2(threads.spread(s) * A))
                    befores.append(decays[-1] * state)
                    state = befores[-1] + added * B
                inputs = all_of(places[-1])
                for u in reversed(range(GROUP)):
                    p, decay, before = places[u], decays[u], befores[u]
                    s, x, added, B, C, dy = inputs
                    adjoint = adjoint + dy * C
                    dB = jnp.sum(adjoint * added, axis=3)
                    dC = jnp.sum(dy * (before + added * B), axis=3)
                    dlog = adjoint * before  # of the logarithm of the decay, step * A
                    dadded = jnp.sum(adjoint * B, axis=1)
                    dlog_A = LN2 * jnp.sum(dlog * A, axis=1)
                    if u:  # before the stores: the compiler moves no load across one
                        inputs = all_of(places[u - 1])
                    part = parts_s.at[u % PAIR].transpose((0, 2, 1))
                    store(part.at[:, pl.ds(0, STATES)], dB)
                    store(part.at[:, pl.ds(STATES, STATES)], dC)
                    store(x_v.at[slot, p], (s * dadded).astype(x_s.dtype))  # dx, where x was
                    store(dstep_v.at[u], x * dadded + dlog_A)
                    dA = dA + threads.spread(s) * dlog
                    adjoint = decay * adjoint
                    if u % PAIR == 0:
                        meet_in_warp()
                        for v in range(PAIR):  # the warp's share of the sums over channels
                            rows = (
                                parts_s.at[v, :, g, pl.ds(0, 2 * STATES)]
                                for g in range(scan.groups)
                            )
                            shares_s[places[u + v]] = _sum(across_lanes(row) for row in rows)
                        meet_in_warp()
                for u, p in enumerate(places):
                    dz = across_lanes(dstep_w.at[u]) * softplus_gradient(across_lanes(step_w.at[p]))
                    dy_w[slot, p] = dz.astype(dy_s.dtype)  # where dy was
                meet_in_warp()
                return adjoint, dA

            carry = lax.fori_loop(0, groups, group, carry)
            meet(met)
            shares = (shares_s.at[:, warp] for warp in range(WARPS))
            dmaps_s[...] = _sum(plgpu.layout_cast(share[...], sums) for share in shares)
            plgpu.commit_smem()

            def send(pixels):
                at = (program.q, *pixels(line, first))
                maps_at = pl.ds(program.block * 2 * STATES, 2 * STATES)
                for source, to in (
                    (x_s.at[slot], dx_g.at[(*at, program.channels)]),
                    (dy_s.at[slot], dz_g.at[(*at, program.channels)]),
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
        ss2d_backward,
        (x, dt, weight, maps, dy, saved, *((end,) if given else ()), A),
        (
            out_image(scan, q, d, c, x.dtype),
            out_image(scan, q, d, c, x.dtype),
            out_image(scan, q, d // c * 2 * STATES, 2 * STATES),
            jax.ShapeDtypeStruct((q * scan.segments, *A.shape[1:]), f32),
        ),
        (
            plgpu.SMEM((2, *tile), x.dtype),
            plgpu.SMEM((2, TILE, 2 * STATES), f32),
            plgpu.SMEM((2, *tile), x.dtype),
            plgpu.SMEM((2, *scan.kept), saved.dtype),
            plgpu.SMEM((TILE // GROUP, *scan.block), f32),
            # Sums over a thread's channels for B and C, rows padded against bank conflicts.
            plgpu.SMEM((PAIR, WARPS, scan.groups, 2 * STATES + 4), f32),
            plgpu.SMEM((GROUP, c), f32),
            plgpu.SMEM((TILE, WARPS, 2 * STATES), f32),
            plgpu.SMEM((TILE, 2 * STATES), f32),
            plgpu.Barrier(num_arrivals=5, num_barriers=2),
            plgpu.Barrier(),
            plgpu.Barrier(),
            *scratch(scan, dt.shape[-1]),
        ),
    )


def _sum(values: Iterable[Array]) -> Array:
    return functools.reduce(jnp.add, values)
