"""SS2D on NVIDIA GPUs: prepares the arrays of `mosaic_gpu`'s kernels and adds what they return."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import mosaic_gpu as plgpu

from mtmamba_jax.kernels.ss2d.fused import LOG2E, columns_and_reverses, fused
from mtmamba_jax.kernels.ss2d.mosaic_gpu import backward, forward, step_sizes, summaries
from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    GROUPS,
    OWN_STATES,
    SHARERS,
    STATES,
    TILE,
    WARPS,
    WIDE,
    Scan,
)

Array = jax.Array

# Measured on an H200, 132 multiprocessors. Segments cost a second pass over the exponentials, so
# they pay only where programs are few, and then it takes many of them.
ENOUGH_FORWARD = 96  # programs that go without segments
ENOUGH_BACKWARD = 160
FULL = 1056  # programs to cut towards
MOST_SEGMENTS = 32
SHORTEST = 4  # tiles of a segment, on average
NARROW = 264  # fewer programs than this, without segments, scan half the channels each
# Pixels unrolled in the forward pass where lines are whole runs, by channels of a group.
LONG_RUNS = {WIDE: (8,), WIDE // 2: (16, 8)}
FEW = 396  # programs, three a multiprocessor: with a long run's registers no more fit

NARROW_CHANNELS = WARPS * GROUPS * WIDE // 2  # of a program that scans half the channels

SHARED_BYTES = 227 * 1024 - 2048  # of a program, less than the GPU has by what the compiler adds

HOPPER = 9.0

_einsum = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


class _Plan(NamedTuple):
    """What is static about one call: hashable, so that it can be a nondiff argument."""

    columns: tuple[bool, ...]
    reverses: tuple[bool, ...]


def _scan_of(plan: _Plan, x: Array, states: int, rank: int, *, backward_pass: bool) -> Scan:
    """Cuts the work so that the chip is full, with as few programs as do that.

    Both passes pad channels alike: the backward one reads the states that the forward one saved.

    Raises:
      NotImplementedError: step sizes of too high a rank for the shared memory.
    """
    t, b, h, w, d = x.shape
    scan = Scan(
        tasks=t,
        images=b,
        height=h,
        width=w,
        columns=plan.columns,
        reverses=plan.reverses,
        states_split=-(-states // STATES),
        own=WIDE if d > NARROW_CHANNELS else WIDE // 2,
        segments=1,
    )
    programs = _programs(scan, d)
    narrow = dataclasses.replace(scan, own=WIDE // 2)
    as_backward = backward_pass or d % scan.channels != 0  # else its channels are padded otherwise
    enough = ENOUGH_BACKWARD if as_backward else ENOUGH_FORWARD
    if enough <= programs < NARROW or _shared_bytes(scan, x.dtype, rank) > SHARED_BYTES:
        scan = narrow
    if _shared_bytes(scan, x.dtype, rank) > SHARED_BYTES:
        raise NotImplementedError(f"step sizes of rank {rank} take too much shared memory")
    if programs < enough:
        most = min(MOST_SEGMENTS, h * w // (SHORTEST * TILE))
        scan = dataclasses.replace(scan, segments=max(1, min(FULL // programs, most)))
    if _programs(scan, d) <= FEW and not backward_pass:
        whole = (run for run in LONG_RUNS[scan.own] if h % run == w % run == 0)
        scan = dataclasses.replace(scan, run=next(whole, scan.run))
    return scan


def _programs(scan: Scan, channels: int) -> int:
    """How many programs a launch has."""
    return -(-channels // scan.channels) * scan.programs * scan.segments


def _shared_bytes(scan: Scan, dtype, rank: int) -> int:
    parts = backward.memory(scan, dtype, step_sizes.columns(rank, dtype))
    arrays = (v for v in parts if not isinstance(v, plgpu.Barrier))
    return sum(math.prod(v.shape) * jnp.dtype(v.dtype).itemsize for v in arrays)


def _pad_image(v: Array, scan: Scan, axis: int, multiple: int = 1) -> Array:
    """Zeros below and to the right up to the scan's size."""
    h, w = v.shape[axis : axis + 2]
    height, width = scan.padded(multiple)
    if (h, w) == (height, width):
        return v
    padding = [(0, 0)] * v.ndim
    padding[axis : axis + 2] = (0, height - h), (0, width - w)
    return jnp.pad(v, padding)


