"""Scores predicted contours by the boundary benchmark: odsF, oisF, AP and the curve.

python -m mtmamba_jax.metrics.boundaries --dataset=nyudv2 --predictions=DIR --labels=DIR
"""

from __future__ import annotations

import argparse
import pathlib
import sys

import tqdm

from mtmamba_jax.data_pipelines.parallel import available_cores
from mtmamba_jax.metrics.boundaries import MAX_DISTANCE, Sums, sum_counts
from mtmamba_jax.metrics.boundaries.folders import READINGS, count_folder, excluded_ids, find_ids
from mtmamba_jax.metrics.boundaries.report import (
    PICTURE_FILE,
    SCORES_FILE,
    TABLE_FILE,
    score_table,
    scoring_settings,
    write_report,
)


def create_parser() -> argparse.ArgumentParser:
    """Returns the command's options."""
    parser = argparse.ArgumentParser(
        prog="python -m mtmamba_jax.metrics.boundaries",
        description=__doc__.partition("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--dataset", required=True, choices=MAX_DISTANCE, help="whose distance")
    parser.add_argument(
        "--predictions", required=True, type=pathlib.Path, help="folder of NAME.png, 8 bits"
    )
    parser.add_argument(
        "--labels", required=True, type=pathlib.Path, help="folder of NAME.png or NAME.mat"
    )
    parser.add_argument(
        "--reading",
        choices=READINGS,
        default="regions",
        help="the true contour is between regions of a label, as published, or where it is not 0",
    )
    parser.add_argument("--ids", type=pathlib.Path, help="file of names to score")
    parser.add_argument(
        "--all", action="store_true", help="score every prediction, not only published images"
    )
    parser.add_argument("--workers", type=int, help="processes (one a core)")
    parser.add_argument(
        "--output", type=pathlib.Path, help="folder to write in (boundaries_DATASET)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Scores a folder, writes the report and prints the scores; returns the exit code."""
    options = create_parser().parse_args(arguments)
    output = options.output or pathlib.Path(f"boundaries_{options.dataset}")
    try:
        sums = _sums(options)
        write_report(output, sums, _settings(options))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(score_table(sums))
    print(f"In {output}: {SCORES_FILE}, {TABLE_FILE}, {PICTURE_FILE}")
    return 0


def _settings(options: argparse.Namespace) -> dict[str, object]:
    every = options.all or options.ids is not None
    return scoring_settings(
        options.dataset,
        options.reading,
        MAX_DISTANCE[options.dataset],
        labels=options.labels,
        only_published_images=not every and bool(excluded_ids(options.dataset)),
        predictions=options.predictions,
        ids=options.ids,
    )


def _sums(options: argparse.Namespace) -> Sums:
    ids = find_ids(options.dataset, options.predictions, options.ids, options.all)
    counts = count_folder(
        ids,
        options.predictions,
        options.labels,
        reading=options.reading,
        max_distance=MAX_DISTANCE[options.dataset],
        num_workers=available_cores() if options.workers is None else options.workers,
    )
    return sum_counts(tqdm.tqdm(counts, total=len(ids), unit="image", disable=None))


if __name__ == "__main__":
    sys.exit(main())
