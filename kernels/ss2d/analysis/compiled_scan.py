"""SS2D and its gradients, compiled for a device that need not be here."""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable, Iterable, Sequence

import jax

from mtmamba_jax.devices.sharding import create_mesh, replicated
from mtmamba_jax.kernels.ss2d import DIRECTIONS, ss2d
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.benchmark import with_gradients
from mtmamba_jax.messages import check_name
from mtmamba_jax.planning.topology import Topology


def create_parser(description: str, specs: Iterable[str]) -> argparse.ArgumentParser:
    """Returns the options of a command that compiles scans; `specs` are those it does unless told.

    Args:
      description: of the command, of which the first line is shown.
      specs: names of `SPECS`.
    """
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--spec", default=",".join(specs), help="names, separated by commas")
    return parser


def spec_names(options: argparse.Namespace) -> Sequence[str]:
    """Returns the specs that `create_parser`'s options name.

    Raises:
      ValueError: an unknown name; the message gives the nearest.
    """
    names = options.spec.split(",")
    for name in names:
        check_name("spec", name, SPECS)
    return names


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
