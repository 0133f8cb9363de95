"""SS2D in plain JAX: chunked `jax.lax.associative_scan`; runs on every platform.

`kernels/README.md` derives the backward pass and says what was measured. Shapes inside a chunk are
time-major, [c k t b n d] with c the steps of a chunk: slices along time are contiguous, and d, the
long axis, is the vector axis. m counts chunks.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

Array = jax.Array

CHUNK = 8
"""Steps of a chunk: the fastest of 4 to 64 on a CPU, where its few arrays stay in cache."""
LONG_CHUNK = 16
"""The same for images above `LONG` pixels: half the boundary states, at most 10 % slower."""
LONG = 2**13

_einsum = functools.partial(
    jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


class _Plan(NamedTuple):
    """What is static about one call: hashable, so that it can be a nondiff argument."""

    columns: tuple[bool, ...]  # for each direction: reads down columns
    reverses: tuple[bool, ...]  # for each direction: reads backwards
    chunk: int  # steps whose states exist at one time


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


def _hidden_one(*arrays: Array) -> Array:
    """Float32 1 that the compiler cannot know, for `_written` and for the start of loops.

    Inside `jax.shard_map` it varies over every mesh axis the arrays vary over, as the carry of a
    loop must where its result does.
    """
    firsts = [v[(0,) * v.ndim].astype(jnp.float32) for v in arrays]
    bits = functools.reduce(
        jnp.bitwise_or, [lax.bitcast_convert_type(v, jnp.int32) for v in firsts]
    )
    return ((bits | 1) != 0).astype(jnp.float32)


def _written(v: Array, one: Array) -> Array:
    """Returns v, computed once and written to memory, however many read it.

    XLA's CPU fusion would repeat v's producers inside every reader (measured: 2.5x the time), but
    never repeats a division. `one` is `_hidden_one`.
    """
    return v / one


def _recur(a: Array, b: Array, start: Array, one: Array, reverse: bool = False) -> Array:
    """States of h = a*h + b after each step, [c k t b n d]; `start` precedes the first."""
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * start)
    return _written(lax.associative_scan(_combine, (a, b), reverse=reverse)[1], one)


def _by_direction(dt_weight: Array, dt_bias: Array, A: Array) -> tuple[Array, Array, Array]:
    """Float32, direction first, and A's long axis last: [k t r d], [k t d], [k t n d]."""
    weight, bias, A = (v.swapaxes(0, 1).astype(jnp.float32) for v in (dt_weight, dt_bias, A))
    return weight, bias, A.swapaxes(2, 3)


def _forward(plan, x, dt, dt_weight, dt_bias, A, B, C, D):
    """Returns y and the state before each chunk [m k t b n d]."""
    b, h, w = x.shape[1:4]
    weight, bias, rate = _by_direction(dt_weight, dt_bias, A)
    sources = _sources(x, plan)
    inputs = tuple(_order(v, plan) for v in (dt, B, C))
    one = _hidden_one(x, dt, dt_weight, dt_bias, A, B, C)

    def advance(state, chunk):
        i, *rest = chunk
        dt, B, C = (v.astype(jnp.float32) for v in rest)
        step = _written(jax.nn.softplus(_project(dt, weight, bias)), one)
        added = _outer(_written(step * _read(sources, i, plan), one), B)
        states = _recur(_decay(step, rate), added, state, one)
        return states[-1], (_einsum("cktbnd,cktbn->cktbd", states, C), state)

    start = jnp.broadcast_to(one - one, (*rate.shape[:2], b, *rate.shape[2:]))
    _, (y, boundaries) = lax.scan(advance, start, (jnp.arange(len(inputs[0])), *inputs))
    y = sum(_unorder(y, plan, h, w)) + x * _skip(D)
    return y.astype(x.dtype), boundaries


