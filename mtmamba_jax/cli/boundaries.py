"""The command `boundaries`: scores a folder of predicted contours."""

import argparse
import pathlib

import tqdm

from mtmamba_jax.data_pipelines.parallel import worker_count
from mtmamba_jax.files.paths import check_writable
from mtmamba_jax.metrics.boundaries.counts import MAX_DISTANCE
from mtmamba_jax.metrics.boundaries.folders import count_folder, excluded_ids, find_ids
from mtmamba_jax.metrics.boundaries.report import (
    SCORES_FILE,
    TABLE_FILE,
    report_settings,
    score_table,
    write_report,
)
from mtmamba_jax.metrics.boundaries.scores import sum_counts
from mtmamba_jax.visualization.figures import write_figure
from mtmamba_jax.visualization.precision_recall import CURVE_FILE, draw_precision_recall


def run(options: argparse.Namespace) -> int:
    """Scores a folder of predicted contours: odsF, oisF, AP and the precision-recall curve."""
    output = pathlib.Path(options.output or f"boundaries_{options.dataset}")
    check_writable(output, f"--output={output} cannot be written to", "give another --output")
    ids_file = options.ids and pathlib.Path(options.ids)
    predictions, labels = pathlib.Path(options.predictions), pathlib.Path(options.labels)
    ids = find_ids(options.dataset, predictions, ids_file, options.all)
    counts = count_folder(
        ids,
        predictions,
        labels,
        label_kind=options.label_kind,
        max_distance=MAX_DISTANCE[options.dataset],
        num_workers=worker_count(options.workers),
    )
    sums = sum_counts(tqdm.tqdm(counts, total=len(ids), unit="image", disable=None))
    include_all = options.all or ids_file is not None
    settings = report_settings(
        dataset=options.dataset,
        predictions=predictions,
        labels=labels,
        ids=ids_file,
        only_published_images=not include_all and bool(excluded_ids(options.dataset)),
        label_kind=options.label_kind,
        max_distance=MAX_DISTANCE[options.dataset],
    )
    write_report(output, sums, settings)
    write_figure(output / CURVE_FILE, draw_precision_recall(sums))
    print(score_table(sums))
    print(f"Wrote {SCORES_FILE}, {TABLE_FILE} and {CURVE_FILE} to {output}")
    return 0
