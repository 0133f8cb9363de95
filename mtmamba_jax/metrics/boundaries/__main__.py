"""Scores a folder of predicted contours with the boundary benchmark: odsF, oisF, AP and the curve.

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
    SCORES_FILE,
    TABLE_FILE,
    score_table,
    write_report,
)
from mtmamba_jax.visualization.figures import write_figure
from mtmamba_jax.visualization.precision_recall import CURVE_FILE, draw_precision_recall


def create_parser() -> argparse.ArgumentParser:
    """Returns the parser of the command's flags."""
    parser = argparse.ArgumentParser(
        prog="python -m mtmamba_jax.metrics.boundaries",
        description=(__doc__ or "").partition("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument(
        "--dataset", required=True, choices=MAX_DISTANCE, help="sets the matching distance"
    )
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
        help="true contours lie between regions of a label (as published), or where it is not 0",
    )
    parser.add_argument("--ids", type=pathlib.Path, help="file with the names of images to score")
    parser.add_argument(
        "--all",
        action="store_true",
        help="score every prediction, including images that published figures exclude",
    )
    parser.add_argument("--workers", type=int, help="worker processes (default: one per core)")
    parser.add_argument(
        "--output", type=pathlib.Path, help="output folder (default: boundaries_DATASET)"
    )
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Scores a folder, writes the report and prints the scores; returns the exit code."""
    options = create_parser().parse_args(arguments)
    output = options.output or pathlib.Path(f"boundaries_{options.dataset}")
    try:
        sums = _count(options)
        write_report(output, sums, _settings(options))
        write_figure(output / CURVE_FILE, draw_precision_recall(sums))
    except (ValueError, OSError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(score_table(sums))
    print(f"Wrote {SCORES_FILE}, {TABLE_FILE} and {CURVE_FILE} to {output}")
    return 0


def _settings(options: argparse.Namespace) -> dict[str, object]:
    include_all = options.all or options.ids is not None
    return {
        "dataset": options.dataset,
        "predictions": str(options.predictions),
        "labels": str(options.labels),
        "ids": options.ids and str(options.ids),
        "only_published_images": not include_all and bool(excluded_ids(options.dataset)),
        "reading": options.reading,
        "max_distance": MAX_DISTANCE[options.dataset],
    }


def _count(options: argparse.Namespace) -> Sums:
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
