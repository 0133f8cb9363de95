"""SS2D on TPUs: prepares the arrays of `mosaic_tpu`'s kernels and adds what they return."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mtmamba_jax.kernels.ss2d.mosaic_tpu import backward, forward
from mtmamba_jax.kernels.ss2d.mosaic_tpu.way import SUBLANES, Way, cut

Array = jax.Array

LOG2E = math.log2(math.e)
LEAST_MEMORY = 16 * 2**20  # bytes of vector memory, of the TPU that has least of it (v4)
SPARE_MEMORY = 3 * 2**20  # of it for the compiler's own


class Plan(NamedTuple):
    """What is static about one call: hashable, so that it can be a nondiff argument."""

    columns: tuple[bool, ...]
    reverses: tuple[bool, ...]


def plan_of(directions: Sequence[str]) -> Plan:
    """The plan of a call."""
    columns = tuple(name.startswith("column") for name in directions)
    return Plan(columns, tuple(name.endswith("_reversed") for name in directions))


def ways_of(plan: Plan, x: Array, states: int, rank: int) -> list[Way]:
    """The one or two ways of a call.

    Raises:
      NotImplementedError: columns too long for the vector memory.
    """
    h, w, d = x.shape[2:]
    room = _vector_memory() - SPARE_MEMORY

    def fits(way):
        return backward.vector_memory(way, x.dtype) <= room

    states = -(-states // SUBLANES) * SUBLANES
    ways = []
    for column in sorted(set(plan.columns)):
        which = tuple(i for i, c in enumerate(plan.columns) if c == column)
        reverses = tuple(plan.reverses[i] for i in which)
        way = cut(h, w, d, column, which, reverses, states, rank, fits)
        if way is None:
            raise NotImplementedError(f"columns of {h} pixels take too much vector memory")
        ways.append(way)
    return ways


def _vector_memory() -> int:
    """Bytes of the TPU in context or at hand; the least of any, if only the platform is known."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return LEAST_MEMORY


class _Arrays(NamedTuple):
    """The kernels' view of the arguments."""

    x: Array
    maps: Array
    weight: Array
    bias: Array
    A: Array


def _prepare(ways: Sequence[Way], x, dt, dt_weight, dt_bias, A, B, C) -> _Arrays:
    states, lanes = ways[0].states, ways[0].maps
    more = states - A.shape[-1]
    maps = [dt, *(jnp.pad(v, [(0, 0)] * 5 + [(0, more)]) for v in (B, C))]
    maps = jnp.concatenate([v.astype(x.dtype) for v in maps], -1)
    maps = jnp.pad(maps, [(0, 0)] * 5 + [(0, lanes - maps.shape[-1])])
    # Zeros for channels past the image's: what x has there is masked, numbers of no array are not.
    channels = (0, max(way.parts * way.lanes for way in ways) - x.shape[-1])
    weight, bias, A = (
        jnp.pad(v, [(0, 0), (0, 0), (0, rows), channels])
        for v, rows in (
            (dt_weight, lanes - dt.shape[-1]),
            (dt_bias[:, :, None], 0),
            (A.swapaxes(2, 3) * LOG2E, more),
        )
    )
    return _Arrays(x, maps.reshape(*x.shape[:4], -1), weight, bias, A)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _ss2d(plan, *arrays):
    return _scan(plan, *arrays, save=False)[0]


def _forward(plan, *arrays):
    y, saved = _scan(plan, *arrays, save=True)
    return y, (arrays, saved)


def _scan(plan, x, dt, dt_weight, dt_bias, A, B, C, D, *, save):
    """y and, if saved, the states of each way that the backward pass starts from."""
    ways = ways_of(plan, x, A.shape[-1], dt.shape[-1])
    args = _prepare(ways, x, dt, dt_weight, dt_bias, A, B, C)
    y, saved = x * jnp.sum(D, 1)[:, None, None, None], []
    for way in ways:
        one, *rest = forward.forward(way, *args, save=save)
        y += _sum(one)
        saved += rest
    return y.astype(x.dtype), saved


def _backward(plan, residuals, dy):
    (x, dt, dt_weight, dt_bias, A, B, C, D), saved = residuals
    ways = ways_of(plan, x, A.shape[-1], dt.shape[-1])
    args = _prepare(ways, x, dt, dt_weight, dt_bias, A, B, C)
    dx, rest = dy * jnp.sum(D, 1)[:, None, None, None], {}
    for way, states in zip(ways, saved, strict=True):
        one, *others = backward.backward(way, *args, dy, states)
        dx += _sum(one)
        rest |= zip(way.which, _by_direction(way, A.shape[-1], *others), strict=True)
    ddt, dB, dC, dweight, dbias, dA = (
        jnp.stack([rest[i][j] for i in range(len(rest))], axis)
        for j, axis in enumerate((4, 4, 4, 1, 1, 1))
    )
    dD = jnp.sum(dy.astype(jnp.float32) * x, (1, 2, 3))[:, None]
    gradients = (dx, ddt, dweight, dbias, dA, dB, dC, jnp.broadcast_to(dD, D.shape))
    return tuple(g.astype(v.dtype) for g, v in zip(gradients, residuals[0], strict=True))


def _sum(v: Array) -> Array:
    """Sum over axis 1 in float32, one addition for each: XLA fuses no reduction with the next."""
    return sum(
        (v[:, i].astype(jnp.float32) for i in range(1, v.shape[1])), v[:, 0].astype(jnp.float32)
    )


def _by_direction(way: Way, n: int, dmaps, dweight, dbias, dA):
    """Yields dt's, B's, C's, the projection's, its bias's and A's gradient of each direction."""
    r, states = way.rank, way.states
    dmaps = dmaps.reshape(*dmaps.shape[:4], len(way.which), way.parts, way.maps)
    dmaps = jnp.sum(dmaps, -2)
    for i in range(len(way.which)):
        of = dmaps[..., i, :]
        weight, bias, A = (v[:, i].sum(1) for v in (dweight, dbias, dA))
        yield (
            *(of[..., :r], of[..., r : r + n], of[..., r + states : r + states + n]),
            *(weight[:, :r], bias[:, 0], A.swapaxes(1, 2)[..., :n]),
        )


_ss2d.defvjp(_forward, _backward)


def ss2d_pallas_tpu(
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
    """SS2D by fused kernels on TPUs; arguments and result as in `api.ss2d`.

    Raises:
      NotImplementedError: columns too long for the vector memory.
    """
    plan = plan_of(directions)
    ways_of(plan, x, A.shape[-1], dt.shape[-1])  # refuses at once, not in the backward pass
    return _ss2d(plan, x, dt, dt_weight, dt_bias, A, B, C, D)
