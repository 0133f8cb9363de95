"""Runs SS2D on Hopper and data-center Blackwell GPUs: prepares arrays, sums the kernels' results.

For other Blackwell GPUs, Mosaic's code does not assemble (jax 0.11.2).
"""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.kernels import platform_check
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
from mtmamba_jax.kernels.ss2d.mosaic_gpu import backward, forward, step_sizes, summaries
from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    GROUP_CHANNELS,
    GROUP_THREADS,
    GROUPS,
    STATES,
    THREAD_STATES,
    TILE,
    WARPS,
    Inputs,
    Scan,
)

# Measured on an H200 with 132 multiprocessors. Segments cost a second pass over the exponentials,
# so they pay off only if programs are few, and then only in large numbers.
MIN_PROGRAMS_FORWARD = 96  # fewer programs are cut into segments
MIN_PROGRAMS_BACKWARD = 160
TARGET_PROGRAMS = 1056  # counting each segment
MAX_SEGMENTS = 32
MIN_SEGMENT_TILES = 4  # per segment, on average
MIN_WIDE_PROGRAMS = 264  # fewer programs without segments scan half the channels each
# Programs of 128 channels that 132 multiprocessors run at once, 4 and 2 on each. If there are more,
# they are cut into chained segments.
RESIDENT_FORWARD = 528
RESIDENT_BACKWARD = 264
MAX_CHAINED_SEGMENTS = 32
MIN_CHAINED_TILES = 16  # per segment, on average
# Run lengths for the forward pass, used if they divide both sizes; by channels per group.
LONG_RUNS = {GROUP_CHANNELS: (8,), GROUP_CHANNELS // 2: (16, 8)}
# Three programs per multiprocessor: no more fit with the registers of a long run.
MAX_LONG_RUN_PROGRAMS = 396

NARROW_CHANNELS = WARPS * GROUPS * GROUP_CHANNELS // 2  # of a program that scans half the channels

MAX_SHARED_BYTES = 227 * 1024 - 2048  # per program; the rest of the GPU's is for the compiler

CAPABILITIES = (9.0, 10.0, 10.3)
"""Compute capabilities of the GPUs that the kernels are compiled for: Hopper, B200, B300."""


def _choose_scan(
    directions: Directions,
    x: Float[Array, "t b h w d"] | jax.ShapeDtypeStruct,
    states: int,
    rank: int,
    *,
    backward_pass: bool,
) -> Scan:
    """Divides the work into as few programs as keep the GPU busy.

    Both passes pad channels to the same number, since the backward pass reads the states that the
    forward pass saved.

    Raises:
      NotImplementedError: If the step sizes' rank is too high for the shared memory.
    """
    t, b, h, w, d = x.shape
    group_channels = GROUP_CHANNELS if d > NARROW_CHANNELS else GROUP_CHANNELS // 2
    scan = Scan(t, b, h, w, *directions, -(-states // STATES), group_channels, segments=1)
    programs = _count_programs(scan, d)
    narrow = dataclasses.replace(scan, group_channels=GROUP_CHANNELS // 2)
    # Channels that are not whole blocks must be padded by the same rule in both passes.
    as_backward = backward_pass or d % scan.channels != 0
    enough = MIN_PROGRAMS_BACKWARD if as_backward else MIN_PROGRAMS_FORWARD
    resident = RESIDENT_BACKWARD if backward_pass else RESIDENT_FORWARD
    too_large = _shared_bytes(scan, x.dtype, rank) > MAX_SHARED_BYTES
    if too_large or enough <= programs < MIN_WIDE_PROGRAMS:
        scan = narrow
    if _shared_bytes(scan, x.dtype, rank) > MAX_SHARED_BYTES:
        raise NotImplementedError(f"step sizes of rank {rank} need too much shared memory")
    if programs < enough:
        most = min(MAX_SEGMENTS, h * w // (MIN_SEGMENT_TILES * TILE))
        scan = dataclasses.replace(scan, segments=max(1, min(TARGET_PROGRAMS // programs, most)))
    elif scan is not narrow and programs > resident:
        segments = min(MAX_CHAINED_SEGMENTS, scan.tiles // MIN_CHAINED_TILES)
        scan = dataclasses.replace(scan, segments=max(1, segments), chained=segments > 1)
    if not scan.chained and _count_programs(scan, d) <= MAX_LONG_RUN_PROGRAMS and not backward_pass:
        whole = (run for run in LONG_RUNS[scan.group_channels] if h % run == w % run == 0)
        scan = dataclasses.replace(scan, run=next(whole, scan.run))
    return scan


def _count_programs(scan: Scan, channels: int) -> int:
    return -(-channels // scan.channels) * scan.programs * scan.segments


def _shared_bytes(scan: Scan, dtype: DTypeLike, rank: int) -> int:
    parts = backward.scratch_memory(scan, dtype, step_sizes.operand_columns(rank, dtype))
    arrays = (v for v in parts if not isinstance(v, plgpu.Barrier))
    return sum(math.prod(v.shape) * jnp.dtype(v.dtype).itemsize for v in arrays)


def _pad_image(v: Array, scan: Scan, axis: int, multiple: int = 1) -> Array:
    """Adds zeros below and to the right, up to the scan's padded size."""
    h, w = v.shape[axis : axis + 2]
    height, width = scan.padded_size(multiple)
    if (h, w) == (height, width):
        return v
    padding = [(0, 0)] * v.ndim
    padding[axis : axis + 2] = (0, height - h), (0, width - w)
    return jnp.pad(v, padding)


def _pad_channels(v: Array, scan: Scan, axis: int) -> Array:
    """Adds zeros up to whole blocks of channels."""
    return pad(v, axis, -(-v.shape[axis] // scan.channels) * scan.channels)


def _to_images(v: Array, scan: Scan) -> Array:
    """Pads [t b h w d] and returns it as [t*b h w d]."""
    v = _pad_channels(_pad_image(v, scan, 2), scan, 4)
    return v.reshape(-1, *v.shape[2:])


def _from_images(scan: Scan, v: Array, shape: tuple[int, ...]) -> Array:
    """Returns [q h w d] without padding, as [t k*split b h w d]; `shape` is that of x."""
    t, b, h, w, d = shape
    v = v.reshape(t, -1, b, *v.shape[1:])
    return v[:, :, :, :h, :w, :d]


def _to_stored_states(scan: Scan, A: Array) -> Array:
    """Returns A [t k d n] times log2(e) in the order of threads, [t*k*split e 4 128]."""
    t, k, _, n = A.shape
    A = jnp.pad(_pad_channels(A, scan, 2), [(0, 0)] * 3 + [(0, scan.states_split * STATES - n)])
    A = (A * LOG2E).reshape(
        t * k, -1, GROUPS, GROUP_CHANNELS, scan.states_split, GROUP_THREADS, THREAD_STATES
    )
    return A.transpose(0, 4, 1, 6, 2, 5, 3).reshape(-1, A.shape[1], *scan.stored_shape[1:])


def _from_stored_states(scan: Scan, v: Array, like: Array) -> Array:
    """Inverse of `_to_stored_states`, except for the factor; `like` is A."""
    t, k, d, n = like.shape
    v = v.reshape(
        t * k, scan.states_split, -1, THREAD_STATES, GROUPS, GROUP_THREADS, GROUP_CHANNELS
    )
    v = v.transpose(0, 2, 4, 6, 1, 5, 3)
    return v.reshape(t, k, -1, scan.states_split * STATES)[:, :, :d, :n]


def _to_maps(scan: Scan, B: Array, C: Array) -> Array:
    """Returns B and C [t b h w k n] as [q h w 32] float32."""
    t, b, h, w, k, n = B.shape
    padding = [(0, 0)] * 5 + [(0, scan.states_split * STATES - n)]
    parts = (
        jnp.pad(v.astype(jnp.float32), padding).reshape(t, b, h, w, k, scan.states_split, STATES)
        for v in (B, C)
    )
    maps = jnp.concatenate(list(parts), -1).transpose(0, 4, 5, 1, 2, 3, 6)
    return _pad_image(maps.reshape(-1, h, w, 2 * STATES), scan, 1)


def _from_maps(scan: Scan, v: Array, like: Array, blocks: int) -> tuple[Array, Array]:
    """Returns the gradients of B and C from the maps' gradients per block, [q h w blocks*32]."""
    t, b, h, w, k, n = like.shape
    v = v[:, :h, :w, : blocks * 2 * STATES].reshape(*v.shape[:1], h, w, blocks, 2 * STATES)
    v = jnp.sum(v, 3, dtype=jnp.float32).reshape(t, k, scan.states_split, b, h, w, 2, STATES)
    v = v.transpose(6, 0, 3, 4, 5, 1, 2, 7).reshape(2, t, b, h, w, k, -1)[..., :n]
    return v[0], v[1]


def _start_states(scan: Scan, ends: Array, time: Array, A: Array, *, reverse: bool) -> Array:
    """Returns the state before each segment, [q*s e 4 128], from the results of `summaries`."""
    shape = (-1, scan.segments - 1, *A.shape[1:])
    matrices = A[:, None].repeat(scan.images, 1).reshape(-1, 1, *A.shape[1:])
    time = time.reshape(*shape[:3], 1, GROUPS, 1, GROUP_CHANNELS).repeat(GROUP_THREADS, 5)
    decay = jnp.exp2(time.reshape(*shape[:3], 1, shape[4]) * matrices)
    states = start_states(decay, ends.reshape(shape), axis=1, reverse=reverse)
    return states.reshape(-1, *A.shape[1:])


def _prepare(scan: Scan, x, dt, dt_weight, dt_bias, A, B, C) -> tuple[Inputs, Array]:
    """Returns the kernels' inputs and A."""
    dt, weight = step_sizes.operands(dt, dt_weight, dt_bias)
    inputs = Inputs(
        _to_images(x, scan),
        _pad_image(dt, scan, 1, step_sizes.ROWS),
        _pad_channels(weight, scan, 1),
        _to_maps(scan, B, C),
    )
    return inputs, _to_stored_states(scan, A)


def _scan(directions, x, dt, dt_weight, dt_bias, A, B, C, *, save):
    """Returns y without D * x, float32, and the saved states if `save`."""
    scan = _choose_scan(directions, x, A.shape[-1], dt.shape[-1], backward_pass=False)
    inputs, rates = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C)
    start = None
    if scan.segments > 1 and not scan.chained:
        ends, time = summaries.summaries(scan, inputs, rates, adjoint=False)
        start = _start_states(scan, ends, time, rates, reverse=False)
    y, *saved = forward.forward(scan, inputs, rates, start, save=save)
    return jnp.sum(_from_images(scan, y, x.shape), 1, dtype=jnp.float32), saved


def _gradients(directions, x, dt, dt_weight, dt_bias, A, B, C, saved, dy):
    scan = _choose_scan(directions, x, A.shape[-1], dt.shape[-1], backward_pass=True)
    inputs, rates = _prepare(scan, x, dt, dt_weight, dt_bias, A, B, C)
    dy_images = _to_images(dy, scan)
    end = None
    if scan.segments > 1 and not scan.chained:
        ends, time = summaries.summaries(scan, inputs._replace(x=dy_images), rates, adjoint=True)
        end = _start_states(scan, ends, time, rates, reverse=True)
    dx, dz, dmaps, dA = backward.backward(scan, inputs, dy_images, *saved, rates, end)
    t, b, h, w, d = x.shape
    k, split = len(directions.columns), scan.states_split
    dx = jnp.sum(_from_images(scan, dx, x.shape), 1, dtype=jnp.float32)
    dz = _from_images(scan, dz, x.shape).reshape(t, k, split, b, h, w, d)
    dz = dz[:, :, 0] if split == 1 else jnp.sum(dz, 2)
    dB, dC = _from_maps(scan, dmaps, B, rates.shape[1] // scan.stored_shape[0])
    dA = jnp.sum(dA.reshape(t * k * split, b * scan.segments, *dA.shape[1:]), 1)
    dz, dts = dz.reshape(t, k, b, h * w, d), jnp.moveaxis(dt, 4, 1).reshape(t, k, b, h * w, -1)
    ddt, dweight, dbias = projection_gradients(dz, dts, dt_weight)
    ddt = jnp.moveaxis(ddt.reshape(t, k, b, h, w, -1), 1, 4)
    return dx, ddt, dweight, dbias, _from_stored_states(scan, dA, A), dB, dC


ss2d_op = create_op(_scan, _gradients, separate_sums=True)


def ss2d_pallas_gpu(*arrays: Array, directions: Sequence[str]) -> Float[Array, "t b h w d"]:
    """Computes SS2D with fused Mosaic kernels; arrays and result are those of `api.ss2d`.

    Raises:
      NotImplementedError: If this machine's GPU has another compute capability, the step sizes'
        rank is too high for the shared memory, or the program is compiled for another platform.
    """
    others = [c for c in platform_check.compute_capabilities() if c not in CAPABILITIES]
    if others:
        raise NotImplementedError(
            f"needs GPUs of compute capability {', '.join(map(str, CAPABILITIES))} (Hopper, "
            f"data-center Blackwell); this machine has {others[0]}"
        )
    orders = parse_directions(directions)
    x, dt, _, _, A, *_ = arrays
    # Raise now rather than in the backward pass.
    _choose_scan(orders, x, A.shape[-1], dt.shape[-1], backward_pass=True)
    return ss2d_op(orders, require_backend(x, "pallas_gpu", ("cuda",)), *arrays[1:])
