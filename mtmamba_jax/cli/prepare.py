"""The command `prepare`: converts the published files of a dataset to records and checks them."""

from __future__ import annotations

import argparse
import functools
import pathlib

import numpy as np
import tqdm

from mtmamba_jax.cli.console import program_name
from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.datasets import default_data_dir
from mtmamba_jax.data_pipelines.parallel import available_cores, in_order
from mtmamba_jax.data_pipelines.records import Records, create_builder
from mtmamba_jax.data_pipelines.remote_cache import how_to_upload
from mtmamba_jax.data_pipelines.transforms import Example
from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.readout import label_value
from mtmamba_jax.tasks import Task
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.render import image_grid, render_map, write_png

SHEET_FILE = "samples.png"
_SAMPLES = 8


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


def prepare(
    name: str,
    source: str | None,
    data_dir: str | None,
    *,
    allow_partial: bool = False,
    num_workers: int = 0,
) -> pathlib.Path:
    """Writes a dataset's records and a contact sheet, unless they are there already.

    Args:
      name: one of `datasets.DATASETS`.
      source: the published archives, or what was in them; not needed for what is prepared.
      data_dir: where to write; None is TFDS's own place.
      allow_partial: fewer examples than published are a warning, not an error.
      num_workers: processes that convert; 0 converts in this one.

    Returns:
      The folder of the records.

    Raises:
      ValueError: an unknown name, no source, a remote place to write to; files that are missing
        or wrong (`DataError`).
      OSError: no space, or another process that prepares the same.
    """
    if num_workers < 0:
        raise ValueError(f"--workers: wanted 0 or more, got {num_workers}.")
    place = data_dir or default_data_dir()
    if is_remote(place):
        raise ValueError(
            f"Records are written to a local disk, and {place} is none. "
            f"{how_to_upload(name, place)}. Then --config.data.dir={place} reads them."
        )
    if is_remote(source):
        raise ValueError(f"{source} is on no disk of this host. Copy it here first.")
    builder = create_builder(
        name, data_dir, source=source, allow_partial=allow_partial, num_workers=num_workers
    )
    folder = pathlib.Path(builder.data_dir)
    if builder.is_prepared():
        _check_whole(builder, folder, source is None or allow_partial)
        builder.discard_staging()  # which a killed run may have left
        print(f"{name} is prepared already. To prepare it anew, delete {folder} first.")
    elif folder.exists():
        raise ValueError(
            f"{folder} is no whole dataset: was it copied in part? Delete it and try again."
        )
    elif source is None:
        raise ValueError(
            f"{name} is not prepared in {folder.parent.parent}. Give the published archives, or "
            "a folder of what was in them: --source=PATH."
        )
    else:
        # TFDS makes this folder, though nothing is downloaded.
        downloads = builder.staging_folder() / "downloads"
        builder.download_and_prepare(download_dir=downloads)
    sheet = folder / SHEET_FILE
    if not sheet.exists():
        partial = sheet.with_name(f"partial_{SHEET_FILE}")
        write_png(partial, contact_sheet(name, data_dir))
        partial.replace(sheet)
    return folder


def _check_whole(builder, folder: pathlib.Path, allow_partial: bool) -> None:
    """Checks that no fewer examples are prepared than were published.

    Raises:
      ValueError: there are fewer, and that is not allowed.
    """
    found = {split: info.num_examples for split, info in builder.info.splits.items()}
    if not allow_partial and found != dict(builder.FILES.COUNTS):
        raise ValueError(
            f"{folder} holds a part of the dataset: {found} of {dict(builder.FILES.COUNTS)} "
            "examples. Delete it to prepare all, or take the part with --allow_partial."
        )


