"""SS2D on TPUs: prepares the arrays of `mosaic_tpu`'s kernels and adds what they return."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from mtmamba_jax.kernels.ss2d.fused import LOG2E, columns_and_reverses, fused
from mtmamba_jax.kernels.ss2d.mosaic_tpu import backward, forward, memory
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import SUBLANES, Way, cut

Array = jax.Array

LEAST_MEMORY = 16 * 2**20  # bytes of vector memory, of the TPU that has least of it (v4)


def ways_of(directions: Sequence[str], x: Array, states: int, rank: int) -> tuple[Way, ...]:
    """The one or two ways of a call.

    Args:
      directions: of `ss2d`.
      x: [t b h w d]; only its shape and dtype are read.
      states, rank: n and r.

    Raises:
      NotImplementedError: a tile that takes more than the vector memory.
    """
    h, w, d = x.shape[2:]
    room = _vector_memory()
    columns, reverses = columns_and_reverses(directions)
    ways = []
    for column in sorted(set(columns)):
        which = tuple(i for i, c in enumerate(columns) if c == column)
        way = cut(
            *(h, w, d, column, which, tuple(reverses[i] for i in which)),
            *(-(-states // SUBLANES) * SUBLANES, rank),
            lambda way: memory.vector_memory(way, x.dtype) <= room,
        )
        if way is None:
            raise NotImplementedError(
                f"eight columns of {h} pixels with {states} states and rank {rank} take more than "
                f"{room / 2**20:.0f} MiB of vector memory"
                if column
                else f"rows with {states} states and rank {rank} take more than "
                f"{room / 2**20:.0f} MiB of vector memory"
            )
        ways.append(way)
    return tuple(ways)


def _vector_memory() -> int:
    """Bytes that a kernel may take of the TPU in context or at hand, or of any that there is."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:  # no TPU in context or at hand
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
    maps = jnp.concatenate(maps, -1)
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


def _scan(ways, *arrays, save):
    """y in float32 and, if saved, the states of each way that the backward pass starts from."""
    args = _prepare(ways, *arrays)
    results = [forward.forward(way, *args, save=save) for way in ways]
    return sum(_sum(y) for y, *_ in results), [saved for _, *rest in results for saved in rest]


def _gradients(ways, *arrays):
    *arrays, saved, dy = arrays
    args, n = _prepare(ways, *arrays), arrays[4].shape[-1]
    dx, rest = 0, {}
    for way, states in zip(ways, saved, strict=True):
        one, *others = backward.backward(way, *args, dy, states)
        dx += _sum(one)
        rest |= zip(way.which, _by_direction(way, n, *others), strict=True)
    ddt, dB, dC, dweight, dbias, dA = (
        jnp.stack([rest[i][j] for i in range(len(rest))], axis)
        for j, axis in enumerate((4, 4, 4, 1, 1, 1))
    )
    return dx, ddt, dweight, dbias, dA, dB, dC


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


_ss2d = fused(_scan, _gradients)


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
      NotImplementedError: columns too long, or too many states, for the vector memory.
    """
    ways = ways_of(directions, x, A.shape[-1], dt.shape[-1])
    return _ss2d(ways, x, dt, dt_weight, dt_bias, A, B, C, D)
