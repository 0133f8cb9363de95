"""SS2D in plain JAX, scheduled for GPUs: few launches, each of much work.

The reading orders are cut into segments, which are scanned at the same time; a first pass finds the
state that each starts from. Segments advance together by a run of a few unrolled steps, which XLA
fuses into a handful of kernels. Arrays of a run are [k t c b ...] and its states [k t b n d], with
c the steps of a run and b the segments of all images; m counts runs, s segments.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.common import Directions, create_op, opaque_one, start_states

RUN = 8
"""Unrolled steps, whose states exist at the same time."""
TARGET_STATES = 2**22
"""States of all segments together that keep a GPU busy: 16 MiB."""
MIN_SEGMENT = 8 * RUN
"""Fewest pixels of a segment: each costs a second pass over its pixels, and one state."""

_matmul = functools.partial(jnp.matmul, precision=lax.Precision.HIGHEST)


class _Plan(NamedTuple):
    directions: Directions
    segments: int
    runs: int  # of a segment


class _Parameters(NamedTuple):
    """Float32 parameters, direction first."""

    weight: Float[Array, "k t r d"]
    bias: Float[Array, "k t d"]
    A: Float[Array, "k t n d"]


def _choose_plan(directions: Directions, x: Float[Array, "t b h w d"], states: int) -> _Plan:
    t, b, h, w, d = x.shape
    images = b if isinstance(b, int) else 8  # an exported program may leave it open
    states_each = t * images * d * states * len(directions.columns)
    segments = max(1, min(TARGET_STATES // states_each, h * w // MIN_SEGMENT))
    runs = -(-h * w // (segments * RUN))
    return _Plan(directions, -(-h * w // (runs * RUN)), runs)


def _to_runs(images: Sequence[Array], plan: _Plan) -> Array:
    """Cuts an image [t b h w ...] per direction into runs [m k t c s*b ...], zeros at the end."""
    length = plan.segments * plan.runs * RUN
    ordered = []
    for v, column, reverse in zip(images, *plan.directions, strict=True):
        v = jnp.swapaxes(v, 2, 3) if column else v
        v = jnp.moveaxis(v.reshape(*v.shape[:2], -1, *v.shape[4:]), 2, 0)
        v = v[::-1] if reverse else v
        v = jnp.pad(v, [(0, length - len(v))] + [(0, 0)] * (v.ndim - 1))
        v = v.reshape(plan.segments, plan.runs, RUN, *v.shape[1:])  # [s m c t b ...]
        ordered.append(jnp.moveaxis(v, (1, 3, 2, 0), (0, 1, 2, 3)))
    v = jnp.stack(ordered, 1)  # [m k t c s b ...]
    return v.reshape(*v.shape[:4], -1, *v.shape[6:])


def _from_runs(v: Array, plan: _Plan, h: int, w: int) -> list[Array]:
    """Inverse of `_to_runs`."""
    v = v.reshape(*v.shape[:4], plan.segments, -1, *v.shape[5:])
    images = []
    for k, (column, reverse) in enumerate(zip(*plan.directions, strict=True)):
        one = jnp.moveaxis(v[:, k], (3, 0, 2, 1), (0, 1, 2, 3))  # [s m c t b ...]
        one = one.reshape(-1, *one.shape[3:])[: h * w]
        one = jnp.moveaxis(one[::-1] if reverse else one, 0, 2)
        one = one.reshape(*one.shape[:2], *((w, h) if column else (h, w)), *one.shape[3:])
        images.append(jnp.swapaxes(one, 2, 3) if column else one)
    return images


def _by_direction(v: Array) -> list[Array]:
    """Returns [t b h w k ...] as one [t b h w ...] per direction."""
    return [v[:, :, :, :, k] for k in range(v.shape[4])]


def _project(dt: Array, parameters: _Parameters) -> Array:
    """Returns softplus's argument, [k t c b d]."""
    rows = dt.reshape(*dt.shape[:2], -1, dt.shape[-1])
    z = _matmul(rows, parameters.weight) + parameters.bias[:, :, None]
    return z.reshape(*dt.shape[:-1], -1)


def _decay(step: Array, parameters: _Parameters) -> Array:
    """Returns exp(step * A) [k t b n d] from step [k t b d]."""
    return jnp.exp(step[..., None, :] * parameters.A[:, :, None])


def _advance(state: Array, step: Array, x: Array, B: Array, parameters: _Parameters) -> Array:
    """Returns the states after one step, [k t b n d]."""
    return _decay(step, parameters) * state + (step * x)[..., None, :] * B[..., None]


def _scan_runs(body: Callable, start: Any, arrays: Sequence[Array], *, reverse: bool = False):
    """Calls `body(carry, *arrays of a run)`, with float32 arrays, for one run after the other."""

    def run(carry, arrays):
        return body(carry, *(v.astype(jnp.float32) for v in arrays))

    return lax.scan(run, start, tuple(arrays), reverse=reverse)


def _stack(steps: Sequence[Array]) -> Array:
    """Stacks the results of a run's steps, [k t c ...].

    The barrier keeps XLA from fusing a step's sum into the copy, which would then take five times
    as long: few of its threads would have all the work.
    """
    return jnp.stack(lax.optimization_barrier(tuple(steps)), 2)


