"""What SS2D, forward and backward, takes of a TPU's HBM beside its arguments, three ways.

    python -m mtmamba_jax.kernels.ss2d.analysis.memory [--topology v5e:2x2] [--spec stage3_t1_b1]

Temporaries of the program that TPUs' own compiler makes; no TPU is needed. The ways are the fused
kernels, the chunked XLA scan, and one `associative_scan` over the whole image, which is given an
advantage: a single direction where the others have all.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable

import jax

from mtmamba_jax.kernels.ss2d import DIRECTIONS
from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import (
    compile_scan,
    create_parser,
    scan_of,
    spec_names,
)
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.benchmark import of_direction, whole_image_scan
from mtmamba_jax.planning.topology import Topology, find

# How libtpu words it (0.0.42).
_NEEDS = re.compile(r"memory required for HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def whole_image(*arrays: jax.Array) -> jax.Array:
    """The plain way of the first direction alone: one `associative_scan` over all pixels."""
    x, *_ = arrays
    return whole_image_scan(DIRECTIONS[0], *of_direction(0, arrays)).astype(x.dtype)


WAYS: dict[str, Callable[[ArgSpec], Callable[..., jax.Array]]] = {
    "kernels": functools.partial(scan_of, implementation="pallas_tpu"),
    "chunked XLA": functools.partial(scan_of, implementation="xla"),
    "whole image, 1 direction": lambda spec: whole_image,
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
    options = create_parser(__doc__, SPECS).parse_args(arguments)
    names = spec_names(options)
    topology = find(options.topology)
    print(f"{options.topology}, bfloat16; temporaries of SS2D, forward and backward, in MiB")
    print(f"| spec | {' | '.join(WAYS)} |")
    print("|---|" + "---|" * len(WAYS))
    for name in names:
        print(_row(topology, name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
