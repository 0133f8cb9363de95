"""The command `prepare`: converts a dataset's published files to records and checks them."""

from __future__ import annotations

import argparse
import functools
import pathlib
from typing import TYPE_CHECKING

import numpy as np
import tqdm
from jaxtyping import UInt8

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.datasets import default_data_dir
from mtmamba_jax.data_pipelines.parallel import in_order, worker_count
from mtmamba_jax.data_pipelines.records import Records, create_builder
from mtmamba_jax.data_pipelines.remote_cache import how_to_upload
from mtmamba_jax.files.paths import is_remote
from mtmamba_jax.messages import command, counted
from mtmamba_jax.tasks.readout import label_value
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.render import image_grid, render_map, write_png

if TYPE_CHECKING:  # needs the extra "data"
    from mtmamba_jax.data_pipelines.builders.base import DenseBuilder

SHEET_FILE = "samples.png"
_NUM_SAMPLES = 8


def run(options: argparse.Namespace) -> int:
    """Prepares a dataset, reads it back with --check, and prints what to do next."""
    workers = worker_count(options.workers)
    given = options.dataset, options.source, options.data_dir
    builder = prepare(*given, allow_partial=options.allow_partial, num_workers=workers)
    if options.check:
        count = check_records(builder, workers)
        print(f"Every record can be read and holds a valid example: {counted(count, 'record')}.")
    folder = pathlib.Path(builder.data_dir)
    print(
        f"\n{summarize(builder)}\n"
        f"In {folder}\n"
        f"\nNext: look at {folder / SHEET_FILE}, some examples with all their labels"
    )
    if set(builder.info.splits) == set(builder.FILES.COUNTS):  # training reads every split
        data_dir = [f"--config.data.dir={options.data_dir}"] if options.data_dir else []
        print(f"  {command('train', f'--config={options.dataset}', *data_dir)}")
    return 0


def prepare(
    name: str,
    source: str | None,
    data_dir: str | None,
    *,
    allow_partial: bool = False,
    num_workers: int = 0,
) -> DenseBuilder:
    """Writes a dataset's records and a contact sheet, unless they exist; returns their builder.

    Args:
      name: Name of the dataset, one of `datasets.DATASETS`.
      source: The published archives or a folder with their contents; None if it is prepared.
      data_dir: Folder to write to; None uses TFDS's default.
      allow_partial: Whether to accept fewer examples than published, with a warning.
      num_workers: Number of worker processes that convert; 0 converts in this process.

    Raises:
      ValueError: If the name is unknown, the source is not given, or `data_dir` is remote; as
        `DataError` if files are missing or wrong.
      OSError: If the disk is full, or another process prepares the same dataset.
    """
    target = data_dir or default_data_dir()
    if is_remote(target):
        raise ValueError(
            f"Records can only be written to a local disk, not to {target}. "
            f"{how_to_upload(name, target)}. Then --config.data.dir={target} reads them."
        )
    if is_remote(source):
        raise ValueError(f"{source} is not on a disk of this machine. Copy it here first.")
    builder = create_builder(
        name, data_dir, source=source, allow_partial=allow_partial, num_workers=num_workers
    )
    folder = pathlib.Path(builder.data_dir)
    if builder.is_prepared():
        found = {split: info.num_examples for split, info in builder.info.splits.items()}
        published = dict(builder.FILES.COUNTS)
        if source is not None and not allow_partial and found != published:
            raise ValueError(
                f"{builder.data_dir} holds a part of the dataset: {found} of {published} examples. "
                "Delete it to prepare all, or pass --allow_partial to use the part."
            )
        builder.discard_staging()  # a killed run may have left it
        print(f"{name} is prepared already. To prepare it again, delete {folder} first.")
    elif folder.exists():
        raise ValueError(
            f"{folder} is not a complete dataset, perhaps a partial copy. Delete it and try again."
        )
    elif source is None:
        raise ValueError(
            f"{name} is not prepared in {folder.parent.parent}. Give the published archives, or a "
            "folder with their contents: --source=PATH."
        )
    else:
        # TFDS creates this folder although nothing is downloaded.
        downloads = builder.staging_folder() / "downloads"
        builder.download_and_prepare(download_dir=downloads)
    sheet = folder / SHEET_FILE
    if not sheet.exists():
        write_png(sheet, draw_contact_sheet(builder))
    return builder


