"""What `benchmark --what=input` measures: the input pipeline alone, beside a plain one."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import multiprocessing
import pathlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence

import cv2

from mtmamba_jax import config as configuration
from mtmamba_jax.benchmarks.plain_input import Published, Raw, plain_batches
from mtmamba_jax.benchmarks.programs import Record
from mtmamba_jax.benchmarks.report import to_json
from mtmamba_jax.data_pipelines.builders.dataset_files import DatasetFiles
from mtmamba_jax.data_pipelines.builders.locate import locate_folders
from mtmamba_jax.data_pipelines.parallel import available_cores
from mtmamba_jax.data_pipelines.pipeline import train_batches
from mtmamba_jax.data_pipelines.records import DATASETS, Records, create_builder
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.devices.timing import check_repeats
from mtmamba_jax.messages import check_name, markdown_table, short
from mtmamba_jax.tasks import select

PLAIN, PLAIN_ON_RECORDS, RECORDS = WAYS = ("plain", "plain on records", "records")
EXAMPLES = 16
_BUFFERED = 2  # batches that each worker makes ahead
_COLUMNS = ("dataset", "way", "workers", "images/s", "images/s per core", "of plain")
_LEGEND = """

plain: one thread, OpenCV and NumPy on the published files; like the official loader, it makes
PASCAL-Context's labels from the .mat files at each reading. plain on records: the same transforms
in one thread, of examples read from this package's records. records: this package, with 0 workers
in threads of one process. A core is a second of processor time, of all processes together; of
plain: images/s per core, over the plain way's."""


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A small made-up dataset.

    Attributes:
      name: one of `records.DATASETS`.
      published: folder of its files in the published layout.
      prepared: data_dir of its records.
    """

    name: str
    published: pathlib.Path
    prepared: pathlib.Path

    def write(self, examples: int, size: tuple[int, int] | None) -> None:
        """Makes it up; `size` is the height and width of its images, None the published one."""
        from mtmamba_jax.data_pipelines.builders.sample_trees import WRITERS

        builder = create_builder(
            self.name, self.prepared, source=self.published, allow_partial=True
        )
        WRITERS[self.name](self.published, {"train": examples}, *(() if size is None else (size,)))
        with contextlib.redirect_stdout(io.StringIO()):  # it is warned of the missing examples
            builder.download_and_prepare(download_dir=self.prepared / "downloads")

    def layout(self) -> DatasetFiles:
        """Returns its published files."""
        kind = create_builder(self.name, self.prepared).FILES
        return kind(locate_folders([self.published], kind.FOLDERS, kind.SUBFOLDERS), "train")

    def batches(self, way: str, workers: int) -> Iterator[dict]:
        """Yields its configuration's training batches, made in one of `WAYS`."""
        config = configuration.load(self.name)
        arguments = {
            "crop_size": config.data.size,
            "label_scale": config.data.label_scale,
            "batch_size": config.train.batch_size,
            "seed": config.seed,
            "augment": AugmentSettings(**config.augment),
        }
        if way == PLAIN:
            return plain_batches(Published(self.name, self.layout()), **arguments)
        tasks = select(self.name)
        source = Records(self.name, self.prepared, "train", tasks)
        if way == PLAIN_ON_RECORDS:
            return plain_batches(Raw(self.name, source), **arguments)
        return train_batches(source, tasks, num_workers=workers, **arguments)


def worker_counts(cores: int) -> list[int]:
    """Returns 0, and the powers of two up to the number of cores, and that number."""
    return [0, *(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]


def check_input(names: Sequence[str], repeats: int) -> None:
    """Checks what `report_input` is given.

    Raises:
      ValueError: an unknown dataset, or no repeats.
    """
    for name in names:
        check_name("dataset", name, DATASETS)
    check_repeats(repeats)


def report_input(
    names: Sequence[str],
    repeats: int,
    output: pathlib.Path,
    *,
    examples: int = EXAMPLES,
    size: tuple[int, int] | None = None,
) -> None:
    """Times each way of making training batches, prints a table and writes `output`.

    Args:
      names: datasets, of `records.DATASETS`.
      repeats: samples of each time, a batch or, with workers, one of each.
      output: JSON, brought up to date with each line.
      examples: in each dataset that is made up.
      size: height and width of its images; None is the published one.

    Raises:
      ValueError: an unknown dataset, or no repeats.
      RuntimeError: the extra "data" is not installed.
    """
    check_input(names, repeats)
    cores = available_cores()
    ways = [(PLAIN, 0), (PLAIN_ON_RECORDS, 0), *((RECORDS, n) for n in worker_counts(cores))]
    settings = {"datasets": names, "repeats": repeats, "examples": examples}
    packages = ("grain", "numpy", "opencv-python-headless", "array_record", "tensorflow-datasets")
    records = []
    with tempfile.TemporaryDirectory(prefix="mtmamba_jax_input_") as folder:
        datasets = [
            Dataset(name, pathlib.Path(folder, name), pathlib.Path(folder, "prepared"))
            for name in names
        ]
        for dataset in datasets:
            dataset.write(examples, size)
        plain = {}  # images/s per core, by dataset
        for dataset, (way, workers) in itertools.product(datasets, ways):
            found = {"dataset": dataset.name, "way": way, "workers": workers}
            found |= _measure(dataset, way, workers, repeats)
            per_core = found["images_per_core"]
            found["of_plain"] = per_core / plain.setdefault(dataset.name, per_core)
            records.append(found)
            text = to_json("input", {"cores": cores}, settings, records, packages)
            output.write_text(text + "\n")
            print(f"{dataset.name}, {way}, {workers} workers: measured", flush=True)
    print(f"\n{markdown_table(_COLUMNS, map(_row, records), left=2)}{_LEGEND}")


def _measure(dataset: Dataset, way: str, workers: int, repeats: int) -> Record:
    # As in the pipeline's workers. OpenCV's threads would wait for each other on processor time.
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    batches = dataset.batches(way, workers)
    try:
        count = max(1, workers)  # batches in a sample: workers deliver in turn
        for _ in range(1 + _BUFFERED * count):  # what was made ahead is not timed
            next(batches)
        start = _processor_seconds()
        seconds = []
        for _ in range(repeats):
            began = time.perf_counter()
            images = sum(len(next(batches)["images"]) for _ in range(count))
            seconds.append((time.perf_counter() - began) / images)
        processor = (_processor_seconds() - start) / (repeats * images)
    finally:
        batches.close()
        cv2.setNumThreads(threads)
    return {
        "images_per_second": 1 / statistics.median(seconds),
        "images_per_core": 1 / processor,
        "sample_seconds_per_image": seconds,
        "processor_seconds_per_image": processor,
    }


def _processor_seconds() -> float:
    """Returns the processor time of this process and of its running children.

    Children's comes in steps of 10 ms on Linux: little beside the many batches of all samples,
    each a tenth of a second or more, that are between two readings.
    """
    import psutil  # with the extra "data" only, as a requirement of tensorflow-datasets

    seconds = time.process_time()
    for child in multiprocessing.active_children():
        times = psutil.Process(child.pid).cpu_times()
        seconds += times.user + times.system
    return seconds


def _row(record: Record) -> tuple[str, ...]:
    return (
        record["dataset"],
        record["way"],
        str(record["workers"]) if record["way"] == RECORDS else "-",
        short(record["images_per_second"]),
        short(record["images_per_core"]),
        f"{record['of_plain']:.2f}",
    )
