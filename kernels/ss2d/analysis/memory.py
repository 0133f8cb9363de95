"""Compares the HBM that SS2D needs beyond its arguments: fused kernels, XLA and a whole-image scan.

    python -m mtmamba_jax.kernels.ss2d.analysis.memory [--topology v5e:2x2] [--spec stage3_t1_b1]

Prints the size of temporaries of forward and backward passes as reported by the TPU compiler; no
TPU is needed. The whole-image `associative_scan` has an advantage: it runs one direction only.
"""

import functools
import re
import sys
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import (
    create_parser,
    create_scan,
    create_tpu_mesh,
    lower_scan,
    spec_names,
)
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.common import combine

# The wording of libtpu 0.0.42.
_NEEDS = re.compile(r"memory required for HLO temporaries \(([\d.]+)([KMG])\)")
_UNITS = {"K": 2**10, "M": 2**20, "G": 2**30}


def whole_image(*arrays: jax.Array) -> jax.Array:
    """Runs one `associative_scan` over all pixels, in the first direction (rows) only."""
    x, dt, dt_weight, dt_bias, A, B, C, D = arrays
    pixels = (x, dt[..., 0, :], B[..., 0, :], C[..., 0, :])
    u, step, B, C = (v.reshape(*v.shape[:2], -1, v.shape[-1]) for v in pixels)  # [t b l ...]
    step = jnp.einsum("tblr,trd->tbld", step, dt_weight[:, 0]) + dt_bias[:, None, None, 0]
    step = jax.nn.softplus(step)[..., None]
    decay, added = jnp.exp(step * A[:, None, None, 0]), step * u[..., None] * B[..., None, :]
    states = jax.lax.associative_scan(combine, (decay, added), axis=2)[1]
    y = jnp.einsum("tbldn,tbln->tbld", states, C) + u * D[:, None, None, 0]
    return y.reshape(x.shape).astype(x.dtype)


METHODS: dict[str, Callable[[ArgSpec], Callable[..., jax.Array]]] = {
    "kernels": functools.partial(create_scan, implementation="pallas_tpu"),
    "chunked XLA": functools.partial(create_scan, implementation="xla"),
    "whole image, 1 direction": lambda spec: whole_image,
}
"""Functions that return the op for a spec, by the name of the method."""


def measure_temporaries(mesh: Mesh, spec: ArgSpec, method: str) -> tuple[float, bool]:
    """Returns the bytes of a program's temporaries, and whether they fit in the device's HBM.

    Activations are bfloat16; `method` is a key of `METHODS`.
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


def main(arguments: list[str] | None = None) -> int:
    """Prints a table with a row per spec."""
    options = create_parser(__doc__, SPECS).parse_args(arguments)
    names = spec_names(options)
    mesh = create_tpu_mesh(options.topology)
    print(f"{options.topology}, bfloat16; temporaries of SS2D, forward and backward, in MiB")
    print(f"| spec | {' | '.join(METHODS)} |")
    print("|---|" + "---|" * len(METHODS))
    for name in names:
        found = (measure_temporaries(mesh, SPECS[name], method) for method in METHODS)
        cells = (f"{size / 2**20:.1f}" + ("" if fits else ", does not fit") for size, fits in found)
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
