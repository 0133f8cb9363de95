"""The command `predict`: predicts the maps of photos."""

import argparse
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from flax import nnx

from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.cli.console import announce, parse_size
from mtmamba_jax.evaluation.photos import Failure, find_photos, overlay_task, predict_photos
from mtmamba_jax.evaluation.predictor import Predictor


def run(options: argparse.Namespace) -> int:
    """Predicts the maps of photos."""
    output = pathlib.Path(options.output)
    photos, failures = find_photos([pathlib.Path(path) for path in options.photos], skip=output)
    run = load_run(options.workdir, options.checkpoint, one_device=True)
    if not photos:
        return _report_failures(failures)
    size = parse_size(options.size) if options.size else run.config.data.size
    if options.overlay:
        overlay_task(run.tasks)
    announce(
        f"Predicting {', '.join(task.name for task in run.tasks)}, photos: {len(photos)}, "
        f"fitted into {size[0]}x{size[1]}, with step {run.step} of {options.workdir}"
    )
    results = predict_photos(
        photos,
        Predictor(nnx.merge(run.graph, run.parameters), run.tasks, size),
        output,
        with_overlay=options.overlay,
        with_features=options.features,
    )
    folders = []
    for result in tqdm.tqdm(results, total=len(photos), unit="photo", disable=None):
        if isinstance(result, Failure):
            failures.append(result)
        else:
            folders.append(result)
    code = _report_failures(failures)
    if folders:
        print(
            f"Wrote {len(folders)} of {len(photos)} photos to {output}: one folder each, with "
            f"panel.png{' and features.png' if options.features else ''} and, for each task, an "
            "image (.png) and the raw array (.npy).\n"
            f"Next: look at {folders[0] / 'panel.png'}"
        )
    return code


def _report_failures(failures: Sequence[Failure]) -> int:
    """Prints why photos have no prediction; returns the exit code."""
    for failure in failures:
        print(f"error: {failure.path}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0