def summary(name: str, data_dir: str | None) -> str:
    """Returns what is prepared, a line for each split."""
    builder = create_builder(name, data_dir)
    tasks = ", ".join(task.name for task in builder.FILES.TASKS)
    lines = [f"{name}: {tasks}"]
    for split, info in builder.info.splits.items():
        size = f"{info.num_bytes / 1e6:,.1f} MB in {info.num_shards} files"
        published = builder.FILES.COUNTS[split]
        part = "" if info.num_examples == published else f" of {published}"
        lines.append(f"  {split:<6} {info.num_examples:>6}{part} examples, {size}")
    return "\n".join(lines)


def trainable(name: str, data_dir: str | None) -> bool:
    """Says whether there is all that a training run reads."""
    builder = create_builder(name, data_dir)
    return set(builder.info.splits) == set(builder.FILES.COUNTS)


def contact_sheet(name: str, data_dir: str | None) -> np.ndarray:
    """Draws some random examples with all labels, a row for each: uint8 RGB."""
    builder = create_builder(name, data_dir)
    tasks = builder.FILES.TASKS
    sources = {split: Records(name, data_dir, split, tasks) for split in builder.info.splits}
    places = [(split, index) for split, source in sources.items() for index in range(len(source))]
    chosen = np.random.default_rng(0).permutation(len(places))[:_SAMPLES]
    examples = []
    for split, index in (places[i] for i in sorted(chosen)):
        example = sources[split][index]
        examples.append(example | {"id": f"{split}: {example['id']}"})
    size = np.max([example["image"].shape[:2] for example in examples], axis=0)
    sheet = image_grid([_pictures(example, tasks, size) for example in examples])
    maps = {
        task.name: [label_value(task, example[task.name]) for example in examples] for task in tasks
    }
    return add_legend(sheet, tasks, maps)


def _pictures(example: Example, tasks: tuple[Task, ...], size: np.ndarray) -> dict:
    """Returns {title: picture} of an example; pictures are put on white of one size."""
    pictures = {example["id"]: example["image"]}
    for task in tasks:
        pictures[task.name] = render_map(task, label_value(task, example[task.name]))
    return {title: _on_white(picture, size) for title, picture in pictures.items()}


def _on_white(picture: np.ndarray, size: np.ndarray) -> np.ndarray:
    white = np.full((*size, 3), 255, np.uint8)
    white[: picture.shape[0], : picture.shape[1]] = picture
    return white


def check(name: str, data_dir: str | None, num_workers: int = 0) -> int:
    """Reads every record back.

    Returns:
      How many were read.

    Raises:
      ValueError: one cannot be read or breaks the contract; names it.
    """
    builder = create_builder(name, data_dir)
    work = [
        (name, data_dir, split, index)
        for split, info in builder.info.splits.items()
        for index in range(info.num_examples)
    ]
    results = in_order(_check_record, work, num_workers)
    for _ in tqdm.tqdm(
        results, total=len(work), desc=f"Checking {name}", unit="example", disable=None
    ):
        pass
    return len(work)


def _check_record(name: str, data_dir: str | None, split: str, index: int) -> None:
    try:
        records = _open(name, data_dir, split)
        example = records[index]
        check_example(example, records.tasks)
        for task in records.tasks:
            _check_values(task, example[task.name])
    except Exception as error:
        raise ValueError(
            f"{name}, {split} record {index} is wrong ({error}). Delete "
            f"{create_builder(name, data_dir).data_dir} and prepare the dataset again."
        ) from error


@functools.cache
def _open(name: str, data_dir: str | None, split: str) -> Records:
    return Records(name, data_dir, split, create_builder(name, data_dir).FILES.TASKS)


def _check_values(task: Task, label: np.ndarray) -> None:
    """Checks that a label holds classes of its task, or finite numbers.

    Raises:
      ValueError: it does not.
    """
    if task.label_dtype == "int32":
        wrong = (label != task.ignore) & ((label < 0) | (label >= (len(task.class_names) or 2)))
    else:
        wrong = ~np.isfinite(label)
    if wrong.any():
        raise ValueError(f"{task.name} holds {wrong.sum()} values that it cannot have")
