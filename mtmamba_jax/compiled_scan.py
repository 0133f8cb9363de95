"""SS2D and its gradients, compiled for a device that need not be here."""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax

from mtmamba_jax.kernels.ss2d import DIRECTIONS, ss2d
from mtmamba_jax.kernels.ss2d.arg_specs import ArgSpec
from mtmamba_jax.kernels.ss2d.benchmark import with_gradients
from mtmamba_jax.sharding import create_mesh, replicated
from mtmamba_jax.topology import Topology


def scan_of(spec: ArgSpec, implementation: str) -> Callable[..., jax.Array]:
    """The op in a spec's directions, by a backend."""
    return functools.partial(ss2d, directions=DIRECTIONS[: spec.k], implementation=implementation)


def compile_scan(
    topology: Topology, spec: ArgSpec, dtype, op: Callable[..., jax.Array]
) -> jax.stages.Compiled:
    """Compiles value and gradients of `op(*arguments)` for one device of a topology.

    Args:
      topology: of `topology.find`.
      spec: gives the arguments' shapes.
      dtype: of the activations.
      op: as `ss2d`.
    """
    mesh = create_mesh(1, devices=topology.devices[:1])
    arrays = spec.shapes(dtype)
    jitted = jax.jit(with_gradients(op), in_shardings=replicated(mesh))
    with jax.set_mesh(mesh):  # which tells the kernels' memory
        return jitted.lower(arrays[0], *arrays).compile()