def summarize(builder: DenseBuilder) -> str:
    """Returns a description of a prepared dataset, one line per split."""
    tasks = ", ".join(task.name for task in builder.FILES.TASKS)
    lines = [f"{builder.name}: {tasks}"]
    for split, info in builder.info.splits.items():
        size = f"{info.num_bytes / 1e6:,.1f} MB in {counted(info.num_shards, 'file')}"
        published = builder.FILES.COUNTS[split]
        part = "" if info.num_examples == published else f" of {published}"
        _, _, noun = counted(info.num_examples, "example").partition(" ")
        lines.append(f"  {split:<6} {info.num_examples:>6}{part} {noun}, {size}")
    return "\n".join(lines)


def draw_contact_sheet(builder: DenseBuilder) -> UInt8[np.ndarray, "h w 3"]:
    """Draws some random examples of a prepared dataset, one row each, with all their labels."""
    tasks = builder.FILES.TASKS
    name, data_dir = builder.name, builder.data_dir_root
    records = {split: Records(name, data_dir, split, tasks) for split in builder.info.splits}
    indices = [(split, i) for split, source in records.items() for i in range(len(source))]
    chosen = np.random.default_rng(0).permutation(len(indices))[:_NUM_SAMPLES]
    rows, values = [], {task.name: [] for task in tasks}
    for split, index in (indices[i] for i in sorted(chosen)):
        example = records[split][index]
        row = {f"{split}: {example['id']}": example["image"]}
        for task in tasks:
            value = label_value(task, example[task.name])
            values[task.name].append(value)
            row[task.name] = render_map(task, value)
        rows.append(row)
    height, width = np.max([image.shape[:2] for row in rows for image in row.values()], axis=0)
    for row in rows:
        for title, image in row.items():
            margin = ((0, height - image.shape[0]), (0, width - image.shape[1]), (0, 0))
            row[title] = np.pad(image, margin, constant_values=255)
    return add_legend(image_grid(rows), tasks, values)


def check_records(builder: DenseBuilder, num_workers: int = 0) -> int:
    """Reads every record of a prepared dataset and returns their number.

    Raises:
      ValueError: If a record cannot be read or holds an invalid example; names it.
    """
    work = [
        (builder.name, builder.data_dir_root, split, index)
        for split, info in builder.info.splits.items()
        for index in range(info.num_examples)
    ]
    checks = in_order(_check_record, work, num_workers)
    what = f"Checking {builder.name}"
    return sum(1 for _ in tqdm.tqdm(checks, what, len(work), unit="example", disable=None))


def _check_record(name: str, data_dir: str, split: str, index: int) -> None:
    try:
        records = _open(name, data_dir, split)
        example = records[index]
        check_example(example, records.tasks)
        for task in records.tasks:
            label = example[task.name]
            if task.num_classes:
                valid = (label == task.ignore) | (label >= 0) & (label < task.num_classes)
            else:
                valid = np.isfinite(label)
            if not valid.all():
                raise ValueError(f"{task.name} has {(~valid).sum()} invalid values")
    except Exception as error:
        raise ValueError(
            f"{name}, {split} record {index} is invalid ({error}). Delete "
            f"{create_builder(name, data_dir).data_dir} and prepare the dataset again."
        ) from error


@functools.cache
def _open(name: str, data_dir: str, split: str) -> Records:
    return Records(name, data_dir, split, create_builder(name, data_dir).FILES.TASKS)
