"""What SS2D, forward and backward, takes of a TPU's HBM beside its arguments, three ways.

    python -m mtmamba_jax.kernel_memory [--topology v5e:2x2] [--spec stage3_t1_b1]

Temporaries of the program that TPUs' own compiler makes; no TPU is needed. The ways are the fused
kernels, the chunked XLA scan, and one `associative_scan` over the whole image, which is given an
advantage: a single direction where the others have all.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from collections.abc import Callable

import jax

from mtmamba_jax.compiled_scan import compile_scan, scan_of
from mtmamba_jax.kernels.ss2d import DIRECTIONS
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.benchmark import of_direction, whole_image_scan
from mtmamba_jax.names import check_name
from mtmamba_jax.topology import Topology, find

# How libtpu words it (0.0.42).
_NEEDS = re.compile(r"memory required for HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def _whole_image(spec: ArgSpec) -> Callable[..., jax.Array]:
    """The plain way of the first direction alone: one `associative_scan` over all pixels."""
    del spec
    return lambda x, *rest: whole_image_scan(DIRECTIONS[0], *of_direction(0, (x, *rest))).astype(
        x.dtype
    )


WAYS = {
    "kernels": functools.partial(scan_of, implementation="pallas_tpu"),
    "chunked XLA": functools.partial(scan_of, implementation="xla"),
    "whole image, 1 direction": _whole_image,
}
"""The op of a spec, in each of the three ways."""


def temporaries(topology: Topology, spec: ArgSpec, way: str) -> tuple[float, bool]:
    """Returns the bytes of a program's temporaries, and whether they fit the device.

    Args:
      topology: whose device it is for.
      spec: of the call; activations are bfloat16.
      way: one of `WAYS`.
    """
    try:
        program = compile_scan(topology, spec, "bfloat16", WAYS[way](spec))
    except jax.errors.JaxRuntimeError as error:
        needs = _NEEDS.search(str(error))
        if not needs:
            raise
        return float(needs[1]) * _UNITS[needs[2]], False
    return program.memory_analysis().temp_size_in_bytes, True


def _row(topology: Topology, name: str) -> str:
    cells = [name]
    for way in WAYS:
        size, fits = temporaries(topology, SPECS[name], way)
        cells.append(f"{size / 2**20:.1f}" + ("" if fits else ", does not fit"))
    return f"| {' | '.join(cells)} |"


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
    print(f"| spec | {' | '.join(WAYS)} |")
    print("|---|" + "---|" * len(WAYS))
    for name in names:
        print(_row(topology, name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
