"""SS2D in plain JAX: chunked `jax.lax.associative_scan`; runs on every platform.

`kernels/README.md` derives the backward pass and says what was measured. Shapes inside a chunk are
time-major, [c k t b n d] with c the steps of a chunk: slices along time are contiguous, and d, the
long axis, is the vector axis.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

_einsum = functools.partial(
    jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


class _Plan(NamedTuple):
    """What is static about one call: hashable, so that it can be a nondiff argument."""

    columns: tuple[bool, ...]  # for each direction: reads down columns
    reverses: tuple[bool, ...]  # for each direction: reads backwards
    chunk: int  # steps whose states exist at one time
    group: int  # steps of one associative_scan; divides chunk


def _combine(left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
    """Composes h -> a*h + b of two neighbouring spans, `left` first."""
    return left[0] * right[0], left[1] * right[0] + right[1]


def _to_chunks(v: Array, column: bool, chunk: int) -> Array:
    """[t b h w ...] to [m c t b ...], m chunks of c steps, zeros after the last pixel.

    Zeros are harmless at either end of a reading order: without x the state stays at zero before
    the first pixel, and after the last nothing is read.
    """
    v = jnp.swapaxes(v, 2, 3) if column else v
    v = jnp.moveaxis(v.reshape(*v.shape[:2], -1, *v.shape[4:]), 2, 0)
    padding = -v.shape[0] % chunk
    v = jnp.pad(v, [(0, padding)] + [(0, 0)] * (v.ndim - 1))
    return v.reshape(-1, chunk, *v.shape[1:])


def _from_chunks(v: Array, column: bool, h: int, w: int) -> Array:
    """Inverse of `_to_chunks`."""
    v = jnp.moveaxis(v.reshape(-1, *v.shape[2:])[: h * w], 0, 2)
    v = v.reshape(*v.shape[:2], *((w, h) if column else (h, w)), *v.shape[3:])
    return jnp.swapaxes(v, 2, 3) if column else v


def _order(v: Array, plan: _Plan) -> Array:
    """[t b h w k ...] to [m c k t b ...], each direction in its own reading order."""
    ordered = []
    for k, (column, reverse) in enumerate(zip(plan.columns, plan.reverses, strict=True)):
        one = _to_chunks(v[..., k, :], column, plan.chunk)
        ordered.append(one[::-1, ::-1] if reverse else one)
    return jnp.stack(ordered, 2)


def _unorder(v: Array, plan: _Plan, h: int, w: int) -> list[Array]:
    """Inverse of `_order`: one [t b h w ...] for each direction."""
    images = []
    for k, (column, reverse) in enumerate(zip(plan.columns, plan.reverses, strict=True)):
        one = v[:, :, k]
        images.append(_from_chunks(one[::-1, ::-1] if reverse else one, column, h, w))
    return images


def _sources(v: Array, plan: _Plan) -> dict[bool, Array]:
    """{reads columns: [m c t b d]} for the one or two orders that the directions share."""
    return {column: _to_chunks(v, column, plan.chunk) for column in sorted(set(plan.columns))}


def _read(sources: dict[bool, Array], i: Array, plan: _Plan) -> Array:
    """Chunk i of every direction, [c k t b d] in float32; reversed ones walk from the far end."""
    chunks = []
    for column, reverse in zip(plan.columns, plan.reverses, strict=True):
        source = sources[column]
        if reverse:
            chunks.append(lax.dynamic_index_in_dim(source, len(source) - 1 - i, 0, False)[::-1])
        else:
            chunks.append(lax.dynamic_index_in_dim(source, i, 0, False))
    return jnp.stack(chunks, 1).astype(jnp.float32)


def _outer(u: Array, v: Array) -> Array:
    """[... d] and [... n] to [... n d]."""
    return u[..., None, :] * v[..., None]


def _project(dt: Array, weight: Array, bias: Array) -> Array:
    """dt [c k t b r], weight [k t r d], bias [k t d] to the argument of softplus [c k t b d]."""
    return _einsum("cktbr,ktrd->cktbd", dt, weight) + bias[:, :, None]


def _decay(step: Array, A: Array) -> Array:
    """step [c k t b d], A [k t n d] to exp(step * A) [c k t b n d]."""
    return jnp.exp(step[..., None, :] * A[:, :, None])


def _recur(a: Array, b: Array, start: Array, one: Array, reverse: bool = False) -> Array:
    """States of h = a*h + b after each step, [c k t b n d]; `start` precedes the first read."""
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * start)
    return lax.associative_scan(_combine, (a, b), reverse=reverse)[1] / one


def _one(i):
    return jnp.where(i < 0, 2.0, 1.0)


def _zero(*arrays: Array) -> Array:
    """Float32 zero that varies, inside `jax.shard_map`, over every mesh axis the arrays vary over.

    A loop's carry must vary as its result does, and a constant does not. XLA folds the select.
    """
    firsts = [v[(0,) * v.ndim] for v in arrays]
    return sum(jnp.where(first == first, 0.0, 0.0) for first in firsts)


def _forward(plan, x, dt, dt_weight, dt_bias, A, B, C, D):
    t, b, h, w, d = x.shape
    weight, bias, decay_rate = _by_direction(dt_weight, dt_bias, A)
    sources = _sources(x, plan)
    inputs = tuple(_order(v, plan) for v in (dt, B, C))

    def advance(state, chunk):
        i, dt, B, C = chunk
        dt, B, C = (v.astype(jnp.float32) for v in (dt, B, C))
        one = _one(i)
        step = jax.nn.softplus(_project(dt, weight, bias)) / one
        inputs = step * _read(sources, i, plan) / one
        a = _decay(step, decay_rate)
        states = _recur(a, _outer(inputs, B), state, one)
        return states[-1], (_einsum("cktbnd,cktbn->cktbd", states, C), state)

    zero = _zero(x, dt, dt_weight, dt_bias, A, B, C)
    state = jnp.broadcast_to(zero, (*decay_rate.shape[:2], b, *decay_rate.shape[2:]))
    _, (y, boundaries) = lax.scan(advance, state, (jnp.arange(len(inputs[0])), *inputs))
    y = sum(_unorder(y, plan, h, w))
    y = y + x * jnp.sum(D, 1, dtype=jnp.float32)[:, None, None, None]
    return y.astype(x.dtype), boundaries


def _by_direction(dt_weight: Array, dt_bias: Array, A: Array) -> tuple[Array, Array, Array]:
    """Float32, direction first, and A's long axis last: [k t r d], [k t d], [k t n d]."""
    weight, bias, A = (v.swapaxes(0, 1).astype(jnp.float32) for v in (dt_weight, dt_bias, A))
    return weight, bias, A.swapaxes(2, 3)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ss2d(plan, x, dt, dt_weight, dt_bias, A, B, C, D):
    return _forward(plan, x, dt, dt_weight, dt_bias, A, B, C, D)[0]


