"""The command `tables`."""

from __future__ import annotations

import argparse
import pathlib
import sys

from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.paper.cost_table import cost_table
from mtmamba_jax.paper.run_groups import group_runs
from mtmamba_jax.paper.run_table import run_table
from mtmamba_jax.paper.runs import find_runs
from mtmamba_jax.paper.table_formats import FORMATS


def run(options: argparse.Namespace) -> int:
    """Prints the paper's tables: what the rows cost, or the scores of finished runs."""
    write = FORMATS[options.format]
    if options.runs is None:
        # Beside the table, which may go to a file.
        print(
            "Counting; nothing is allocated. It takes half a minute.", file=sys.stderr, flush=True
        )
        print(write(cost_table()))
        return 0
    if is_remote(options.runs):
        raise ValueError(f"--runs={options.runs}: copy the runs to a folder here, and give that.")
    found = find_runs(pathlib.Path(options.runs))
    groups = group_runs(found.finished)
    for path in found.unfinished:
        print(f"Left out, not finished: {path}", file=sys.stderr)
    for path in groups.others:
        print(f"Left out, of no row: {path}", file=sys.stderr)
    for path in groups.again:
        print(f"Left out, a run like it with its seed is counted: {path}", file=sys.stderr)
    for path in found.outdated:
        print(
            f"Left out, odsF of another step than the best checkpoint's: {path}. The command eval, "
            f"with --workdir={path.parent} --odsf, scores that.",
            file=sys.stderr,
        )
    if not groups.tables:
        raise ValueError(
            f"--runs={options.runs} holds no finished run of a row. The command sweep makes them."
        )
    tables = [run_table(lines, groups.different) for lines in groups.tables]
    print("\n\n".join(map(write, tables)))
    return 0
