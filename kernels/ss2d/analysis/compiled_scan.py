"""Lowers SS2D and its gradients for a TPU or GPU that need not be attached."""

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from mtmamba_jax.kernels.ss2d import DIRECTIONS, ss2d
from mtmamba_jax.kernels.ss2d.analysis.topology import find_tpus, stay_on_cpu
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.common import check_name


def create_parser(description: str | None, specs: Iterable[str]) -> argparse.ArgumentParser:
    """Returns the options of a command that compiles scans, by default of the keys `specs`."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--topology", default="v5e:2x2", help="TPU to compile for: KIND:SHAPE")
    parser.add_argument("--spec", default=",".join(specs), help="names, separated by commas")
    return parser


def spec_names(options: argparse.Namespace) -> Sequence[str]:
    """Returns the names in `--spec`; raises ValueError if one is unknown."""
    names = options.spec.split(",")
    for name in names:
        check_name("spec", name, SPECS)
    return names


def create_tpu_mesh(topology: str, devices: int = 1) -> Mesh:
    """Returns a mesh with axis "data" of TPUs that can be compiled for but not used.

    Must be called before JAX is used: it calls `stay_on_cpu`.

    Args:
      topology: Kind of TPU and its shape in chips, such as "v5e:2x2".
      devices: Size of the mesh.

    Raises:
      ValueError: If libtpu does not know the topology.
      RuntimeError: If libtpu is not installed.
    """
    stay_on_cpu()
    return Mesh(np.array(find_tpus(topology)[:devices]), ("data",))


def with_gradients(op: Callable[..., jax.Array]) -> Callable:
    """Returns `run(cotangent, *arrays)`, which computes the op's value and its gradients."""

    def run(cotangent, *arrays):
        y, pull = jax.vjp(op, *arrays)
        return y, pull(cotangent)

    return run


def create_scan(spec: ArgSpec, implementation: str) -> Callable[..., jax.Array]:
    """Returns the op with a spec's directions and a forced backend."""
    return functools.partial(ss2d, directions=DIRECTIONS[: spec.k], implementation=implementation)


def lower_scan(
    mesh: Mesh, spec: ArgSpec, dtype: DTypeLike, op: Callable[..., jax.Array]
) -> jax.stages.Lowered:
    """Lowers value and gradients of `op`, with activations of `dtype`, for a mesh of one device."""
    arrays = spec.shapes(dtype)
    jitted = jax.jit(with_gradients(op), in_shardings=NamedSharding(mesh, PartitionSpec()))
    with jax.set_mesh(mesh):  # tells TPU kernels the size of VMEM, Triton the GPU
        return jitted.lower(arrays[0], *arrays)
