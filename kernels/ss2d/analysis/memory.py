"""Compares the HBM that SS2D needs beyond its arguments: fused kernels, XLA and a whole-image scan.

    python -m mtmamba_jax.kernels.ss2d.analysis.memory [--topology v5e:2x2] [--spec stage3_t1_b1]

Prints the size of temporaries of forward and backward passes as reported by the TPU compiler; no
TPU is needed. The whole-image `associative_scan` has an advantage: it runs one direction, the
others run all.
"""

import functools
import re
import sys
from collections.abc import Callable

import jax
from jax.sharding import Mesh

from mtmamba_jax.kernels.ss2d import DIRECTIONS
from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import (
    create_parser,
    create_scan,
    create_tpu_mesh,
    lower_scan,
    spec_names,
)
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.benchmark import select_direction, whole_image_scan

# The wording of libtpu 0.0.42.
_NEEDS = re.compile(r"memory required for HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def whole_image(*arrays: jax.Array) -> jax.Array:
    """Runs one `associative_scan` over all pixels, in the first direction only."""
    x, *_ = arrays
    return whole_image_scan(DIRECTIONS[0], *select_direction(0, arrays)).astype(x.dtype)


METHODS: dict[str, Callable[[ArgSpec], Callable[..., jax.Array]]] = {
    "kernels": functools.partial(create_scan, implementation="pallas_tpu"),
    "chunked XLA": functools.partial(create_scan, implementation="xla"),
    "whole image, 1 direction": lambda spec: whole_image,
}
"""Functions that return the op for a spec, by the name of the method."""


def measure_temporaries(mesh: Mesh, spec: ArgSpec, method: str) -> tuple[float, bool]:
    """Returns the bytes of a program's temporaries, and whether they fit in the device's HBM.

    Args:
      mesh: Mesh of one device to compile for.
      spec: Sizes of the call; activations are bfloat16.
      method: Key of `METHODS`.
    """
    try:
        program = lower_scan(mesh, spec, "bfloat16", METHODS[method](spec)).compile()
    except jax.errors.JaxRuntimeError as error:
        needs = _NEEDS.search(str(error))
        if not needs:
            raise
        return float(needs[1]) * _UNITS[needs[2]], False
    analysis = program.memory_analysis()
    assert analysis is not None, "the TPU compiler always reports memory"
    return analysis.temp_size_in_bytes, True


def _row(mesh: Mesh, name: str) -> str:
    cells = [name]
    for method in METHODS:
        size, fits = measure_temporaries(mesh, SPECS[name], method)
        cells.append(f"{size / 2**20:.1f}" + ("" if fits else ", does not fit"))
    return f"| {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> int:
    """Prints a table with a row per spec."""
    options = create_parser(__doc__, SPECS).parse_args(arguments)
    names = spec_names(options)
    mesh = create_tpu_mesh(options.topology)
    print(f"{options.topology}, bfloat16; temporaries of SS2D, forward and backward, in MiB")
    print(f"| spec | {' | '.join(METHODS)} |")
    print("|---|" + "---|" * len(METHODS))
    for name in names:
        print(_row(mesh, name), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
