"""The command `prepare`."""

from __future__ import annotations

import argparse

from mtmamba_jax.commands.console import program_name
from mtmamba_jax.data_pipelines.parallel import available_cores
from mtmamba_jax.prepare import SHEET_FILE, check, prepare, summary, trainable


def run(options: argparse.Namespace) -> int:
    """Turns a dataset's published files into records."""
    workers = available_cores() if options.workers is None else options.workers
    folder = prepare(
        options.dataset,
        options.source,
        options.data_dir,
        allow_partial=options.allow_partial,
        num_workers=workers,
    )
    if options.check:
        count = check(options.dataset, options.data_dir, workers)
        print(f"All {count} records can be read and hold what they should.")
    print(
        f"\n{summary(options.dataset, options.data_dir)}\n"
        f"In {folder}\n"
        f"\nNext: look at {folder / SHEET_FILE}, some examples with all their labels"
    )
    if trainable(options.dataset, options.data_dir):
        place = f" --config.data.dir={options.data_dir}" if options.data_dir else ""
        print(f"  {program_name()} train --config={options.dataset}{place}")
    return 0
