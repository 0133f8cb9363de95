"""Which platform a program is traced on and compiled for, and which kernels it can hold.

A program may be traced on one machine and compiled for another, so in general a backend cannot know
its platform while it is traced. The identity `require_platform` checks it while the program is
lowered. Inside `compiled_for` the platform is known, and only its code is traced.
"""

import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas import triton
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

AMPERE = 8.0
"""Compute capability of the first GPUs that Triton supports."""
# Unlike Python's context variables, these are part of the keys of `jax.jit`'s caches.
_TRITON: Any = jax.make_user_context(True)
_TARGET: Any = jax.make_user_context(None)


@functools.cache
def compute_capabilities() -> tuple[float, ...]:
    """Returns the distinct compute capabilities of this machine's CUDA GPUs, in ascending order."""
    try:
        return tuple(sorted({float(d.compute_capability) for d in jax.devices("cuda")}))
    except RuntimeError:
        return ()


@functools.cache
def local_platform() -> str:
    """Returns JAX's name of this process's platform: "cpu", "cuda", "rocm" or "tpu"."""
    return platform_of(jax.devices()[0])


def platform_of(device: Any) -> str:
    """Returns the platform of a device, which need not be attached."""
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


def compiled_for(platform: str) -> AbstractContextManager:
    """Promises that programs that are traced inside are compiled for this platform alone."""
    return _TARGET(platform)


def portable() -> AbstractContextManager:
    """Returns a context in which programs are traced without kernels, to run on every platform.

    `jax.export` for several platforms at once needs it. A backend of the scan that is forced by its
    name stays.

    Example:
      >>> with portable():
      ...     exported = jax.export.export(program, platforms=["cpu", "cuda"])(images)
    """
    return _TARGET("default")


def by_platform(
    *arrays: Array, default: Callable[..., Array], **branches: Callable[..., Array]
) -> Array:
    """Returns `lax.platform_dependent`, without the branches that are known to be unused.

    Tracing the scans of MTMamba for every platform takes twice as long as all else.
    """
    platform = _TARGET.value
    if platform is None:
        return jax.lax.platform_dependent(*arrays, default=default, **branches)
    return branches.get(platform, default)(*arrays)


def has_fixed_size(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether all sizes of an array are known and none is 0."""
    return all(isinstance(size, int) and size for size in x.shape)


def triton_refusal() -> str | None:
    """Returns why a program that is traced here cannot have Triton kernels, None if it can."""
    if _TARGET.value not in (None, "cuda"):
        return "the program is not compiled for CUDA"
    if not _TRITON.value:
        return "JAX does not promise to read exported Triton kernels later"
    oldest = min(compute_capabilities(), default=AMPERE)
    if oldest < AMPERE:
        return f"needs GPUs of compute capability {AMPERE} or later; this machine has {oldest}"
    refusal = lowering_refusal()
    return f"Pallas cannot lower Triton kernels here: {refusal}" if refusal else None


def without_triton() -> AbstractContextManager:
    """Keeps Triton kernels out of the programs that are traced inside."""
    return _TRITON(False)


def lowering_refusal() -> str | None:
    """Returns why Pallas cannot lower Triton kernels here, or None if it can.

    Since jax 0.11 it must know the GPU: the default device, or that of the mesh in context.
    """
    config: Any = jax.config  # whose options type checkers do not see
    device = jax.sharding.get_abstract_mesh().abstract_device
    return _try_to_lower(device, config.jax_default_device)


@functools.cache
def _try_to_lower(device: Any, default: Any) -> str | None:
    """Lowers a kernel for a mesh's device, or else for the default device."""
    del default  # JAX reads it from its configuration

    def kernel(out):
        out[...] = jnp.zeros(out.shape, out.dtype)

    axes = jax.typeof(jnp.zeros(())).manual_axis_type  # inside shard_map
    out = jax.ShapeDtypeStruct((32,), jnp.float32, manual_axis_type=axes)
    call = pl.pallas_call(kernel, out, compiler_params=triton.CompilerParams(num_warps=1))
    mesh = jax.sharding.AbstractMesh((), (), abstract_device=device)
    try:
        with jax.sharding.use_abstract_mesh(mesh):
            jax.jit(call).trace().lower(lowering_platforms=("cuda",))
    except (RuntimeError, ValueError) as error:
        return str(error).partition("\n")[0]
    return None


SMALLEST_VMEM = 16 * 2**20  # bytes, of a TPU v4


def vmem_capacity() -> int:
    """Returns the bytes of VMEM of the TPU in context, or of the smallest one if there is none."""
    try:
        return pltpu.get_tpu_info().vmem_capacity_bytes
    except ValueError:
        return SMALLEST_VMEM


def copied_columns() -> int:
    """Returns the fewest columns of maps [... w d] that the TPU in context can copy.

    A register has eight rows of 32 bits. Since the TPU7x, XLA stores whole registers of bfloat16
    next to each other (`xla_tpu_enable_large_2nd_minor_layout_for_x16`).
    """
    try:
        return 16 if pltpu.get_tpu_info().generation >= 7 else 8
    except ValueError:
        return 8


COMPILER_RESERVE = 4 * 2**20
"""Bytes of VMEM that the compiler of a layer's kernel uses beyond its blocks and values."""


def padded_size(w: int, c: int) -> int:
    """Returns how many numbers columns [w c] take in VMEM, which pads both sizes."""
    return pl.cdiv(w, copied_columns()) * copied_columns() * pl.cdiv(c, 128) * 128


_require = Primitive("mtmamba_require_platform")


def require_platform(x: Array, kernels: str, platforms: tuple[str, ...], remedy: str) -> Array:
    """Returns x; lowering it for other platforms, or for several at once, is an error.

    Args:
      x: An argument of the kernels.
      kernels: Name of the kernels, for messages.
      platforms: Platforms that the kernels can be compiled for.
      remedy: Way out, for messages: a sentence without its full stop.

    Raises:
      NotImplementedError: If the kernels cannot be compiled for the program's platforms. Inside
        `jax.jit` and `jax.export` this is raised when they compile.
    """
    return _require.bind(x, kernels=kernels, platforms=platforms, remedy=remedy)


def _lower(ctx: Any, x: Any, *, kernels: str, platforms: tuple[str, ...], remedy: str) -> list[Any]:
    wanted: list[str] = list(ctx.module_context.platforms)
    if len(wanted) > 1:
        raise NotImplementedError(
            f"{kernels} cannot be compiled for several platforms at once ({', '.join(wanted)}). "
            f"{remedy}, or export for one platform at a time."
        )
    if wanted[0] not in platforms:
        raise NotImplementedError(
            f"{kernels} does not run on {wanted[0]}, only on {platforms[0]}. {remedy}."
        )
    return [x]


# One function for all eager calls, so that each shape is compiled once.
_require.def_impl(jax.jit(_require.bind, static_argnames=("kernels", "platforms", "remedy")))
_require.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(_require, lambda cotangent, x, **_: [cotangent])
batching.defvectorized(_require)
mlir.register_lowering(_require, _lower)
