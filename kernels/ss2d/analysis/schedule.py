"""Prints how the TPU compiler schedules the scan's inner loops.

    python -m mtmamba_jax.kernels.ss2d.analysis.schedule [--topology v5e:2x2] [--spec stage3_t1_b1]

No TPU is needed. A TPU core issues at most one bundle of instructions per cycle, so an inner loop
takes at least as many cycles as it has bundles. These are static figures, not times. Of the kernels
for rows and for columns, the larger figures are shown. Spills are registers that an iteration of an
inner loop writes to memory or reads back.
"""

import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

import jax
from jax.sharding import Mesh

from mtmamba_jax.kernels.ss2d import DIRECTIONS, pallas_tpu
from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import (
    create_parser,
    create_scan,
    create_tpu_mesh,
    lower_scan,
    spec_names,
)
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, SPECS
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tile import UNROLL

# An address or number, labels such as LB (loop begin), and one `>` per enclosing loop.
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|\d+)\s*(\S*)\s*:\s*(>*)")
_SPILL = re.compile(r"v(?:st|ld) \[vmem:\[#allocation\d+_spill")


def inner_loops(text: str) -> Iterator[list[str]]:
    """Yields the bundles of each innermost loop of a program (`final_bundles.txt`)."""
    bodies: dict[int, list[str]] = {}  # the open loop at each depth
    found = []
    for line in text.splitlines():
        if match := _BUNDLE.match(line):
            depth = len(match[2])
            if "LB" in match[1]:
                bodies[depth] = []
                found.append((depth, bodies[depth]))
            if depth in bodies:
                bodies[depth].append(line)
    deepest = max((depth for depth, _ in found), default=0)
    yield from (body for depth, body in found if depth == deepest)


def read_schedule(folder: pathlib.Path, kernel: str, steps: int) -> tuple[float, int]:
    """Returns the bundles per step and the spills of the inner loops that compute exponentials.

    Reads libtpu's dump of a program. An iteration of a loop has `steps` steps: its pixels times its
    blocks of 128 channels. Raises FileNotFoundError if the dump has no such kernel.
    """
    paths = list(folder.glob(f"*{kernel}*-final_bundles.txt"))
    if not paths:
        raise FileNotFoundError(f"libtpu wrote no bundles of {kernel} to {folder}.")
    text = paths[0].read_text()
    scans = [body for body in inner_loops(text) if any("vpow2" in line for line in body)]
    spills = sum(len(_SPILL.findall(line)) for body in scans for line in body)
    return sum(map(len, scans)) / steps, spills


def main(arguments: list[str] | None = None) -> int:
    """Prints a table with a row per spec."""
    parser = create_parser(__doc__, DECODER)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args(arguments)
    names = spec_names(options)
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {dump}"
        mesh = create_tpu_mesh(options.topology)
        print(f"{options.topology}, {options.dtype}; bundles per step of 128 channels, spills")
        print("| spec | forward | backward | backward / forward |")
        print("|---|---|---|---|")
        for name in names:
            print(_row(mesh, name, options.dtype, pathlib.Path(folder)), flush=True)
    return 0


def _row(mesh: Mesh, name: str, dtype: str, folder: pathlib.Path) -> str:
    spec = SPECS[name]
    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    lower_scan(mesh, spec, dtype, create_scan(spec, "pallas_tpu")).compile()
    with jax.set_mesh(mesh):
        tilings = pallas_tpu.choose_tilings(
            DIRECTIONS[: spec.k], spec.shapes(dtype)[0], spec.n, spec.r
        )
    forward, backward = (
        [
            read_schedule(folder, f"ss2d_{which}_{tiling.name}", UNROLL * tiling.group)
            for tiling in tilings
        ]
        for which in ("forward", "backward")
    )
    figures = [tuple(map(max, zip(*each, strict=True))) for each in (forward, backward)]
    cells = [name, *(f"{bundles:.2f}, {spills}" for bundles, spills in figures)]
    cells.append(f"{figures[1][0] / figures[0][0]:.2f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
