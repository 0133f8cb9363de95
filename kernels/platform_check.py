"""Which platform a program is traced on and compiled for, and which kernels it can hold.

A program may be traced on one machine and compiled for another, so in general a backend cannot know
its platform while it is traced. The identity `require_platform` checks it while the program is
lowered. Inside `compiled_for` the platform is known, and only its code is traced.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array

AMPERE = 8.0
"""Compute capability of the first GPUs that Triton supports."""
_TRITON = contextvars.ContextVar("triton", default=True)
_TARGET: contextvars.ContextVar[str | None] = contextvars.ContextVar("target", default=None)


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


@contextlib.contextmanager
def compiled_for(platform: str) -> Iterator[None]:
    """Promises that programs that are traced inside are compiled for this platform alone."""
    token = _TARGET.set(platform)
    try:
        yield
    finally:
        _TARGET.reset(token)


def by_platform(
    *arrays: Array, default: Callable[..., Array], **branches: Callable[..., Array]
) -> Array:
    """Returns `lax.platform_dependent`, without the branches that are known to be unused.

    Tracing the scans of MTMamba for every platform takes twice as long as all else.
    """
    platform = _TARGET.get()
    if platform is None:
        return jax.lax.platform_dependent(*arrays, default=default, **branches)
    return branches.get(platform, default)(*arrays)


def triton_refusal() -> str | None:
    """Returns why a program that is traced here cannot have Triton kernels, None if it can."""
    if not _TRITON.get():
        return "JAX does not promise to read exported Triton kernels later"
    oldest = min(compute_capabilities(), default=AMPERE)
    if oldest < AMPERE:
        return f"needs GPUs of compute capability {AMPERE} or later; this machine has {oldest}"
    refusal = lowering_refusal()
    return f"Pallas cannot lower Triton kernels here: {refusal}" if refusal else None


@contextlib.contextmanager
def without_triton() -> Iterator[None]:
    """Keeps Triton kernels out of the programs that are traced inside."""
    token = _TRITON.set(False)
    try:
        yield
    finally:
        _TRITON.reset(token)


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


_REMEDY = "Use implementation='xla' (for a model, scan_implementation='xla'), which runs everywhere"
_require = Primitive("ss2d_require_platform")


def require_platform(x: Array, backend: str, platforms: tuple[str, ...]) -> Array:
    """Returns x; lowering it for other platforms, or for several at once, is an error.

    Args:
      x: An argument of the backend.
      backend: Name of the backend, for messages.
      platforms: Platforms that the backend can be compiled for.

    Raises:
      NotImplementedError: If the backend cannot be compiled for the program's platforms. Inside
        `jax.jit` and `jax.export` this is raised when they compile.
    """
    return _require.bind(x, backend=backend, platforms=platforms)


def _lower(ctx: Any, x: Any, *, backend: str, platforms: tuple[str, ...]) -> list[Any]:
    wanted: list[str] = list(ctx.module_context.platforms)
    if len(wanted) > 1:
        raise NotImplementedError(
            f"ss2d: backend {backend} cannot be compiled for several platforms at once "
            f"({', '.join(wanted)}). {_REMEDY}, or export for one platform at a time."
        )
    if wanted[0] not in platforms:
        raise NotImplementedError(
            f"ss2d: backend {backend} does not run on {wanted[0]}, only on {platforms[0]}. "
            f"{_REMEDY}."
        )
    return [x]


# One function for all eager calls, so that each shape is compiled once.
_require.def_impl(jax.jit(_require.bind, static_argnames=("backend", "platforms")))
_require.def_abstract_eval(lambda x, **_: x)
ad.deflinear2(_require, lambda cotangent, x, **_: [cotangent])
batching.defvectorized(_require)
mlir.register_lowering(_require, _lower)
