"""Operations with gradients of their own inside `jax.shard_map`, and on each device's images."""

from collections.abc import Callable, Sequence

import jax
from jax import lax
from jax.sharding import PartitionSpec as P
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


def on_each_device(
    run: Callable, axes: Sequence[str], batch_axis: int, inputs: str, outputs: str
) -> Callable:
    """Returns a function that runs `run` on each device's images: kernels cannot be partitioned.

    Args:
      run: Function of arrays, which returns a tuple of arrays.
      axes: Mesh axes that the batch is split over; none means that there is one device.
      batch_axis: Axis of the images in split arrays.
      inputs: A letter for each argument: "s" if it is split, "w" if each device has it whole.
      outputs: The same of the results; "+" is a sum over the devices.
    """
    if not axes:
        return run
    split = P(*[None] * batch_axis, tuple(axes))

    def local(*arrays):
        results = run(*vary_alike(*arrays))
        return tuple(
            lax.psum(v, tuple(axes)) if kind == "+" else v
            for v, kind in zip(results, outputs, strict=True)
        )

    specs = (tuple(split if kind == "s" else P() for kind in kinds) for kinds in (inputs, outputs))
    in_specs, out_specs = specs
    return jax.shard_map(local, in_specs=in_specs, out_specs=out_specs)
