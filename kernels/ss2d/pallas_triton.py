"""Runs SS2D on CUDA GPUs by Triton: prepares arrays for the kernels, sums their results."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtmamba_jax.kernels.platform_check import triton_refusal
from mtmamba_jax.kernels.ss2d.common import (
    LOG2E,
    Directions,
    create_op,
    pad,
    parse_directions,
    projection_gradients,
    require_backend,
    start_states,
)
from mtmamba_jax.kernels.ss2d.triton import backward, forward
from mtmamba_jax.kernels.ss2d.triton.program import RANK, STATES, TILE, Inputs, Scan

BLOCK = 32
"""Channels of a program: a warp then keeps the states of four pixels in its registers."""
# Measured on an H200 with 132 multiprocessors. Segments cost a second pass over the exponentials.
MIN_PROGRAMS = 1024  # fewer programs are cut into segments
TARGET_PROGRAMS = 3072  # counting each segment
MIN_SEGMENT_TILES = 4


def _choose_scan(
    directions: Directions, x: Float[Array, "t b h w d"] | jax.ShapeDtypeStruct, states: int
) -> Scan:
    """Divides the work into enough programs to keep the GPU busy."""
    t, b, h, w, d = x.shape
    split, tiles = -(-states // STATES), -(-h * w // TILE)
    programs = t * b * len(directions.columns) * split * -(-d // BLOCK)
    segments = 1
    if programs < MIN_PROGRAMS:
        segments = max(1, min(-(-TARGET_PROGRAMS // programs), tiles // MIN_SEGMENT_TILES))
    tiles_each = -(-tiles // segments)
    return Scan(t, b, h * w, *directions, split, BLOCK, -(-tiles // tiles_each), tiles_each)


def _pad_channels(v: Array, scan: Scan, axis: int) -> Array:
    """Adds zeros up to whole blocks of channels."""
    return pad(v, axis, -(-v.shape[axis] // scan.block) * scan.block)


def _flatten(v: Array, scan: Scan, *, column: bool) -> Array:
    """Returns [t b h w ...] as [t b l ...], row-major or column-major."""
    v = jnp.swapaxes(v, 2, 3) if column else v
    return pad(v.reshape(*v.shape[:2], -1, *v.shape[4:]), 2, scan.length)


def _unflatten(v: Array, h: int, w: int, *, column: bool) -> Array:
    """Inverse of `_flatten`."""
    v = v[:, :, : h * w].reshape(*v.shape[:2], *((w, h) if column else (h, w)), *v.shape[3:])
    return jnp.swapaxes(v, 2, 3) if column else v


def _to_images(v: Array, scan: Scan) -> Array:
    """Returns [t b h w d] as [o*t*b l d]."""
    v = _pad_channels(v, scan, 4)
    copies = jnp.stack([_flatten(v, scan, column=column) for column in scan.copies])
    return copies.reshape(-1, *copies.shape[3:])


def _by_direction(v: Array, scan: Scan) -> Array:
    """Returns [t b h w k ...] as [t k b l ...], each direction row-major or column-major."""
    columns = enumerate(scan.columns)
    return jnp.stack([_flatten(v[..., k, :], scan, column=column) for k, column in columns], 1)


def _from_directions(v: Array, scan: Scan, h: int, w: int) -> list[Array]:
    """Inverse of `_by_direction`; returns one [t b h w ...] per direction."""
    return [_unflatten(v[:, k], h, w, column=column) for k, column in enumerate(scan.columns)]


def _sum_directions(v: Array, scan: Scan, shape: tuple[int, ...]) -> Float[Array, "t b h w d"]:
    """Sums [q l d] over directions and parts of the states, in float32; `shape` is that of x."""
    t, b, h, w, d = shape
    v = v.reshape(t, -1, scan.states_split, b, *v.shape[1:])
    v = jnp.sum(v, 2, dtype=jnp.float32) if scan.states_split > 1 else v[:, :, 0]
    parts = _from_directions(v[..., :d], scan, h, w)
    return functools.reduce(jnp.add, [one.astype(jnp.float32) for one in parts])


def _split_states(v: Array, scan: Scan, axis: int) -> Array:
    """Pads the last axis, states, and moves its parts of 16 to an axis of their own."""
    v = pad(v, v.ndim - 1, scan.states_split * STATES)
    return jnp.moveaxis(v.reshape(*v.shape[:-1], scan.states_split, STATES), -2, axis)


def _join_states(v: Array, states: int, axis: int) -> Array:
    """Inverse of `_split_states`."""
    v = jnp.moveaxis(v, axis, -2)
    return v.reshape(*v.shape[:-2], -1)[..., :states]


def _start_states(scan: Scan, ends: Array, time: Array, A: Array, *, reverse: bool) -> Array:
    """Returns the states before each segment, [q s d 16], from the results of `summaries`."""
    A = A[:, None].repeat(scan.images, 1).reshape(-1, 1, *A.shape[1:])
    return start_states(jnp.exp2(time[..., None] * A), ends, axis=1, reverse=reverse)


def _prepare(scan: Scan, x, dt, dt_weight, dt_bias, A, B, C) -> Inputs:
    rank = -(-dt.shape[-1] // RANK) * RANK
    weight = _pad_channels(pad(dt_weight, 2, rank), scan, 3).astype(dt.dtype)
    maps = (_by_direction(v.astype(jnp.float32), scan) for v in (B, C))
    arrays = (
        _by_direction(pad(dt, 5, rank), scan),
        weight,
        _pad_channels(dt_bias, scan, 2),
        _split_states(_pad_channels(A * LOG2E, scan, 2), scan, 2),
        *(_split_states(v, scan, 2) for v in maps),
    )
    kept = (2, 2, 1, 2, 2, 2)  # last axes that are the kernels', the others become one
    arrays = (v.reshape(-1, *v.shape[-n:]) for v, n in zip(arrays, kept, strict=True))
    return Inputs(_to_images(x, scan), *arrays)


def _scan(directions, x, dt, dt_weight, dt_bias, A, B, C, *, save):
    """Returns y without D * x, float32, and the saved states if `save`."""
    scan = _choose_scan(directions, x, A.shape[-1])
    inputs, start = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C), None
    if scan.segments > 1:
        ends, time = forward.summaries(scan, inputs, adjoint=False)
        start = _start_states(scan, ends, time, inputs.A, reverse=False)
    y, *saved = forward.forward(scan, inputs, start, save=save)
    return _sum_directions(y, scan, x.shape), saved


def _gradients(directions, x, dt, dt_weight, dt_bias, A, B, C, saved, dy):
    (t, b, h, w, d), k, n = x.shape, len(directions.columns), A.shape[-1]
    scan = _choose_scan(directions, x, n)
    inputs = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C)
    dys, end = _to_images(dy, scan), None
    if scan.segments > 1:
        ends, time = forward.summaries(scan, inputs._replace(x=dys), adjoint=True)
        end = _start_states(scan, ends, time, inputs.A, reverse=True)
    found = backward.backward(scan, inputs, dys, saved[0], end)

    dz = found.z.reshape(t, k, scan.states_split, b, scan.length, -1)[..., :d]
    dz = jnp.sum(dz, 2) if scan.states_split > 1 else dz[:, :, 0]
    ddt, dweight, dbias = projection_gradients(dz, _by_direction(dt, scan), dt_weight)

    def sum_blocks(v):
        v = jnp.sum(v, 1, dtype=jnp.float32)
        v = v.reshape(t, k, scan.states_split, b, scan.length, STATES)
        return _join_states(v, n, 2)

    ddt, dB, dC = (
        jnp.stack(_from_directions(v, scan, h, w), 4)
        for v in (ddt, sum_blocks(found.B), sum_blocks(found.C))
    )
    dA = found.A.reshape(t, k, scan.states_split, b * scan.segments, -1, STATES)
    dA = _join_states(jnp.sum(dA, 3), n, 2)[:, :, :d]
    dx = _sum_directions(found.x, scan, x.shape)
    return dx, ddt, dweight, dbias, dA, dB, dC


ss2d_op = create_op(_scan, _gradients, separate_sums=True)


def ss2d_pallas_triton(*arrays: Array, directions: Sequence[str]) -> Float[Array, "t b h w d"]:
    """Computes SS2D with fused Triton kernels; arrays and result are those of `api.ss2d`.

    Raises:
      NotImplementedError: If there is a `triton_refusal`, or the program is compiled for another
        platform.
    """
    refusal = triton_refusal()
    if refusal:
        raise NotImplementedError(refusal)
    x = require_backend(arrays[0], "pallas_triton", ("cuda",))
    return ss2d_op(parse_directions(directions), x, *arrays[1:])