def _start_states(plan: _Plan, zeros, x, dt, maps, parameters, *, adjoint: bool) -> Array:
    """Returns the state before each segment, [k t s*b n d], or with `adjoint` after it.

    Args:
      zeros: States that are zero.
      x, maps: Runs of x and B, or of dy and C for the adjoints.
    """
    if plan.segments == 1:
        return zeros

    def run(carry, x, dt, maps):
        state, time = carry
        steps = jax.nn.softplus(_project(dt, parameters))
        for j in reversed(range(RUN)) if adjoint else range(RUN):
            if adjoint:
                added = x[:, :, j, :, None] * maps[:, :, j, :, :, None]
                state = _decay(steps[:, :, j], parameters) * (state + added)
            else:
                state = _advance(state, steps[:, :, j], x[:, :, j], maps[:, :, j], parameters)
        return (state, time + steps.sum(2)), None

    (ends, time), _ = _scan_runs(run, (zeros, zeros[..., 0, :]), (x, dt, maps), reverse=adjoint)
    decay = _decay(time, parameters)
    all_but_last = slice(1, None) if adjoint else slice(-1)
    decay, ends = (
        v.reshape(*v.shape[:2], plan.segments, -1, *v.shape[3:])[:, :, all_but_last]
        for v in (decay, ends)
    )
    return start_states(decay, ends, axis=2, reverse=adjoint).reshape(zeros.shape)


def _prepare(plan: _Plan, x, dt, dt_weight, dt_bias, A, B, C):
    """Returns runs of x, dt, B and C, the parameters, and states that are zero."""
    parameters = _Parameters(
        *(v.swapaxes(0, 1).astype(jnp.float32) for v in (dt_weight, dt_bias, A.swapaxes(2, 3)))
    )
    images = ([x] * len(plan.directions.columns), *map(_by_direction, (dt, B, C)))
    runs = [_to_runs(v, plan) for v in images]
    one, segments = opaque_one(x, dt, dt_weight, dt_bias, A, B, C), runs[0].shape[4]
    k, t, n, d = parameters.A.shape
    return runs, parameters, jnp.broadcast_to(one - one, (k, t, segments, n, d))


def _scan(directions, x, dt, dt_weight, dt_bias, A, B, C, *, save):
    """Returns y without D * x and the state before each run, [m k t s*b n d]."""
    del save  # XLA drops states that nobody reads
    h, w = x.shape[2:4]
    plan = _choose_plan(directions, x, A.shape[-1])
    (xs, dts, Bs, Cs), parameters, zeros = _prepare(plan, x, dt, dt_weight, dt_bias, A, B, C)
    start = _start_states(plan, zeros, xs, dts, Bs, parameters, adjoint=False)

    def run(before, x, dt, B, C):
        steps, state, ys = jax.nn.softplus(_project(dt, parameters)), before, []
        for j in range(RUN):
            state = _advance(state, steps[:, :, j], x[:, :, j], B[:, :, j], parameters)
            ys.append(jnp.sum(state * C[:, :, j, :, :, None], -2))
        return state, (_stack(ys), before)

    _, (y, saved) = _scan_runs(run, start, (xs, dts, Bs, Cs))
    return sum(_from_runs(y, plan, h, w)), saved


def _gradients(directions, x, dt, dt_weight, dt_bias, A, B, C, saved, dy):
    h, w = x.shape[2:4]
    plan = _choose_plan(directions, x, A.shape[-1])
    inputs, parameters, zeros = _prepare(plan, x, dt, dt_weight, dt_bias, A, B, C)
    (xs, dts, Bs, Cs), dys = inputs, _to_runs([dy] * len(directions.columns), plan)
    end = _start_states(plan, zeros, dys, dts, Cs, parameters, adjoint=True)

    def run(carry, before, x, dt, B, C, dy):
        adjoint, dweight, dbias, dA = carry  # the adjoint times the decay of the step after
        projected = _project(dt, parameters)
        steps, states = jax.nn.softplus(projected), [before]
        pixels = [tuple(v[:, :, j] for v in (steps, x, B, C, dy)) for j in range(RUN)]
        for step, x, B, *_ in pixels:
            states.append(_advance(states[-1], step, x, B, parameters))
        found = []
        for j, (step, x, B, C, dy) in reversed(list(enumerate(pixels))):
            adjoint += dy[..., None, :] * C[..., None]
            dC = jnp.sum(dy[..., None, :] * states[j + 1], -1)
            dB = jnp.sum(adjoint * (step * x)[..., None, :], -1)
            dadded = jnp.sum(adjoint * B[..., None], -2)
            adjoint *= _decay(step, parameters)
            dlog = adjoint * states[j]
            dA += dlog * step[..., None, :]
            dstep = jnp.sum(dlog * parameters.A[:, :, None], -2) + dadded * x
            found.append((dadded * step, dstep, dB, dC))
        dx, dsteps, dB, dC = (_stack(v[::-1]) for v in zip(*found, strict=True))
        dprojected = dsteps * jax.nn.sigmoid(projected)
        rows, drows = (v.reshape(*v.shape[:2], -1, v.shape[-1]) for v in (dt, dprojected))
        dweight += _matmul(rows.swapaxes(2, 3), drows)
        dbias += jnp.sum(drows, 2)
        ddt = _matmul(drows, parameters.weight.swapaxes(2, 3)).reshape(dt.shape)
        return (adjoint, dweight, dbias, dA), (dx, ddt, dB, dC)

    sums = (jnp.broadcast_to(zeros[(0,) * 5], v.shape) for v in parameters[:2])
    carry = (end, *sums, zeros)
    (_, dweight, dbias, dA), results = _scan_runs(
        run, carry, (saved, xs, dts, Bs, Cs, dys), reverse=True
    )
    dx, *others = (_from_runs(v, plan, h, w) for v in results)
    ddt, dB, dC = (jnp.stack(v, 4) for v in others)
    dA = jnp.sum(dA, 2).swapaxes(2, 3)
    dweight, dbias, dA = (v.swapaxes(0, 1) for v in (dweight, dbias, dA))
    return sum(dx), ddt, dweight, dbias, dA, dB, dC


ss2d_op = create_op(_scan, _gradients, separate_sums=True)
