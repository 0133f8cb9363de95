"""The command `tables`: prints the paper's tables."""

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
    """Prints the costs of the paper's rows or, with --runs, the scores of finished runs."""
    write = FORMATS[options.format]
    if options.runs is None:
        # To stderr, because the table may be redirected to a file.
        print("Counting parameters and FLOPs takes half a minute.", file=sys.stderr, flush=True)
        print(write(cost_table()))
        return 0
    if is_remote(options.runs):
        raise ValueError(f"--runs={options.runs} is remote. Copy the runs to a local folder first.")
    found = find_runs(pathlib.Path(options.runs))
    groups = group_runs(found.finished)
    skipped = {
        "not finished": found.unfinished,
        "matches no row of the paper": groups.unmatched,
        "repeats another run and its seed": groups.duplicates,
    }
    for reason, paths in skipped.items():
        for path in paths:
            print(f"Skipped, {reason}: {path}", file=sys.stderr)
    for path in found.outdated:
        print(
            f"Skipped, odsF is from another step than the best checkpoint: {path}. To score the "
            f"best checkpoint, run the command eval with --workdir={path.parent} --odsf.",
            file=sys.stderr,
        )
    if not groups.tables:
        raise ValueError(
            f"--runs={options.runs} holds no finished run of a row. The command sweep trains them."
        )
    tables = [run_table(lines, groups.differing_keys) for lines in groups.tables]
    print("\n\n".join(map(write, tables)))
    return 0
