"""The forward kernel, and the kernel that summarizes segments to give each its start.

Shape letters are those of `program.py`.
"""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mtmamba_jax.kernels import triton_instructions as instructions
from mtmamba_jax.kernels.ss2d.triton.program import (
    STATES,
    THREAD_STATES,
    TILE,
    Blocks,
    Inputs,
    Output,
    Program,
    Scan,
    launch,
    private,
)

RUN = 4  # pixels that are loaded together: no load moves across a store


def forward(
    scan: Scan, inputs: Inputs, start: Float[Array, "q s d 16"] | None, *, save: bool
) -> list[Array]:
    """Scans every direction; `start` holds the states before each segment, None for a single one.

    Returns:
      y [q l d] and, if `save`, the states before each tile [q m d 4 4], in x's dtype.
    """
    blocks, dtype, d = Blocks(scan), inputs.x.dtype, inputs.x.shape[-1]
    outputs = [
        private(scan, inputs, scan.segments, 2, TILE, scan.block),
        Output((scan.programs, scan.length, d), dtype, blocks.result()),
    ]
    if save:
        states = (THREAD_STATES, STATES // THREAD_STATES)
        shape = (scan.programs, scan.length // TILE, d, *states)
        outputs.append(Output(shape, dtype, blocks.saved()))
    more = [] if start is None else [(start, blocks.by_segment(STATES))]
    body = functools.partial(_ss2d_forward, scan, start is not None, save)
    return launch(scan, body, inputs, more, outputs, segments=scan.segments)[1:]


def _ss2d_forward(scan: Scan, has_start: bool, save: bool, *refs):
    inputs, rest = Inputs(*refs[:7]), list(refs[7:])
    start = rest.pop(0) if has_start else None
    memory, y, *saved = rest
    program = Program(scan, inputs, memory)
    A = inputs.A[...]

    def advance(i, state):
        instructions.sync()
        program.prepare_steps(i + 1)
        for ref in saved:
            # Four states at a time: Triton would give a thread eight, and more sums over threads.
            tile = state.astype(ref.dtype).reshape(ref.shape[1:])
            ref[program.tile(i), :, :, :] = tile
        for first in range(0, TILE, RUN):
            ys = []
            for pixel, step, x, B, C in _load(program, inputs, i, first):
                decay = instructions.exp2(step[:, None] * A)
                state = instructions.multiply_add(decay, state, (step * x)[:, None] * B[None])
                ys.append((pixel, jnp.sum(state * C[None], 1)))
            for pixel, value in ys:
                y[pixel, :] = value.astype(y.dtype)
        return state

    zero = jnp.zeros((scan.block, STATES), jnp.float32)
    program.prepare_steps(0)
    lax.fori_loop(0, scan.tiles, advance, zero if start is None else start[...])


def summaries(
    scan: Scan, inputs: Inputs, *, adjoint: bool
) -> tuple[Float[Array, "q s-1 d 16"], Float[Array, "q s-1 d"]]:
    """Scans each segment from zero; with more than one segment only.

    Args:
      scan: Static description of the launch.
      inputs: Inputs of the scan, in which dy replaces x if `adjoint`.
      adjoint: Whether to compute the adjoints, against the reading order.

    Returns:
      The states after each segment but the last, or with `adjoint` before each but the first, times
      the decay of the pixel there; and the sums of the segments' step sizes.
    """
    first, segments, d = int(adjoint), scan.segments - 1, inputs.x.shape[-1]
    blocks, shape = Blocks(scan, first), (scan.programs, segments, d)
    outputs = [
        private(scan, inputs, segments, 2, TILE, scan.block),
        Output((*shape, STATES), jnp.float32, blocks.by_segment(STATES)),
        Output(shape, jnp.float32, blocks.by_segment()),
    ]
    body = functools.partial(_ss2d_summaries, scan, adjoint)
    results = launch(scan, body, inputs, (), outputs, first=first, segments=segments)
    return results[1], results[2]


def _ss2d_summaries(scan: Scan, adjoint: bool, *refs):
    inputs, (memory, end, time) = Inputs(*refs[:7]), refs[7:]
    program = Program(scan, inputs, memory, int(adjoint), backwards=adjoint)
    A = inputs.A[...]

    def advance(i, carry):
        state, total = carry
        instructions.sync()
        program.prepare_steps(i + 1)
        for first in range(0, TILE, RUN):
            for _, step, x, B, C in _load(program, inputs, i, first):
                decay = instructions.exp2(step[:, None] * A)
                if adjoint:
                    state = decay * instructions.multiply_add(x[:, None], C[None], state)
                else:
                    state = instructions.multiply_add(decay, state, (step * x)[:, None] * B[None])
                total += step
        return state, total

    zero = jnp.zeros((scan.block, STATES), jnp.float32)
    program.prepare_steps(0)
    end[...], time[...] = lax.fori_loop(
        0, scan.tiles, advance, (zero, jnp.zeros(scan.block, jnp.float32))
    )


def _load(program: Program, inputs: Inputs, i, first: int) -> list[tuple[Array, ...]]:
    """Returns places, step sizes, x, B and C of a run of pixels of the i-th tile."""
    loaded = []
    for j in range(first, first + RUN):
        p = program.pixel(i, j)
        x = inputs.x[p, :].astype(jnp.float32)
        loaded.append((p, program.step(i, j), x, inputs.B[p, :], inputs.C[p, :]))
    return loaded