def _pad_channels(v: Array, scan: Scan, axis: int) -> Array:
    """Zeros up to whole blocks of channels."""
    padding = [(0, 0)] * v.ndim
    padding[axis] = (0, -v.shape[axis] % scan.channels)
    return jnp.pad(v, padding) if padding[axis][1] else v


def _to_images(v: Array, scan: Scan) -> Array:
    """[t b h w d] to [t*b h w d], padded."""
    v = _pad_channels(_pad_image(v, scan, 2), scan, 4)
    return v.reshape(-1, *v.shape[2:])


def _from_images(scan: Scan, v: Array, shape: tuple[int, ...]) -> Array:
    """[q h w d] to [t k*split b h w d] of an image [t b h w d]."""
    t, b, h, w, d = shape
    v = v.reshape(t, -1, b, *v.shape[1:])
    return v[:, :, :, :h, :w, :d]


def _states_of(scan: Scan, A: Array) -> Array:
    """A [t k d n] to [t*k*split e 4 128], times log2(e)."""
    t, k, _, n = A.shape
    A = jnp.pad(_pad_channels(A, scan, 2), [(0, 0)] * 3 + [(0, scan.states_split * STATES - n)])
    A = (A * LOG2E).reshape(t * k, -1, GROUPS, WIDE, scan.states_split, SHARERS, OWN_STATES)
    return A.transpose(0, 4, 1, 6, 2, 5, 3).reshape(-1, A.shape[1], *scan.stored[1:])


def _from_states(scan: Scan, v: Array, like: Array) -> Array:
    """Inverse of `_states_of`, without the factor."""
    t, k, d, n = like.shape
    v = v.reshape(t * k, scan.states_split, -1, OWN_STATES, GROUPS, SHARERS, WIDE)
    v = v.transpose(0, 2, 4, 6, 1, 5, 3)
    return v.reshape(t, k, -1, scan.states_split * STATES)[:, :, :d, :n]


def _maps_of(scan: Scan, B: Array, C: Array) -> Array:
    """B and C [t b h w k n] to [q h w 32] float32."""
    t, b, h, w, k, n = B.shape
    padding = [(0, 0)] * 5 + [(0, scan.states_split * STATES - n)]
    parts = (
        jnp.pad(v.astype(jnp.float32), padding).reshape(t, b, h, w, k, scan.states_split, STATES)
        for v in (B, C)
    )
    maps = jnp.concatenate(list(parts), -1).transpose(0, 4, 5, 1, 2, 3, 6)
    return _pad_image(maps.reshape(-1, h, w, 2 * STATES), scan, 1)


def _from_maps(scan: Scan, v: Array, like: Array, blocks: int) -> tuple[Array, Array]:
    """Gradients of B and C from those of `_maps_of` by block of channels, [q h w blocks*32]."""
    t, b, h, w, k, n = like.shape
    v = v[:, :h, :w, : blocks * 2 * STATES].reshape(*v.shape[:1], h, w, blocks, 2 * STATES)
    v = jnp.sum(v, 3, dtype=jnp.float32).reshape(t, k, scan.states_split, b, h, w, 2, STATES)
    v = v.transpose(6, 0, 3, 4, 5, 1, 2, 7).reshape(2, t, b, h, w, k, -1)[..., :n]
    return v[0], v[1]


def _carry(scan: Scan, ends: Array, time: Array, A: Array, *, reverse: bool) -> Array:
    """The state before each segment, from what each adds to it (`summaries.summaries`)."""
    shape = (-1, scan.segments - 1, *A.shape[1:])
    matrices = A[:, None].repeat(scan.images, 1).reshape(-1, 1, *A.shape[1:])
    time = time.reshape(*shape[:3], 1, GROUPS, 1, WIDE).repeat(SHARERS, 5)
    decay = jnp.exp2(time.reshape(*shape[:3], 1, shape[4]) * matrices)

    def combine(left, right):
        return left[0] * right[0], left[1] * right[0] + right[1]

    states = lax.associative_scan(combine, (decay, ends.reshape(shape)), axis=1, reverse=reverse)[1]
    none = jnp.zeros_like(states[:, :1])
    states = jnp.concatenate([states, none] if reverse else [none, states], 1)
    return states.reshape(-1, *A.shape[1:])


