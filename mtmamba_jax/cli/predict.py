"""The command `predict`."""

from __future__ import annotations

import argparse
import pathlib
import sys
from collections.abc import Callable, Sequence

import tqdm

from mtmamba_jax.checkpoints.run import Run, load_run
from mtmamba_jax.cli.console import announce, parse_size
from mtmamba_jax.evaluation.evaluate import create_predict_step
from mtmamba_jax.evaluation.predict import Failure, find_photos, overlay_task, predict_photos
from mtmamba_jax.visualization.features import create_feature_step


def run(options: argparse.Namespace) -> int:
    """Predicts the maps of photos."""
    output = pathlib.Path(options.output)
    photos, failures = find_photos([pathlib.Path(path) for path in options.photos], skip=output)
    run = load_run(options.workdir, options.checkpoint, batch_size=1)
    if not photos:
        return _say_failures(failures)
    size = parse_size(options.size) if options.size else run.config.data.size
    if options.overlay:
        overlay_task(run.tasks)
    announce(
        f"Predicting {', '.join(task.name for task in run.tasks)}, photos: {len(photos)}, "
        f"fitted into {size[0]}x{size[1]}, with step {run.step} of {options.workdir}"
    )
    results = predict_photos(
        photos,
        run.tasks,
        _create_predict(run, options.features),
        output,
        size=size,
        with_overlay=options.overlay,
    )
    folders = []
    for result in tqdm.tqdm(results, total=len(photos), unit="photo", disable=None):
        (failures if isinstance(result, Failure) else folders).append(result)
    code = _say_failures(failures)
    if folders:
        print(
            f"Wrote {len(folders)} of {len(photos)} photos to {output}: in a folder for each, "
            f"panel.png{' and features.png' if options.features else ''} and, for each task, a "
            "picture (.png) and the raw array (.npy).\n"
            f"Next: look at {folders[0] / 'panel.png'}"
        )
    return code


def _say_failures(failures: Sequence[Failure]) -> int:
    """Prints why photos gave no prediction; returns the exit code."""
    for failure in failures:
        print(f"error: {failure.path}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0


def _create_predict(run: Run, with_features: bool) -> Callable:
    """Returns what `predict_photos` asks for logits, and for activations where they are wanted."""
    if with_features:
        step = create_feature_step(run.graph, run.tasks, run.mesh)
        return lambda images: step(run.parameters, images)
    step = create_predict_step(run.graph, run.mesh)
    return lambda images: (step(run.parameters, images), {})