def _ss2d_forward(plan, *arrays):
    y, boundaries = _forward(plan, *arrays)
    return y, (arrays, boundaries)


def _chunk_backward(i, chunk, state, adjoint, weight, bias, A):
    """Gradients of one chunk.

    Args:
      chunk: x, dt, B, C and dy of the chunk, [c k t b ...] float32.
      state: the state before the chunk, [k t b n d].
      adjoint: decay times adjoint of the step after the chunk, [k t b n d].

    Returns:
      the same adjoint for the chunk before; gradients of x, dt, B, C; of weight, bias and A.
    """
    x, dt, B, C, dy = chunk
    projected = _project(dt, weight, bias)
    one = _one(i)
    step = jax.nn.softplus(projected) / one
    inputs = step * x / one
    dy = dy / one
    zero = jnp.zeros_like(step[:1])
    a = _decay(jnp.concatenate([zero, step, zero]) / one, A)
    b = _outer(jnp.concatenate([zero, inputs]) / one, jnp.concatenate([jnp.zeros_like(B[:1]), B]) / one)
    states = _recur(a[:-1], b, state, one)
    adjoints = _recur(a[2:], _outer(dy, C), adjoint, one, reverse=True)
    dC = _einsum("cktbnd,cktbd->cktbn", states, jnp.concatenate([zero, dy]))[1:]
    dB = _einsum("cktbnd,cktbd->cktbn", adjoints, inputs)
    dinputs = _einsum("cktbnd,cktbn->cktbd", adjoints, B)
    # The gradient of log a is adjoint * a * h_before, and a * h_before is h less what was added.
    # Sums are spelled out: XLA's CPU reduction would write each product out first (10x slower).
    dlog = adjoints * a[1:-1] * states[:-1] / one
    dA = sum(dlog[j] * step[j, ..., None, :] for j in range(len(step)))
    dstep = sum(dlog[..., j, :] * A[:, :, None, j] for j in range(A.shape[2])) + dinputs * x
    dprojected = dstep * jax.nn.sigmoid(projected)
    dweight = _einsum("cktbr,cktbd->ktrd", dt, dprojected)
    ddt = _einsum("cktbd,ktrd->cktbr", dprojected, weight)
    sums = (dweight, jnp.sum(dprojected, (0, 3)), dA)
    return a[1] * adjoints[0], (dinputs * step, ddt, dB, dC), sums


