"""Checks that a fused backend is compiled for its own platform, when the platform is known.

A program may be traced on one machine and compiled for another, so a backend cannot know its
platform while it is traced. The identity `require_platform` checks it while the program is lowered.
"""

import functools
from typing import Any

import jax
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array


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
    device = jax.devices()[0]
    if device.platform != "gpu":
        return device.platform
    return "rocm" if "rocm" in device.client.platform_version.lower() else "cuda"


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