def _skip(D: Array) -> Array:
    """The directions' D, added: [t k d] to [t 1 1 1 d]."""
    return jnp.sum(D, 1, dtype=jnp.float32)[:, None, None, None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ss2d(plan, x, dt, dt_weight, dt_bias, A, B, C, D):
    return _forward(plan, x, dt, dt_weight, dt_bias, A, B, C, D)[0]


def _ss2d_forward(plan, *arrays):
    y, boundaries = _forward(plan, *arrays)
    return y, (arrays, boundaries)


def _chunk_backward(one, chunk, state, adjoint, weight, bias, A):
    """Gradients of one chunk.

    Args:
      one: `_hidden_one`.
      chunk: x, dt, B, C and dy of the chunk, [c k t b ...] float32.
      state: the state before the chunk, [k t b n d].
      adjoint: decay times adjoint of the step after the chunk, [k t b n d].
      weight, bias, A: as `_by_direction` gives them.

    Returns:
      `adjoint` for the chunk before; gradients of x, dt, B, C; of weight, bias and A (per image).
    """
    x, dt, B, C, dy = chunk
    projected = _project(dt, weight, bias)
    step = _written(jax.nn.softplus(projected), one)
    added = _written(step * x, one)
    dy = _written(dy, one)
    # A step of size zero before the chunk makes `state` the first of the states, so states[j] is
    # the state before step j and a[j] the decay of step j - 1; one after it hands `adjoint` on.
    none, no_map = jnp.zeros_like(step[:1]), jnp.zeros_like(B[:1])
    a = _decay(_written(jnp.concatenate([none, step, none]), one), A)
    b = _outer(
        _written(jnp.concatenate([none, added]), one), _written(jnp.concatenate([no_map, B]), one)
    )
    states = _recur(a[:-1], b, state, one)
    after = a[2:]  # the adjoint of a step decays by the step after it
    adjoints = _recur(after, _outer(dy, C), adjoint, one, reverse=True)

    dC = _einsum("cktbnd,cktbd->cktbn", states, jnp.concatenate([none, dy]))[1:]
    dB = _einsum("cktbnd,cktbd->cktbn", adjoints, added)
    dadded = _einsum("cktbnd,cktbn->cktbd", adjoints, B)
    dlog = _written(
        adjoints * a[1:-1] * states[:-1], one
    )  # of the logarithm of the decay, step * A
    # Sums are spelled out: XLA's CPU reduction would first write each product (10x slower).
    dA = sum(dlog[j] * step[j, ..., None, :] for j in range(len(step)))
    dstep = sum(dlog[..., j, :] * A[:, :, None, j] for j in range(A.shape[2])) + dadded * x
    dprojected = dstep * jax.nn.sigmoid(projected)
    dweight = _einsum("cktbr,cktbd->ktrd", dt, dprojected)
    ddt = _einsum("cktbd,ktrd->cktbr", dprojected, weight)
    sums = (dweight, jnp.sum(dprojected, (0, 3)), dA)
    return a[1] * adjoints[0], (dadded * step, ddt, dB, dC), sums


def _ss2d_backward(plan, saved, dy):
    arrays, boundaries = saved
    x, dt, dt_weight, dt_bias, A, B, C, D = arrays
    h, w = x.shape[2:4]
    parameters = _by_direction(dt_weight, dt_bias, A)
    x_sources, dy_sources = _sources(x, plan), _sources(dy, plan)
    inputs = tuple(_order(v, plan) for v in (dt, B, C))
    one = _hidden_one(*arrays, dy)

    def advance(carry, chunk):
        adjoint, sums = carry
        i, state, *rest = chunk
        dt, B, C = (v.astype(jnp.float32) for v in rest)
        chunk = (_read(x_sources, i, plan), dt, B, C, _read(dy_sources, i, plan))
        adjoint, (dx, *rest), new = _chunk_backward(one, chunk, state, adjoint, *parameters)
        rest = tuple(v.astype(to.dtype) for v, to in zip(rest, inputs, strict=True))
        return (adjoint, tuple(map(jnp.add, sums, new))), (dx, *rest)

    adjoint = jnp.broadcast_to(one - one, boundaries.shape[1:])
    sums = tuple(jnp.broadcast_to(one - one, v.shape) for v in (*parameters[:2], adjoint))
    chunks = (jnp.arange(len(boundaries)), boundaries, *inputs)
    (_, sums), (dx, *rest) = lax.scan(advance, (adjoint, sums), chunks, reverse=True)

    dx = sum(_unorder(dx, plan, h, w)) + dy * _skip(D)
    ddt, dB, dC = (jnp.stack(_unorder(v, plan, h, w), 4) for v in rest)
    dweight, dbias, dA = sums[0], sums[1], jnp.sum(sums[2], 2).swapaxes(2, 3)
    dweight, dbias, dA = (v.swapaxes(0, 1) for v in (dweight, dbias, dA))
    dD = jnp.sum(dy.astype(jnp.float32) * x, (1, 2, 3))[:, None]
    gradients = (dx, ddt, dweight, dbias, dA, dB, dC, jnp.broadcast_to(dD, D.shape))
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
) -> Array:
    """Chunked SS2D; arguments and result as in `api.ss2d`.

    Memory beside arguments and results: four copies of x in float32, one state for each chunk of
    each direction, and about ten arrays of the size of a chunk's states.
    """
    h, w = x.shape[2:4]
    chunk = min(LONG_CHUNK if h * w > LONG else CHUNK, h * w)
    columns = tuple(name.startswith("column") for name in directions)
    reverses = tuple(name.endswith("_reversed") for name in directions)
    return _ss2d(_Plan(columns, reverses, chunk), x, dt, dt_weight, dt_bias, A, B, C, D)
