"""SS2D in plain JAX: `jax.lax.associative_scan` within chunks of pixels; on GPUs, `xla_gpu`.

`docs/kernels.md` derives the backward pass and lists measurements. Arrays within a chunk are
time-major, [c k t b n d] with c the steps of a chunk: slices along time are contiguous, and d, the
long axis, is the vector axis. m counts chunks.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mtmamba_jax.kernels.platform_check import by_platform
from mtmamba_jax.kernels.ss2d import xla_gpu
from mtmamba_jax.kernels.ss2d.common import (
    Directions,
    combine,
    create_op,
    opaque_one,
    parse_directions,
)

CHUNK = 8
"""Steps of a chunk: the fastest of 4 to 64 on a CPU, where a chunk's few arrays stay in cache."""
LONG_CHUNK = 16
"""Steps of a chunk in images above `LONG` pixels: half the boundary states, at most 10 % slower."""
LONG = 2**13

_einsum = functools.partial(
    jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
)


class _Plan(NamedTuple):
    directions: Directions
    chunk: int  # steps whose states exist at the same time


def _to_chunks(v: Array, column: bool, chunk: int) -> Array:
    """Cuts [t b h w ...] into chunks [m c t b ...], with zeros after the last pixel.

    Zeros are harmless at either end of a reading order: before the first pixel they leave the state
    at zero, and nothing is read after the last.
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


def _to_reading_order(v: Array, plan: _Plan) -> Array:
    """Cuts [t b h w k ...] into chunks [m c k t b ...], each direction in its own reading order."""
    ordered = []
    for k, (column, reverse) in enumerate(zip(*plan.directions, strict=True)):
        one = _to_chunks(v[..., k, :], column, plan.chunk)
        ordered.append(one[::-1, ::-1] if reverse else one)
    return jnp.stack(ordered, 2)


def _from_reading_order(v: Array, plan: _Plan, h: int, w: int) -> list[Array]:
    """Inverse of `_to_reading_order`; returns one [t b h w ...] per direction."""
    images = []
    for k, (column, reverse) in enumerate(zip(*plan.directions, strict=True)):
        one = v[:, :, k]
        images.append(_from_chunks(one[::-1, ::-1] if reverse else one, column, h, w))
    return images


def _chunk_by_orientation(v: Array, plan: _Plan) -> dict[bool, Array]:
    """Returns {column: chunks [m c t b d]} for the orientations that the directions use."""
    columns = sorted(set(plan.directions.columns))
    return {column: _to_chunks(v, column, plan.chunk) for column in columns}


def _read_chunk(sources: dict[bool, Array], i: Array, plan: _Plan) -> Array:
    """Returns every direction's chunk i, [c k t b d] float32, reversed ones from the far end."""
    chunks = []
    for column, reverse in zip(*plan.directions, strict=True):
        source = sources[column]
        if reverse:
            chunks.append(lax.dynamic_index_in_dim(source, len(source) - 1 - i, 0, False)[::-1])
        else:
            chunks.append(lax.dynamic_index_in_dim(source, i, 0, False))
    return jnp.stack(chunks, 1).astype(jnp.float32)


def _outer(u: Float[Array, "*x d"], v: Float[Array, "*x n"]) -> Float[Array, "*x n d"]:
    return u[..., None, :] * v[..., None]


def _project(dt: Array, weight: Array, bias: Array) -> Array:
    """Returns softplus's argument [c k t b d] from dt [c k t b r], [k t r d] and [k t d]."""
    return _einsum("cktbr,ktrd->cktbd", dt, weight) + bias[:, :, None]


def _decay(step: Array, A: Array) -> Array:
    """Returns exp(step * A) [c k t b n d] from step [c k t b d] and A [k t n d]."""
    return jnp.exp(step[..., None, :] * A[:, :, None])


