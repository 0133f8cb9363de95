"""Where an operation runs, and how the paper counts it."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jaxtyping import Array

from mtmamba_jax.devices.sharding import batch_axes
from mtmamba_jax.kernels.manual_axes import on_each_device
from mtmamba_jax.kernels.platform_check import by_platform, require_platform

_REMEDY = "Trace the program inside `with mtmamba_jax.portable():`"

Rule = Callable[..., float]

PAPER_FLOPS: dict[str, Rule | None] = {}
"""How the paper counts an operation, by the name of its function.

A rule maps the shapes of the operation's arguments to multiply-adds. None counts the products
inside the operation, as for any other code.
"""


def with_flops(rule: Rule | None) -> Callable[[Any], Any]:
    """Returns a decorator that registers how the paper counts a `jax.custom_vjp` function."""

    def register(op):
        PAPER_FLOPS[op.__name__] = rule
        return op

    return register


def with_kernels(
    plain: Callable[..., Array],
    kernels: Mapping[str, Callable[..., Array]],
    arrays: Sequence[Array],
    split: Sequence[bool],
    *,
    batch_axis: int = 1,
    batch: int | None = None,
) -> Array:
    """Returns an operation's result, by its kernels on platforms that have some.

    With kernels, each device computes its own images.

    Args:
      plain: The operation in plain JAX, which the compiler can partition.
      kernels: Implementation by kernels for each platform that has them: "cuda", "tpu".
      arrays: Arguments.
      split: Whether each argument has the batch.
      batch_axis: Axis of the batch.
      batch: Number of images, by default the size of that axis.
    """
    if not kernels:
        return plain(*arrays)
    axes = batch_axes()
    mesh = jax.sharding.get_abstract_mesh()
    batch = arrays[0].shape[batch_axis] if batch is None else batch
    if axes and batch % math.prod(mesh.shape[axis] for axis in axes):
        return plain(*arrays)

    def run(platform, x, *others):
        x = require_platform(x, "The fused kernels of layers", (platform,), _REMEDY)
        fused = kernels[platform]
        op = on_each_device(fused, axes, split[: len(arrays)], batch_axis=batch_axis)
        return op(x, *others)

    branches = {platform: functools.partial(run, platform) for platform in kernels}
    return by_platform(*arrays, default=plain, **branches)
