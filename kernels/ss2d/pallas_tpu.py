"""Runs SS2D on TPUs: prepares the arrays for the kernels of `mosaic_tpu` and sums their results."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtmamba_jax.kernels.platform_check import vmem_capacity
from mtmamba_jax.kernels.ss2d.common import LOG2E, create_op, parse_directions, require_backend
from mtmamba_jax.kernels.ss2d.mosaic_tpu import backward, forward, memory
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tiling import SUBLANES, Inputs, Tiling, choose_tiling

PLATFORMS = ("tpu",)
"""Platforms to compile for. The tests add the CPU, where they force Pallas's interpreter."""


def choose_tilings(
    directions: Sequence[str],
    x: Float[Array, "t b h w d"] | jax.ShapeDtypeStruct,
    states: int,
    rank: int,
) -> tuple[Tiling, ...]:
    """Returns the tilings of a call: for rows, for columns, or for both.

    Uses only the shape and dtype of x; `states` is n, `rank` is r.

    Raises:
      NotImplementedError: If a tile does not fit in VMEM.
    """
    h, w, d = x.shape[2:]
    capacity = vmem_capacity()
    columns, reverses = parse_directions(directions)
    tilings = []
    for column in sorted(set(columns)):
        indices = tuple(i for i, c in enumerate(columns) if c == column)
        flags = tuple(reverses[i] for i in indices)
        padded = -(-states // SUBLANES) * SUBLANES
        tiling = choose_tiling(
            Tiling(h, w, d, column, indices, flags, padded, rank),
            lambda tiling: memory.vmem_bytes(tiling, x.dtype) <= capacity,
        )
        if tiling is None:
            lines = f"eight columns of {h} pixels" if column else "rows"
            raise NotImplementedError(
                f"{lines} with {states} states and rank {rank} do not fit in "
                f"{capacity / 2**20:.0f} MiB of VMEM"
            )
        tilings.append(tiling)
    return tuple(tilings)


def _prepare(tilings: Sequence[Tiling], x, dt, dt_weight, dt_bias, A, B, C) -> Inputs:
    states, lanes = tilings[0].states, tilings[0].map_lanes
    more = states - A.shape[-1]
    maps = [dt, *(jnp.pad(v, [(0, 0)] * 5 + [(0, more)]) for v in (B, C))]
    maps = jnp.concatenate(maps, -1)
    maps = jnp.pad(maps, [(0, 0)] * 5 + [(0, lanes - maps.shape[-1])])
    # The kernels mask x beyond the image's channels, so parameters must be finite there: zero.
    channels = (0, max(tiling.parts * tiling.lanes for tiling in tilings) - x.shape[-1])
    weight, bias, A = (
        jnp.pad(v, [(0, 0), (0, 0), (0, rows), channels])
        for v, rows in (
            (dt_weight, lanes - dt.shape[-1]),
            (dt_bias[:, :, None], 0),
            (A.swapaxes(2, 3) * LOG2E, more),
        )
    )
    return Inputs(x, maps.reshape(*x.shape[:4], -1), weight, bias, A)


def _scan(tilings, *arrays, save):
    """Returns y without D * x, float32, and the saved states of each tiling if `save`."""
    inputs = _prepare(tilings, *arrays)
    results = [forward.forward(tiling, inputs, save=save) for tiling in tilings]
    saved = [states for _, *rest in results for states in rest]
    return sum(_sum_directions(y) for y, *_ in results), saved


def _gradients(tilings, *arrays):
    *arrays, saved, dy = arrays
    inputs, n = _prepare(tilings, *arrays), arrays[4].shape[-1]
    dx, rest = 0, {}
    for tiling, states in zip(tilings, saved, strict=True):
        one, *others = backward.backward(tiling, inputs, dy, states)
        dx += _sum_directions(one)
        rest |= zip(tiling.directions, _split_gradients(tiling, n, *others), strict=True)
    ddt, dB, dC, dweight, dbias, dA = (
        jnp.stack([rest[i][j] for i in range(len(rest))], axis)
        for j, axis in enumerate((4, 4, 4, 1, 1, 1))
    )
    return dx, ddt, dweight, dbias, dA, dB, dC


def _sum_directions(v: Array) -> Array:
    """Sums over axis 1 in float32, by additions: XLA does not fuse one reduction with the next."""
    first, *others = (v[:, i].astype(jnp.float32) for i in range(v.shape[1]))
    return sum(others, first)


def _split_gradients(tiling: Tiling, n: int, dmaps, dweight, dbias, dA):
    """Yields each direction's gradients of dt, B, C, dt_weight, dt_bias and A."""
    r, states = tiling.rank, tiling.states
    dmaps = dmaps.reshape(*dmaps.shape[:4], len(tiling.directions), tiling.parts, tiling.map_lanes)
    dmaps = jnp.sum(dmaps, -2)
    for i in range(len(tiling.directions)):
        maps = dmaps[..., i, :]
        weight, bias, A = (v[:, i].sum(1) for v in (dweight, dbias, dA))
        yield (
            *(maps[..., :r], maps[..., r : r + n], maps[..., r + states : r + states + n]),
            *(weight[:, :r], bias[:, 0], A.swapaxes(1, 2)[..., :n]),
        )


ss2d_op = create_op(_scan, _gradients)


def ss2d_pallas_tpu(*arrays: Array, directions: Sequence[str]) -> Float[Array, "t b h w d"]:
    """Computes SS2D with fused TPU kernels; arrays and result are those of `api.ss2d`.

    Raises:
      NotImplementedError: If columns are too long, or states too many, for VMEM, or the program is
        compiled for another platform.
    """
    x, dt, _, _, A, *_ = arrays
    tilings = choose_tilings(directions, x, A.shape[-1], dt.shape[-1])
    return ss2d_op(tilings, require_backend(x, "pallas_tpu", PLATFORMS), *arrays[1:])
