"""Runs SS2D on TPUs: prepares the arrays for the kernels of `mosaic_tpu` and sums their results."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from mtmamba_jax.kernels.platform_check import copied_columns, vmem_capacity
from mtmamba_jax.kernels.ss2d.common import (
    LOG2E,
    create_op,
    pad,
    parse_directions,
    require_backend,
    split_projected,
)
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
    capacity, copied = vmem_capacity(), copied_columns()
    columns, reverses = parse_directions(directions)
    tilings: list[Tiling] = []
    for column in sorted(set(columns)):
        indices = tuple(i for i, c in enumerate(columns) if c == column)
        flags = tuple(reverses[i] for i in indices)
        padded = -(-states // SUBLANES) * SUBLANES
        tiling = choose_tiling(
            Tiling(h, w, d, column, indices, flags, padded, rank),
            lambda tiling: memory.vmem_bytes(tiling, x.dtype) <= capacity,
            copied,
        )
        if tiling is None:
            lines = f"{copied} columns of {h} pixels" if column else "rows"
            raise NotImplementedError(
                f"{lines} with {states} states and rank {rank} do not fit in "
                f"{capacity / 2**20:.0f} MiB of VMEM"
            )
        tilings.append(tiling)
    return tuple(tilings)


def _pack(tiling: Tiling, dt: Array, B: Array, C: Array) -> Array:
    """Packs dt [... k r], B and C [... k n] of a tiling's directions as [... k*c]."""
    axis = dt.ndim - 1
    maps = [dt, *(pad(v, axis, tiling.states) for v in (B, C))]
    maps = pad(jnp.concatenate(maps, -1), axis, tiling.map_lanes)
    maps = jnp.stack([maps[..., i, :] for i in tiling.directions], -2)
    return maps.reshape(*maps.shape[:-2], -1)


def _prepare(tilings: Sequence[Tiling], x, dt_weight, dt_bias, A, *maps) -> list[Inputs]:
    """Returns the inputs of each tiling's kernels."""
    states, lanes = tilings[0].states, tilings[0].map_lanes
    # The kernels mask x beyond the image's channels, so parameters must be finite there: zero.
    channels = (0, max(tiling.parts * tiling.lanes for tiling in tilings) - x.shape[-1])
    weight, bias, A = (
        jnp.pad(v, [(0, 0), (0, 0), (0, rows - v.shape[2]), channels])
        for v, rows in (
            (dt_weight, lanes),
            (dt_bias[:, :, None], 1),
            (A.swapaxes(2, 3) * LOG2E, states),
        )
    )
    return [Inputs(x, one, weight, bias, A) for one in maps]


def _scan(tilings, *arrays, save):
    """Returns y without D * x, float32, and the saved states of each tiling if `save`."""
    pairs = zip(tilings, _prepare(tilings, *arrays), strict=True)
    results = [forward.forward(tiling, inputs, save=save) for tiling, inputs in pairs]
    saved = [states for _, *rest in results for states in rest]
    return sum(_sum_directions(y) for y, *_ in results), saved


def _gradients(tilings, *arrays):
    *arrays, saved, dy = arrays
    _, dt_weight, _, A, *_ = arrays
    triples = zip(tilings, _prepare(tilings, *arrays), saved, strict=True)
    results = [backward.backward(tiling, inputs, dy, states) for tiling, inputs, states in triples]
    dx, dmaps, *others = zip(*results, strict=True)
    # The parameters' gradients are those of images, in the order of the tilings.
    order = np.argsort([direction for tiling in tilings for direction in tiling.directions])
    dweight, dbias, dA = (
        jnp.concatenate([v.sum(2) for v in found], 1)[:, order] for found in others
    )
    return (
        sum(map(_sum_directions, dx)),
        dweight[:, :, : dt_weight.shape[2]],
        dbias[:, :, 0],
        dA.swapaxes(2, 3)[..., : A.shape[-1]],
        *map(_sum_parts, tilings, dmaps),
    )


def _sum_parts(tiling: Tiling, dmaps: Array) -> Array:
    """Sums the maps' gradients over the parts of the channels."""
    if tiling.parts == 1:
        return dmaps
    dmaps = dmaps.reshape(*dmaps.shape[:4], -1, tiling.parts, tiling.map_lanes)
    return jnp.sum(dmaps, -2).reshape(*dmaps.shape[:4], -1)


def _sum_directions(v: Array) -> Array:
    """Sums over axis 0 in float32, by additions: XLA does not fuse one reduction with the next."""
    first, *others = (v[i].astype(jnp.float32) for i in range(len(v)))
    return sum(others, first)


_op = create_op(_scan, _gradients)


def ss2d_pallas_tpu(*arrays: Array, directions: Sequence[str]) -> Float[Array, "t b h w d"]:
    """Computes SS2D with fused TPU kernels; arrays and result are those of `api.ss2d`.

    Raises:
      NotImplementedError: If columns are too long, or states too many, for VMEM, or the program is
        compiled for another platform.
    """
    x, dt, weight, bias, A, B, C, D = arrays
    tilings = choose_tilings(directions, x, A.shape[-1], dt.shape[-1])
    x = require_backend(x, "pallas_tpu", PLATFORMS)
    maps = [_pack(tiling, dt, B, C) for tiling in tilings]
    return _op(tilings, x, weight, bias, A, *maps, D)


def selective_ss2d_pallas_tpu(
    *arrays: Array, directions: Sequence[str]
) -> Float[Array, "t b h w d"]:
    """Computes `api.selective_ss2d` with fused TPU kernels.

    The product with the projection has the kernels' layout, a register's lanes for each direction:
    XLA would write its result again to pad it.

    Raises:
      NotImplementedError: For the reasons of `ss2d_pallas_tpu`.
    """
    x, source, projection, weight, bias, A, D = arrays
    tilings = choose_tilings(directions, x, A.shape[-1], weight.shape[2])
    x = require_backend(x, "pallas_tpu", PLATFORMS)
    parts = split_projected(projection.swapaxes(1, 2), weight.shape[2])  # [t d k e]
    maps = [jnp.einsum("tbhwd,tdl->tbhwl", source, _pack(tiling, *parts)) for tiling in tilings]
    return _op(tilings, x, weight, bias, A, *maps, D)
