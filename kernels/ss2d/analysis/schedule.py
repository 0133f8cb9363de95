"""How the TPU compiler schedules the scan's inner loops.

    python -m mtmamba_jax.kernels.ss2d.analysis.schedule [--topology v5e:2x2] [--spec stage3_t1_b1]

No TPU is needed. A TPU core issues one bundle of instructions a cycle, unless it waits, so bundles
of an inner loop over what it does in one pass are cycles that it takes at least: static figures,
not times. Of the kernels for rows and columns the larger figures are shown. Spills are registers
that a pass through an inner loop writes to memory or reads back.
"""

from __future__ import annotations

import os
import pathlib
import re
import sys
import tempfile
from collections.abc import Iterator

import jax

from mtmamba_jax.devices.sharding import create_mesh
from mtmamba_jax.kernels.ss2d import DIRECTIONS, pallas_tpu
from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import (
    compile_scan,
    create_parser,
    scan_of,
    spec_names,
)
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, SPECS
from mtmamba_jax.kernels.ss2d.mosaic_tpu.tile import RUN
from mtmamba_jax.planning.topology import Topology, find

# An address or number, labels such as LB (loop begin), one `>` for each loop that it is in.
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|\d+)\s*(\S*)\s*:\s*(>*)")
_SPILL = re.compile(r"v(?:st|ld) \[vmem:\[#allocation\d+_spill")


def loops(text: str) -> Iterator[list[str]]:
    """Yields the bundles of each innermost loop of a program (`final_bundles.txt`)."""
    bodies: dict[int, list[str]] = {}  # by depth, the loop that is open there
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


def schedule(folder: pathlib.Path, kernel: str, steps: int) -> tuple[float, int]:
    """Returns bundles a step, and spills a pass, of the inner loops that take exponentials.

    Args:
      folder: that libtpu has dumped a program to.
      kernel: the name of the kernel that is meant.
      steps: pixels x blocks of 128 channels of one pass through a loop.

    Raises:
      FileNotFoundError: no such kernel was compiled.
    """
    paths = list(folder.glob(f"*{kernel}*-final_bundles.txt"))
    if not paths:
        raise FileNotFoundError(f"libtpu has written no bundles of {kernel} to {folder}.")
    text = paths[0].read_text()
    scans = [body for body in loops(text) if any("vpow2" in line for line in body)]
    spills = sum(len(_SPILL.findall(line)) for body in scans for line in body)
    return sum(map(len, scans)) / steps, spills


def main(arguments: list[str] | None = None) -> int:
    """Prints a table, one line a named shape."""
    parser = create_parser(__doc__, DECODER)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float32"))
    options = parser.parse_args(arguments)
    names = spec_names(options)
    with tempfile.TemporaryDirectory() as folder:
        dump = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
        os.environ["LIBTPU_INIT_ARGS"] = f"{os.environ.get('LIBTPU_INIT_ARGS', '')} {dump}"
        topology = find(options.topology)
        print(f"{options.topology}, {options.dtype}; bundles a step of 128 channels, spills")
        print("| spec | forward | backward | backward / forward |")
        print("|---|---|---|---|")
        for name in names:
            print(_row(topology, name, options.dtype, pathlib.Path(folder)), flush=True)
    return 0


def _row(topology: Topology, name: str, dtype: str, folder: pathlib.Path) -> str:
    spec = SPECS[name]

    def found(which, way):
        return schedule(folder, f"ss2d_{which}_{way.name}", RUN * way.group)

    for path in folder.iterdir():
        if path.is_file():
            path.unlink()
    compile_scan(topology, spec, dtype, scan_of(spec, "pallas_tpu"))
    with jax.set_mesh(create_mesh(1, devices=topology.devices[:1])):
        ways = pallas_tpu.ways_of(DIRECTIONS[: spec.k], spec.shapes(dtype)[0], spec.n, spec.r)
    figures = [
        tuple(map(max, zip(*(found(which, way) for way in ways), strict=True)))
        for which in ("forward", "backward")
    ]
    cells = [name, *(f"{bundles:.2f}, {spills}" for bundles, spills in figures)]
    cells.append(f"{figures[1][0] / figures[0][0]:.2f}")
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
