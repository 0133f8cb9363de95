"""The command `predict`: predicts the maps of photos."""

import argparse
import collections
import os
import pathlib
import sys
from collections.abc import Sequence

import tqdm
from flax import nnx

from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.cli.console import announce, parse_size
from mtmamba_jax.evaluation.photo_files import Failure, Note, find_photos
from mtmamba_jax.evaluation.photos import overlay_task, predict_photos
from mtmamba_jax.evaluation.predictor import Predictor
from mtmamba_jax.files.paths import check_writable, is_remote
from mtmamba_jax.messages import counted, printable, shortened


def run(options: argparse.Namespace) -> int:
    """Predicts the maps of photos."""
    output = pathlib.Path(options.output)
    found = find_photos([pathlib.Path(path) for path in options.photos], skip=output)
    check_writable(output, f"--output={output} cannot be written to", "give another --output")
    workdir = options.workdir if is_remote(options.workdir) else os.path.abspath(options.workdir)
    run = load_run(options.workdir, options.checkpoint, one_device=True)
    for line in found.skipped:
        print(line)
    photos, failures = found.photos, found.failures
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
        origin={"workdir": workdir, "checkpoint": options.checkpoint, "step": run.step},
        bits=options.bits,
        with_overlay=options.overlay,
        with_features=options.features,
    )
    folders, waiting, named = [], iter(photos), []
    stems = collections.Counter(photo.stem for photo in photos)
    try:
        with tqdm.tqdm(total=len(photos), unit="photo", disable=None) as bar:
            for result in results:
                if isinstance(result, Note):
                    bar.write(f"{printable(str(result.path))}: {result.text}", file=sys.stderr)
                    continue
                photo = next(waiting)
                if isinstance(result, Failure):
                    failures.append(result)
                else:
                    folders.append(result)
                    if stems[photo.stem] > 1 or result.name != photo.stem:
                        named.append(f"{printable(str(result))} of {printable(str(photo))}")
                bar.update()
    finally:  # also if the disk is full
        code = _report_failures(failures)
    if named:  # photos share a name, or one begins with a dot
        print(f"Which folder is of which photo, as its photo.json says: {shortened(named)}")
    if folders:
        print(
            f"Wrote {len(folders)} of {counted(len(photos), 'photo')} to {output}: one folder "
            f"each, with panel.png{' and features.png' if options.features else ''} and, for each "
            "task, an image (.png) and the raw array (.npy).\n"
            f"Next: look at {folders[0] / 'panel.png'}"
        )
    return code


def _report_failures(failures: Sequence[Failure]) -> int:
    """Prints why photos have no prediction; returns the exit code."""
    for failure in failures:
        print(f"error: {printable(str(failure.path))}: {failure.reason}", file=sys.stderr)
    return 1 if failures else 0
