"""The backward kernel."""

import functools

import jax.numpy as jnp
from jax import lax

from mtmamba_jax.kernels.ss2d.common import LN2, softplus_gradient
from mtmamba_jax.kernels.ss2d.triton.program import (
    RUN, STATES, TILE, Blocks, Inputs, Program, Scan, exp2, launch, multiply_add,
)


def backward(scan: Scan, inputs: Inputs, dy, saved, end):
    """Returns gradients: of x [q l d], of the step sizes' projection [q l d], of B and C
    [q blocks l 16], of A [q s d 16].
    """
    blocks, d = Blocks(scan), inputs.x.shape[-1]
    count, c = d // scan.block, scan.block
    given = list(zip(inputs, blocks.inputs(inputs), strict=True))
    given += [(dy, blocks.image()), (saved, blocks.saved())]
    if end is not None:
        given.append((end, blocks.states()))
    dtype = inputs.x.dtype
    image = (scan.programs, scan.length, d), dtype, blocks.result()
    maps = (scan.programs, count, scan.length, STATES), dtype, blocks.maps()
    own = (scan.programs, scan.segments, count)
    outputs = [
        ((*own, 2, TILE, c), jnp.float32, blocks.private(2, TILE, c)),
        ((*own, TILE // RUN, c, STATES), jnp.float32, blocks.private(TILE // RUN, c, STATES)),
        image, image, maps, maps,
        ((scan.programs, scan.segments, d, STATES), jnp.float32, blocks.states()),
    ]
    body = functools.partial(_backward, scan, end is not None)
    return launch(scan, body, given, outputs, scan.segments)[2:]


def _backward(scan: Scan, ended: bool, *refs):
    inputs, (dy, saved, *rest) = Inputs(*refs[:7]), refs[7:]
    end = rest.pop(0) if ended else None
    memory, starts, dx, dz, dB, dC, dA = rest
    x, B, C = inputs.x, inputs.B, inputs.C
    program = Program(scan, inputs, memory, backwards=True)
    A = inputs.A[...]
    runs = TILE // RUN

    # A run's pixels, the first in reading order first. Places count from the end of the segment.
    def load(i, run):
        loaded = []
        for j in reversed(range(RUN)):
            p, step = program.pixel(i, run * RUN + j), program.step(i, run * RUN + j)
            loaded.append((p, x[p, :].astype(jnp.float32), step, B[p, :]))
        return loaded

    def advance(i, carry):
        program.sync()
        program.prepare_steps(i + 1)

        def rerun(k, h):
            run = runs - 1 - k
            starts[run, :, :] = h
            for _, value, step, b in load(i, run):
                h = multiply_add(exp2(step[:, None] * A), h, (step * value)[:, None] * b[None, :])
            return h

        h = saved[program.tile(i), :, :].astype(jnp.float32)
        starts[0, :, :] = lax.fori_loop(0, runs - 1, rerun, h)
        program.sync()
        return lax.fori_loop(0, runs, functools.partial(reverse, i), carry)

    def reverse(i, run, carry):
        adjoint, total = carry
        loaded = load(i, run)
        more = [(dy[p, :].astype(jnp.float32), C[p, :]) for p, *_ in loaded]
        states, decays = [starts[run, :, :]], []
        for _, value, step, b in loaded:
            decays.append(exp2(step[:, None] * A))
            states.append(multiply_add(decays[-1], states[-1], (step * value)[:, None] * b[None, :]))
        results = []
        for j in reversed(range(RUN)):
            (p, value, step, b), (g, c) = loaded[j], more[j]
            adjoint = multiply_add(g[:, None], c[None, :], adjoint)
            mapC = jnp.sum(g[:, None] * states[j + 1], 0)
            mapB = jnp.sum(adjoint * (step * value)[:, None], 0)
            added = jnp.sum(adjoint * b[None, :], 1)
            adjoint *= decays[j]
            log = adjoint * states[j]
            total = multiply_add(log, step[:, None], total)
            dstep = jnp.sum(log * A, 1) * LN2 + added * value
            results.append((p, added * step, dstep * softplus_gradient(step), mapB, mapC))
        for p, *values in results:
            for ref, value in zip((dx, dz, dB, dC), values, strict=True):
                ref[p, :] = value.astype(ref.dtype)
        return adjoint, total

    zero = jnp.zeros((scan.block, STATES), jnp.float32)
    program.prepare_steps(0)
    _, dA[...] = lax.fori_loop(0, scan.tiles, advance, (zero if end is None else end[...], zero))
