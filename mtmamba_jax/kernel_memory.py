"""What SS2D, forward and backward, takes of a TPU's HBM beside its arguments, three ways.

    python -m mtmamba_jax.kernel_memory [--topology v5e:2x2] [--spec stage3_t1_b1]

Temporaries of the program that TPUs' own compiler makes; no TPU is needed. The ways are the fused
kernels, the chunked XLA scan, and one `associative_scan` over the whole image, which is given an
advantage: a single direction where the others have all.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator

import jax

from mtmamba_jax.compiled_scan import compile_scan, scan_of
from mtmamba_jax.kernels.ss2d import DIRECTIONS
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.benchmark import of_direction, whole_image_scan
from mtmamba_jax.names import check_name
from mtmamba_jax.topology import Topology, find

WAYS = ("pallas_tpu", "xla", "whole image, 1 direction")

# How libtpu words it (0.0.42).
_NEEDS = re.compile(r"memory required for HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def whole_image(*arrays: jax.Array) -> jax.Array:
    """The plain way of the first direction alone: one `associative_scan` over all pixels."""
    x = arrays[0]
    return whole_image_scan(DIRECTIONS[0], *of_direction(0, arrays)).astype(x.dtype)


def temporaries(topology: Topology, spec: ArgSpec, way: str, dtype: str = "bfloat16") -> float:
    """Returns the bytes of a program's temporaries, more than the device has where it says so.

    Args:
      topology: whose device it is for.
      spec: of the call.
      way: one of `WAYS`.
      dtype: of the activations.
    """
    op = whole_image if way == WAYS[-1] else scan_of(spec, way)
    try:
        program = compile_scan(topology, spec, dtype, op)
    except jax.errors.JaxRuntimeError as error:
        needs = _NEEDS.search(str(error))
        if not needs:
            raise
        return float(needs[1]) * _UNITS[needs[2]]
    return program.memory_analysis().temp_size_in_bytes


def rows(topology: Topology, names: list[str]) -> Iterator[tuple[str, ...]]:
    """Yields the cells of each named shape: its name, MiB of each way, the first over the last."""
    for name in names:
        found = [temporaries(topology, SPECS[name], way) for way in WAYS]
        share = f"{found[0] / found[-1]:.3f}" if found[-1] else "-"  # all fits in vector memory
        yield name, *(f"{v / 2**20:.1f}" for v in found), share


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, one line a named shape."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--topology", default="v5e:2x2")
    parser.add_argument("--spec", default=",".join(SPECS), help="names, separated by commas")
    options = parser.parse_args(arguments)
    names = options.spec.split(",")
    for name in names:
        check_name("spec", name, SPECS)
    topology = find(options.topology)
    print(f"{options.topology}, bfloat16; temporaries of SS2D, forward and backward, in MiB")
    print(f"| spec | {' | '.join(WAYS)} | share |")
    print("|---|" + "---|" * (len(WAYS) + 1))
    for cells in rows(topology, names):
        print(f"| {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
