"""Kernels and operations with gradients of their own inside `jax.shard_map`."""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array


def vary_alike(*arrays: Array) -> tuple[Array, ...]:
    """Returns arrays that all vary over the mesh axes that any of them varies over.

    Inside `jax.shard_map` a parameter is the same on each device where images are not. The gradient
    of the cast sums that of a parameter over the devices, which `jax.custom_vjp` does not do.
    """
    axes = frozenset().union(*(jax.typeof(v).manual_axis_type.varying for v in arrays))
    return tuple(_vary(v, axes) for v in arrays)


def _vary(v: Array, axes: frozenset[str]) -> Array:
    missing = tuple(sorted(axes - jax.typeof(v).manual_axis_type.varying))
    return lax.pcast(v, missing, to="varying") if missing else v


def shape_like(x: Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
    """Returns the shape of a result that varies over the mesh axes that x varies over."""
    return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=jax.typeof(x).manual_axis_type)


def on_each_device(
    op: Callable[..., Array], axes: Sequence[str], split: Sequence[bool], *, batch_axis: int = 1
) -> Callable[..., Array]:
    """Returns an op that each device computes for its own images.

    The compiler cannot partition a kernel by itself.

    Args:
      op: Function of arrays, whose result has the batch at the same axis as they do.
      axes: Axes of the mesh in context (`jax.set_mesh`) over which the batch is sharded.
      split: Whether each argument has the batch.
      batch_axis: Axis of the batch.
    """

    def local(*arrays):
        return op(*vary_alike(*arrays))

    if not axes:
        return local
    batch = P(*[None] * batch_axis, tuple(axes))
    specs = tuple(batch if has else P() for has in split)
    return jax.shard_map(local, in_specs=specs, out_specs=batch)
