"""Runs SS2D on CUDA GPUs by Triton: prepares arrays for the kernels, sums their results."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.common import LN2, LOG2E, Directions, combine, create_op, parse_directions
from mtmamba_jax.kernels.ss2d.platform_check import require_platform
from mtmamba_jax.kernels.ss2d.triton import backward, forward
from mtmamba_jax.kernels.ss2d.triton.program import RANK, STATES, TILE, Inputs, Scan

BLOCK = 32
TARGET_PROGRAMS = 3072
MIN_TILES = 4

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _choose_scan(directions: Directions, x, states: int) -> Scan:
    t, b, h, w, d = x.shape
    split = -(-states // STATES)
    tiles = -(-h * w // TILE)
    programs = t * len(directions.columns) * split * b * -(-d // BLOCK)
    segments = max(1, min(-(-TARGET_PROGRAMS // programs), tiles // MIN_TILES))
    per_segment = -(-tiles // segments)
    return Scan(
        t, b, h * w, *directions, split, BLOCK, -(-tiles // per_segment), per_segment
    )


def _pad(v: Array, axis: int, size: int) -> Array:
    padding = [(0, 0)] * v.ndim
    padding[axis] = (0, size - v.shape[axis])
    return jnp.pad(v, padding) if padding[axis][1] else v


def _pad_channels(v, scan, axis):
    return _pad(v, axis, -(-v.shape[axis] // scan.block) * scan.block)


def _flatten(v: Array, column: bool, scan: Scan) -> Array:
    """Returns [t b h w ...] as [t b l ...] in one orientation."""
    v = jnp.swapaxes(v, 2, 3) if column else v
    return _pad(v.reshape(*v.shape[:2], -1, *v.shape[4:]), 2, scan.length)


def _to_images(v: Array, scan: Scan) -> Array:
    v = _pad_channels(v, scan, 4)
    copies = jnp.stack([_flatten(v, column, scan) for column in scan.orientations])
    return copies.reshape(-1, *copies.shape[3:])


def _by_direction(v: Array, scan: Scan) -> Array:
    """Returns [t b h w k ...] as [t k b l ...]."""
    return jnp.stack(
        [_flatten(v[:, :, :, :, k], column, scan) for k, column in enumerate(scan.columns)], 1
    )


def _to_maps(v: Array, scan: Scan) -> Array:
    """Returns B or C [t b h w k n] as [q l 16] float32."""
    v = _pad(v.astype(jnp.float32), 5, scan.states_split * STATES)
    v = _by_direction(v, scan)
    v = v.reshape(*v.shape[:4], scan.states_split, STATES)
    return jnp.moveaxis(v, 4, 2).reshape(-1, scan.length, STATES)


def _images_from(v: Array, scan: Scan, shape) -> list[Array]:
    """Returns [t*k b l d] as one [t b h w d] for each direction."""
    t, b, h, w, d = shape
    v = v.reshape(t, -1, b, *v.shape[-2:])[:, :, :, : h * w, :d]
    images = []
    for k, column in enumerate(scan.columns):
        one = v[:, k].reshape(t, b, *((w, h) if column else (h, w)), d)
        images.append(jnp.swapaxes(one, 2, 3) if column else one)
    return images


def _sum_images(v, scan, shape):
    v = v.reshape(-1, scan.states_split, scan.images, *v.shape[1:])
    v = v[:, 0] if scan.states_split == 1 else jnp.sum(v, 1, dtype=jnp.float32)
    return sum(one.astype(jnp.float32) for one in _images_from(v, scan, shape))


def _to_states(A, scan):
    """Returns A [t k d n] times log2(e) as [p d 16]."""
    t, k, d, n = A.shape
    A = _pad(_pad_channels(A * LOG2E, scan, 2), 3, scan.states_split * STATES)
    A = A.reshape(*A.shape[:3], scan.states_split, STATES)
    return jnp.moveaxis(A, 3, 2).reshape(-1, *A.shape[2::2])


def _from_states(v, scan, like):
    """Inverse of `_to_states` but for the factor; v is [t*k parts d 16]."""
    t, k, d, n = like.shape
    v = jnp.moveaxis(v.reshape(t, k, scan.states_split, -1, STATES), 2, 3)
    return v.reshape(t, k, v.shape[2], -1)[:, :, :d, :n]


def _start_states(scan, ends, time, A, *, reverse):
    rates = A[:, None].repeat(scan.images, 1).reshape(-1, 1, *A.shape[1:])
    decay = jnp.exp2(time[..., None] * rates)
    states = lax.associative_scan(combine, (decay, ends), axis=1, reverse=reverse)[1]
    none = jnp.zeros_like(states[:, :1])
    return jnp.concatenate([states, none] if reverse else [none, states], 1)


def _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C) -> Inputs:
    rank = -(-dt.shape[-1] // RANK) * RANK
    steps = _by_direction(_pad(dt, 5, rank), scan)
    weight = _pad_channels(_pad(dt_weight, 2, rank), scan, 3)
    bias = _pad_channels(dt_bias, scan, 2)
    return Inputs(
        _to_images(x, scan),
        steps.reshape(-1, *steps.shape[3:]),
        weight.reshape(-1, *weight.shape[2:]).astype(dt.dtype),
        bias.reshape(-1, bias.shape[2]),
        _to_states(A, scan), _to_maps(B, scan), _to_maps(C, scan),
    )


def _scan(directions, x, dt, dt_weight, dt_bias, A, B, C, *, save):
    scan = _choose_scan(directions, x, A.shape[-1])
    inputs = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C)
    start = None
    if scan.segments > 1:
        ends, time = forward.summaries(scan, inputs, adjoint=False)
        start = _start_states(scan, ends, time, inputs.A, reverse=False)
    y, *saved = forward.forward(scan, inputs, start, save=save)
    return _sum_images(y, scan, x.shape), saved


def _gradients(directions, x, dt, dt_weight, dt_bias, A, B, C, saved, dy):
    scan = _choose_scan(directions, x, A.shape[-1])
    inputs = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C)
    dys = _to_images(dy, scan)
    end = None
    if scan.segments > 1:
        ends, time = forward.summaries(scan, inputs._replace(x=dys), adjoint=True)
        end = _start_states(scan, ends, time, inputs.A, reverse=True)
    dx, dz, dB, dC, dA = backward.backward(scan, inputs, dys, *saved, end)
    t, b, h, w, d = x.shape
    k, split = len(directions.columns), scan.states_split
    dz = dz.reshape(t * k, split, b, *dz.shape[1:])
    dz = dz[:, 0] if split == 1 else jnp.sum(dz, 1)
    dz = dz.reshape(t, k, b, scan.length, -1)[..., :d]
    exact = lax.Precision.HIGHEST
    steps = _by_direction(dt, scan).astype(dz.dtype)
    ddt = _einsum("tkbld,tkrd->tkblr", dz, dt_weight.astype(dz.dtype), precision=exact)
    ones = jnp.ones((*steps.shape[:-1], 1), dz.dtype)
    dprojection = _einsum("tkblr,tkbld->tkrd", jnp.concatenate([steps, ones], -1), dz, precision=exact)

    def back(v):  # [t k b l n]
        return jnp.stack(_images_from(v, scan, (t, b, h, w, v.shape[-1])), 4)

    def maps(v, like):
        v = jnp.sum(v, 1, dtype=jnp.float32).reshape(t, k, split, b, scan.length, STATES)
        v = jnp.moveaxis(v, 2, 4).reshape(t, k, b, scan.length, -1)
        return back(v[..., : like.shape[-1]])

    dA = jnp.sum(dA.reshape(-1, b * scan.segments, *dA.shape[2:]), 1)
    return (
        _sum_images(dx, scan, x.shape), back(ddt), dprojection[:, :, :-1], dprojection[:, :, -1],
        _from_states(dA, scan, A), maps(dB, B), maps(dC, C),
    )


ss2d_op = create_op(_scan, _gradients)


def ss2d_pallas_triton(*arrays: Array, directions: Sequence[str]) -> Float[Array, "t b h w d"]:
    orders = parse_directions(directions)
    return ss2d_op(orders, require_platform(arrays[0], "pallas_triton", ("cuda",)), *arrays[1:])
