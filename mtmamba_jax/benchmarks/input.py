"""Measures `benchmark --what=input`: how fast a configuration's training batches are prepared."""

import dataclasses
import pathlib
import statistics
import time
from collections.abc import Iterator, Mapping
from typing import Any

from mtmamba_jax.benchmarks.report import document
from mtmamba_jax.config import Config
from mtmamba_jax.data_pipelines.parallel import available_cores
from mtmamba_jax.data_pipelines.pipeline import Source
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.files.json_files import to_json
from mtmamba_jax.messages import markdown_table, short
from mtmamba_jax.training.batches import open_batches

_PREFETCHED = 2  # batches that each worker prepares ahead
_PACKAGES = ("grain", "numpy", "opencv-python-headless")
_LEGEND = "workers: worker processes, data.num_workers; 0 uses threads of the training process."


def report_input(
    config: Config, repeats: int, output: pathlib.Path, settings: Mapping[str, object]
) -> None:
    """Times training batches with 0, 1, 2, ... workers, prints a table and writes JSON.

    Args:
      config: Its data must exist. `data.num_workers` is ignored.
      repeats: Number of timing samples per number of workers.
      output: JSON file, rewritten after each measurement.
      settings: Settings to note in the JSON file.

    Raises:
      ValueError: If the data is missing.
    """
    source = open_source(config.data, config.tasks.selected, "train")
    cores = available_cores()
    records = []
    for workers in worker_counts(cores):
        records.append(_measure(config, source, workers, repeats))
        contents = document("input", {"cores": cores}, settings, records, _PACKAGES)
        output.write_text(to_json(contents, indent=2) + "\n")
        print(f"workers={workers}: measured", flush=True)
    print(f"\n{markdown_table(('workers', 'images/s (min to max)'), map(_row, records), left=0)}")
    print(f"\n{_LEGEND}")


def worker_counts(cores: int) -> list[int]:
    """Returns 0, the powers of two below the number of cores, and the number of cores."""
    return [0, *(2**i for i in range(cores.bit_length()) if 2**i < cores), cores]


def _measure(config: Config, source: Source, workers: int, repeats: int) -> dict[str, Any]:
    data = dataclasses.replace(config.data, num_workers=workers)
    batches = open_batches(dataclasses.replace(config, data=data), source)
    per_sample = max(1, workers)  # batches; workers deliver in turn
    try:
        for _ in range(1 + _PREFETCHED * per_sample):  # prepared ahead, so not timed
            next(batches)
        rates = [_images_per_second(batches, per_sample) for _ in range(repeats)]
    finally:
        batches.close()
    return {
        "workers": workers,
        # Over all samples: batches arrive in bursts, so that a median would mislead.
        "images_per_second": statistics.harmonic_mean(rates),
        "sample_images_per_second": rates,
    }


def _images_per_second(batches: Iterator[Mapping], count: int) -> float:
    start = time.perf_counter()
    images = sum(len(next(batches)["images"]) for _ in range(count))
    return images / (time.perf_counter() - start)


def _row(record: dict[str, Any]) -> tuple[str, str]:
    rates = record["sample_images_per_second"]
    mean, low, high = map(short, (record["images_per_second"], min(rates), max(rates)))
    return str(record["workers"]), f"{mean} ({low} to {high})"