def _ss2d_backward(plan, saved, dy):
    arrays, boundaries = saved
    x, dt, dt_weight, dt_bias, A, B, C, D = arrays
    h, w = x.shape[2:4]
    parameters = _by_direction(dt_weight, dt_bias, A)
    x_chunks, dy_chunks = _sources(x, plan), _sources(dy, plan)
    inputs = tuple(_order(v, plan) for v in (dt, B, C))

    def advance(carry, chunk):
        adjoint, sums = carry
        i, state, dt, B, C = chunk
        dt, B, C = (v.astype(jnp.float32) for v in (dt, B, C))
        chunk = (_read(x_chunks, i, plan), dt, B, C, _read(dy_chunks, i, plan))
        adjoint, (dx, *rest), new = _chunk_backward(i, chunk, state, adjoint, *parameters)
        rest = tuple(v.astype(to.dtype) for v, to in zip(rest, inputs, strict=True))
        sums = tuple(one + more for one, more in zip(sums, new, strict=True))
        return (adjoint, sums), (dx, *rest)

    zero = _zero(*arrays, dy)
    adjoint = jnp.broadcast_to(zero, boundaries.shape[1:])
    sums = (*parameters[:2], boundaries[0])
    sums = tuple(jnp.broadcast_to(zero, v.shape) for v in sums)
    chunks = (jnp.arange(len(boundaries)), boundaries, *inputs)
    (_, sums), (dx, *rest) = lax.scan(advance, (adjoint, sums), chunks, reverse=True)

    dx = sum(_unorder(dx, plan, h, w))
    dx = dx + dy * jnp.sum(D, 1, dtype=jnp.float32)[:, None, None, None]
    dD = jnp.sum(dy.astype(jnp.float32) * x, (1, 2, 3))[:, None]
    ddt, dB, dC = (jnp.stack(_unorder(v, plan, h, w), 4) for v in rest)
    dweight, dbias, dA = (v.swapaxes(0, 1) for v in (*sums[:2], jnp.sum(sums[2], 2)))
    gradients = (dx, ddt, dweight, dbias, dA.swapaxes(2, 3), dB, dC, jnp.broadcast_to(dD, D.shape))
    return tuple(g.astype(v.dtype) for g, v in zip(gradients, arrays, strict=True))


_ss2d.defvjp(_ss2d_forward, _ss2d_backward)


def ss2d_xla(
    x: Array,
    dt: Array,
    dt_weight: Array,
    dt_bias: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    directions: Sequence[str],
    chunk: int = 8,
    group: int = 4,
) -> Array:
    """Chunked SS2D; arguments and result as in `api.ss2d`."""
    columns = tuple(name.startswith("column") for name in directions)
    reverses = tuple(name.endswith("_reversed") for name in directions)
    plan = _Plan(columns, reverses, chunk, group)
    return _ss2d(plan, x, dt, dt_weight, dt_bias, A, B, C, D)