class _Arrays(NamedTuple):
    """The kernels' view of the arguments."""

    x: Array
    dt: Array
    weight: Array
    maps: Array
    A: Array


def _prepare(scan: Scan, x, dt, dt_weight, dt_bias, A, B, C) -> _Arrays:
    dt, weight = step_sizes.operands(dt, dt_weight, dt_bias)
    return _Arrays(
        x=_to_images(x, scan),
        dt=_pad_image(dt, scan, 1, step_sizes.ROWS),
        weight=_pad_channels(weight, scan, 1),
        maps=_maps_of(scan, B, C),
        A=_states_of(scan, A),
    )


def _scan(plan, x, dt, dt_weight, dt_bias, A, B, C, *, save):
    """y in float32 and, if saved, the states that the backward pass starts from."""
    scan = _scan_of(plan, x, A.shape[-1], dt.shape[-1], backward_pass=False)
    args = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C)
    start = None
    if scan.segments > 1:
        ends, time = summaries.summaries(scan, *args, adjoint=False)
        start = _carry(scan, ends, time, args.A, reverse=False)
    y, *saved = forward.forward(scan, *args, start, save=save)
    return jnp.sum(_from_images(scan, y, x.shape), 1, dtype=jnp.float32), saved


def _gradients(plan, x, dt, dt_weight, dt_bias, A, B, C, saved, dy):
    scan = _scan_of(plan, x, A.shape[-1], dt.shape[-1], backward_pass=True)
    args = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C)
    dy_images = _to_images(dy, scan)
    end = None
    if scan.segments > 1:
        ends, time = summaries.summaries(scan, dy_images, *args[1:], adjoint=True)
        end = _carry(scan, ends, time, args.A, reverse=True)
    *inputs, matrices = args
    dx, dz, dmaps, dA = backward.backward(scan, *inputs, dy_images, *saved, matrices, end)
    t, b, h, w, d = x.shape
    k, split = len(plan.columns), scan.states_split
    dx = jnp.sum(_from_images(scan, dx, x.shape), 1, dtype=jnp.float32)
    dz = _from_images(scan, dz, x.shape).reshape(t, k, split, b, h, w, d)
    dz = dz[:, :, 0] if split == 1 else jnp.sum(dz, 2)
    dB, dC = _from_maps(scan, dmaps, B, args.A.shape[1] // scan.stored[0])
    dA = jnp.sum(dA.reshape(t * k * split, b * scan.segments, *dA.shape[1:]), 1)
    exact = lax.Precision.HIGHEST
    ddt = _einsum("tkbhwd,tkrd->tbhwkr", dz, dt_weight.astype(dz.dtype), precision=exact)
    ones = jnp.ones((*dt.shape[:-1], 1), dz.dtype)  # of the bias: one product, one reading of dz
    dts = jnp.concatenate([dt.astype(dz.dtype), ones], -1)
    dprojection = _einsum("tbhwkr,tkbhwd->tkrd", dts, dz, precision=exact)
    dweight, dbias = dprojection[:, :, :-1], dprojection[:, :, -1]
    return dx, ddt, dweight, dbias, _from_states(scan, dA, A), dB, dC


_ss2d = fused(_scan, _gradients)


@functools.cache
def _compute_capability() -> float | None:
    """Of the GPU at hand; None without one, when lowering for another machine."""
    try:
        return float(jax.devices("cuda")[0].compute_capability)
    except RuntimeError:
        return None


def ss2d_pallas_gpu(
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
    """SS2D by fused kernels on Hopper; arguments and result as in `api.ss2d`.

    Raises:
      NotImplementedError: the GPU at hand is no Hopper GPU, or step sizes of too high a rank.
    """
    capability = _compute_capability()
    if capability not in (None, HOPPER):
        raise NotImplementedError(
            f"needs a Hopper GPU, whose matrix instructions (compute capability {HOPPER}) no other "
            f"has; this is {capability}"
        )
    plan = _Plan(*columns_and_reverses(directions))
    # Refuses at once, not in the backward pass.
    _scan_of(plan, x, A.shape[-1], dt.shape[-1], backward_pass=True)
    return _ss2d(plan, x, dt, dt_weight, dt_bias, A, B, C, D)