def _materialize(v: Array, one: Array) -> Array:
    """Makes XLA compute v once and write it to memory, however many consumers it has.

    XLA's CPU fusion would recompute v inside every consumer (measured: 2.5x the time), but it never
    duplicates a division. `one` is `opaque_one`.
    """
    return v / one


def _scan_chunk(a: Array, b: Array, start: Array, one: Array, reverse: bool = False) -> Array:
    """Returns the states of h = a*h + b after each step, [c k t b n d], from the state `start`."""
    first = -1 if reverse else 0
    b = b.at[first].add(a[first] * start)
    return _materialize(lax.associative_scan(combine, (a, b), reverse=reverse)[1], one)


def _direction_first(dt_weight: Array, dt_bias: Array, A: Array) -> tuple[Array, Array, Array]:
    """Returns float32 parameters, direction first: [k t r d], [k t d] and A as [k t n d]."""
    weight, bias, A = (v.swapaxes(0, 1).astype(jnp.float32) for v in (dt_weight, dt_bias, A))
    return weight, bias, A.swapaxes(2, 3)


def _scan(plan, x, dt, dt_weight, dt_bias, A, B, C, *, save):
    """Returns y without D * x and the state before each chunk, [m k t b n d]."""
    del save  # XLA drops boundary states that nobody reads
    b, h, w = x.shape[1:4]
    weight, bias, rate = _direction_first(dt_weight, dt_bias, A)
    sources = _chunk_by_orientation(x, plan)
    inputs = tuple(_to_reading_order(v, plan) for v in (dt, B, C))
    one = opaque_one(x, dt, dt_weight, dt_bias, A, B, C)

    def advance(state, chunk):
        i, *rest = chunk
        dt, B, C = (v.astype(jnp.float32) for v in rest)
        step = _materialize(jax.nn.softplus(_project(dt, weight, bias)), one)
        added = _outer(_materialize(step * _read_chunk(sources, i, plan), one), B)
        states = _scan_chunk(_decay(step, rate), added, state, one)
        return states[-1], (_einsum("cktbnd,cktbn->cktbd", states, C), state)

    start = jnp.broadcast_to(one - one, (*rate.shape[:2], b, *rate.shape[2:]))
    _, (y, boundaries) = lax.scan(advance, start, (jnp.arange(len(inputs[0])), *inputs))
    return sum(_from_reading_order(y, plan, h, w)), boundaries


def _chunk_backward(one, chunk, state, adjoint, weight, bias, A):
    """Computes the gradients of one chunk.

    Args:
      one: Result of `opaque_one`.
      chunk: The chunk's x, dt, B, C and dy, [c k t b ...] float32.
      state: The state before the chunk, [k t b n d].
      adjoint: Decay times adjoint of the step after the chunk, [k t b n d].
      weight, bias, A: Results of `_direction_first`.

    Returns:
      `adjoint` for the previous chunk; gradients of x, dt, B, C; gradients of weight, bias and, per
      image, A.
    """
    x, dt, B, C, dy = chunk
    projected = _project(dt, weight, bias)
    step = _materialize(jax.nn.softplus(projected), one)
    added = _materialize(step * x, one)
    dy = _materialize(dy, one)
    # With a step of size zero before the chunk, states[0] is `state`, states[j] is the state before
    # step j and a[j] the decay of step j - 1. One after the chunk passes `adjoint` through.
    none, no_map = jnp.zeros_like(step[:1]), jnp.zeros_like(B[:1])
    a = _decay(_materialize(jnp.concatenate([none, step, none]), one), A)
    b = _outer(
        _materialize(jnp.concatenate([none, added]), one),
        _materialize(jnp.concatenate([no_map, B]), one),
    )
    states = _scan_chunk(a[:-1], b, state, one)
    after = a[2:]  # a step's adjoint decays by the next step
    adjoints = _scan_chunk(after, _outer(dy, C), adjoint, one, reverse=True)

    dC = _einsum("cktbnd,cktbd->cktbn", states, jnp.concatenate([none, dy]))[1:]
    dB = _einsum("cktbnd,cktbd->cktbn", adjoints, added)
    dadded = _einsum("cktbnd,cktbn->cktbd", adjoints, B)
    # The gradient of the decay's logarithm, step * A.
    dlog = _materialize(adjoints * a[1:-1] * states[:-1], one)
    # Unrolled sums: XLA's CPU reduction would first write each product to memory (10x slower).
    dA = sum(dlog[j] * step[j, ..., None, :] for j in range(len(step)))
    dstep = sum(dlog[..., j, :] * A[:, :, None, j] for j in range(A.shape[2])) + dadded * x
    dprojected = dstep * jax.nn.sigmoid(projected)
    dweight = _einsum("cktbr,cktbd->ktrd", dt, dprojected)
    ddt = _einsum("cktbd,ktrd->cktbr", dprojected, weight)
    sums = (dweight, jnp.sum(dprojected, (0, 3)), dA)
    return a[1] * adjoints[0], (dadded * step, ddt, dB, dC), sums


