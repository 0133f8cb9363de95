"""The forward kernel, and the summaries of segments that give each its start."""

import functools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.triton.program import (
    RUN, STATES, TILE, Blocks, Inputs, Program, Scan, exp2, launch, multiply_add,
)


def forward(scan: Scan, inputs: Inputs, start, *, save: bool):
    """Returns y [q l d] and, if `save`, the state before each tile, [q l/16 d 16]."""
    blocks, d = Blocks(scan), inputs.x.shape[-1]
    given = list(zip(inputs, blocks.inputs(inputs), strict=True))
    if start is not None:
        given.append((start, blocks.states()))
    dtype = inputs.x.dtype
    outputs = [
        ((scan.programs, scan.segments, d // scan.block, 2, TILE, scan.block), jnp.float32, blocks.private(2, TILE, scan.block)),
        ((scan.programs, scan.length, d), dtype, blocks.result()),
    ]
    if save:
        outputs.append(((scan.programs, scan.length // TILE, d, STATES), dtype, blocks.saved()))
    body = functools.partial(_forward, scan, start is not None, save)
    return launch(scan, body, given, outputs, scan.segments)[1:]


def _forward(scan: Scan, started: bool, save: bool, *refs):
    inputs, rest = Inputs(*refs[:7]), list(refs[7:])
    x, B, C = inputs.x, inputs.B, inputs.C
    start = rest.pop(0) if started else None
    memory, y, *saved = rest
    program = Program(scan, inputs, memory)
    A = inputs.A[...]

    def load(i, run):
        pixels = [program.pixel(i, run * RUN + j) for j in range(RUN)]
        return [
            (p, x[p, :].astype(jnp.float32), program.step(i, run * RUN + j), B[p, :], C[p, :])
            for j, p in enumerate(pixels)
        ]

    def advance(i, h):
        program.sync()
        program.prepare_steps(i + 1)
        if save:
            saved[0][program.tile(i), :, :] = h.astype(saved[0].dtype)
        for run in range(TILE // RUN):
            results = []
            for pixel, value, step, b, c in load(i, run):
                h = multiply_add(exp2(step[:, None] * A), h, (step * value)[:, None] * b[None, :])
                results.append((pixel, jnp.sum(h * c[None, :], 1)))
            for pixel, result in results:
                y[pixel, :] = result.astype(y.dtype)
        return h

    h = jnp.zeros((scan.block, STATES), jnp.float32) if start is None else start[...]
    program.prepare_steps(0)
    lax.fori_loop(0, scan.tiles, advance, h)


def summaries(scan: Scan, inputs: Inputs, *, adjoint: bool):
    """Returns the state after each segment but the last, had it begun at zero, and its time.

    With `adjoint`, in reverse reading order, and of all but the first.
    """
    blocks, d, count = Blocks(scan, int(adjoint)), inputs.x.shape[-1], scan.segments - 1
    given = list(zip(inputs, blocks.inputs(inputs), strict=True))
    outputs = [
        ((scan.programs, count, d // scan.block, 2, TILE, scan.block), jnp.float32, blocks.private(2, TILE, scan.block)),
        ((scan.programs, count, d, STATES), jnp.float32, blocks.states()),
        ((scan.programs, count, d), jnp.float32, blocks.times()),
    ]
    return launch(scan, functools.partial(_summary, scan, adjoint), given, outputs, count)[1:]


def _summary(scan: Scan, adjoint: bool, *refs):
    inputs, (memory, state, time) = Inputs(*refs[:7]), refs[7:]
    x, maps = inputs.x, inputs.C if adjoint else inputs.B
    program = Program(scan, inputs, memory, int(adjoint), backwards=adjoint)
    A = inputs.A[...]

    def advance(i, carry):
        h, total = carry
        program.sync()
        program.prepare_steps(i + 1)
        for run in range(TILE // RUN):
            loaded = []
            for j in range(run * RUN, (run + 1) * RUN):
                pixel = program.pixel(i, j)
                loaded.append((x[pixel, :].astype(jnp.float32), program.step(i, j), maps[pixel, :]))
            for value, step, b in loaded:
                decay = exp2(step[:, None] * A)
                if adjoint:
                    h = decay * multiply_add(value[:, None], b[None, :], h)
                else:
                    h = multiply_add(decay, h, (step * value)[:, None] * b[None, :])
                total += step
        return h, total

    zero = jnp.zeros((scan.block, STATES), jnp.float32), jnp.zeros((scan.block,), jnp.float32)
    program.prepare_steps(0)
    state[...], time[...] = lax.fori_loop(0, scan.tiles, advance, zero)
