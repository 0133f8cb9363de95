"""The backward kernel; shape letters are those of `program.py`."""

import functools
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mtmamba_jax.kernels import triton_instructions as instructions
from mtmamba_jax.kernels.ss2d.common import LN2, softplus_gradient
from mtmamba_jax.kernels.ss2d.triton.program import (
    STATES,
    TILE,
    Blocks,
    Inputs,
    Output,
    Program,
    Scan,
    launch,
    private,
)

RUN = 4  # pixels whose states and decays are in registers at the same time


class Gradients(NamedTuple):
    """Results of `backward`: x's and its dtype, except A's, which is float32.

    Attributes:
      x, z: Gradients of x and of softplus's argument.
      B, C: Gradients of the maps, of each block of channels.
      A: Gradient of A without the factor log2(e), of each segment.
    """

    x: Float[Array, "q l d"]
    z: Float[Array, "q l d"]
    B: Float[Array, "q d/c l 16"]
    C: Float[Array, "q d/c l 16"]
    A: Float[Array, "q s d 16"]


def backward(
    scan: Scan,
    inputs: Inputs,
    dy: Float[Array, "o*t*b l d"],
    saved: Float[Array, "q m d 4 4"],
    end: Float[Array, "q s d 16"] | None,
) -> Gradients:
    """Computes the gradients of every direction.

    Args:
      scan: Static description of the launch.
      inputs: Arrays that every kernel reads.
      dy: Gradient of y.
      saved: States before each tile, from `forward`.
      end: Decay times adjoint of the pixel after each segment, None for a single one.
    """
    blocks, dtype, d = Blocks(scan), inputs.x.dtype, inputs.x.shape[-1]
    image = Output((scan.programs, scan.length, d), dtype, blocks.result())
    maps = (scan.programs, d // scan.block, scan.length, STATES)
    states = (scan.programs, scan.segments, d, STATES)
    outputs = [
        private(scan, inputs, scan.segments, 2, TILE, scan.block),
        private(scan, inputs, scan.segments, TILE // RUN, scan.block, STATES),
        *(image, image),
        *(Output(maps, dtype, blocks.maps()), Output(maps, dtype, blocks.maps())),
        Output(states, jnp.float32, blocks.by_segment(STATES)),
    ]
    more = [(dy, blocks.image()), (saved, blocks.saved())]
    if end is not None:
        more.append((end, blocks.by_segment(STATES)))
    body = functools.partial(_ss2d_backward, scan, end is not None)
    return Gradients(*launch(scan, body, inputs, more, outputs, segments=scan.segments)[2:])


def _ss2d_backward(scan: Scan, has_end: bool, *refs):
    inputs, (dy, saved, *rest) = Inputs(*refs[:7]), refs[7:]
    end = rest.pop(0) if has_end else None
    memory, starts, dx, dz, dB, dC, dA = rest
    program = Program(scan, inputs, memory, backwards=True)
    A, runs = inputs.A[...], TILE // RUN

    def load(i, run):
        """Returns places, step sizes, x and B of a run's pixels, the last one first."""
        loaded = []
        for j in range(RUN):
            p, step = program.pixel(i, run * RUN + j), program.step(i, run * RUN + j)
            loaded.append((p, step, inputs.x[p, :].astype(jnp.float32), inputs.B[p, :]))
        return loaded

    def advance(state, step, x, B):
        """Returns the decay of a pixel and the states after it."""
        decay = instructions.exp2(step[:, None] * A)
        return decay, instructions.multiply_add(decay, state, (step * x)[:, None] * B[None])

    def tile(i, carry):
        instructions.sync()
        program.prepare_steps(i + 1)

        def rerun(k, state):  # in reading order, and thus from the last run
            run = runs - 1 - k
            starts[run, :, :] = state
            for _, step, x, B in reversed(load(i, run)):
                _, state = advance(state, step, x, B)
            return state

        state = saved[program.tile(i), :, :, :].reshape(scan.block, STATES).astype(jnp.float32)
        starts[0, :, :] = lax.fori_loop(0, runs - 1, rerun, state)
        instructions.sync()
        return lax.fori_loop(0, runs, functools.partial(reverse, i), carry)

    def reverse(i, run, carry):
        adjoint, total = carry  # the adjoint is multiplied by the decay of the pixel after it
        loaded = load(i, run)
        more = [(dy[p, :].astype(jnp.float32), inputs.C[p, :]) for p, *_ in loaded]
        states, decays = [starts[run, :, :]], []
        for _, step, x, B in reversed(loaded):
            decay, state = advance(states[-1], step, x, B)
            decays.append(decay)
            states.append(state)
        for (p, step, x, B), (g, C) in zip(loaded, more, strict=True):
            adjoint = instructions.multiply_add(g[:, None], C[None], adjoint)
            gradient_C = jnp.sum(g[:, None] * states.pop(), 0)
            gradient_B = jnp.sum(adjoint * (step * x)[:, None], 0)
            added = jnp.sum(adjoint * B[None], 1)
            adjoint *= decays.pop()
            log = adjoint * states[-1]  # gradient of the decay's logarithm
            total = instructions.multiply_add(log, step[:, None], total)
            gradient_step = jnp.sum(log * A, 1) * LN2 + added * x
            gradient_z = gradient_step * softplus_gradient(step)
            results = added * step, gradient_z, gradient_B, gradient_C
            for ref, value in zip((dx, dz, dB, dC), results, strict=True):
                ref[p, :] = value.astype(ref.dtype)
        return adjoint, total

    zero = jnp.zeros((scan.block, STATES), jnp.float32)
    program.prepare_steps(0)
    _, dA[...] = lax.fori_loop(0, scan.tiles, tile, (zero if end is None else end[...], zero))