def _gradients(plan, x, dt, dt_weight, dt_bias, A, B, C, boundaries, dy):
    h, w = x.shape[2:4]
    parameters = _direction_first(dt_weight, dt_bias, A)
    x_sources, dy_sources = _chunk_by_orientation(x, plan), _chunk_by_orientation(dy, plan)
    inputs = tuple(_to_reading_order(v, plan) for v in (dt, B, C))
    one = opaque_one(x, dt, dt_weight, dt_bias, A, B, C, dy)

    def advance(carry, chunk):
        adjoint, sums = carry
        i, state, *rest = chunk
        dt, B, C = (v.astype(jnp.float32) for v in rest)
        chunk = (_read_chunk(x_sources, i, plan), dt, B, C, _read_chunk(dy_sources, i, plan))
        adjoint, (dx, *rest), new = _chunk_backward(one, chunk, state, adjoint, *parameters)
        rest = tuple(v.astype(to.dtype) for v, to in zip(rest, inputs, strict=True))
        return (adjoint, tuple(map(jnp.add, sums, new))), (dx, *rest)

    adjoint = jnp.broadcast_to(one - one, boundaries.shape[1:])
    sums = tuple(jnp.broadcast_to(one - one, v.shape) for v in (*parameters[:2], adjoint))
    chunks = (jnp.arange(len(boundaries)), boundaries, *inputs)
    (_, sums), (dx, *rest) = lax.scan(advance, (adjoint, sums), chunks, reverse=True)

    ddt, dB, dC = (jnp.stack(_from_reading_order(v, plan, h, w), 4) for v in rest)
    dweight, dbias, dA = sums[0], sums[1], jnp.sum(sums[2], 2).swapaxes(2, 3)
    dweight, dbias, dA = (v.swapaxes(0, 1) for v in (dweight, dbias, dA))
    return sum(_from_reading_order(dx, plan, h, w)), ddt, dweight, dbias, dA, dB, dC


ss2d_op = create_op(_scan, _gradients)


def ss2d_xla(*arrays: Array, directions: Sequence[str]) -> Float[Array, "t b h w d"]:
    """Computes SS2D chunk by chunk; arrays and result are those of `api.ss2d`.

    Memory beyond arguments and results: four float32 copies of x, one state per chunk and
    direction, and about ten arrays of the size of one chunk's states. Programs for GPUs have the
    schedule of `xla_gpu`: a copy of x and a float32 y per direction, and for the backward pass one
    float32 state per direction and eight pixels.
    """
    orders, (h, w) = parse_directions(directions), arrays[0].shape[2:4]
    chunk = min(LONG_CHUNK if h * w > LONG else CHUNK, h * w)
    on_gpu = functools.partial(xla_gpu.ss2d_op, orders)
    on_others = functools.partial(ss2d_op, _Plan(orders, chunk))
    return by_platform(*arrays, cuda=on_gpu, rocm=on_gpu, default=on_others)
