"""What `benchmark --what=devices` measures: a training step on one device, and on all of them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from mtmamba_jax.benchmarks.programs import Record, model_record
from mtmamba_jax.benchmarks.report import milliseconds, write
from mtmamba_jax.messages import gib, short
from mtmamba_jax.tables import row, rule

_COLUMNS = {
    "data x fsdp": 11,
    "batch": 5,
    "ms a step (min to max)": 24,
    "images/s": 8,
    "of one": 6,
    "state GiB": 9,
    "of one's": 8,
    "peak GiB": 8,
    "compile s": 9,
}


def report_devices(config: ConfigDict, repeats: int, output: pathlib.Path, settings: dict) -> None:
    """Prints a line for each layout as soon as it is known and writes `output`.

    Args:
      config: gives the model, the size of images, and the batch of one device.
      repeats: samples of each time.
      output: JSON, brought up to date with each line.
      settings: that it also holds.

    Raises:
      ValueError: there is one device only, or a configuration that cannot work.
    """
    count = jax.device_count()
    if count == 1:
        raise ValueError(
            "benchmark --what=devices compares one device with several; there is one here. On a "
            "CPU XLA_FLAGS=--xla_force_host_platform_device_count=2 makes two."
        )
    print(f"\n{row(_COLUMNS, _COLUMNS, _COLUMNS)}\n{rule(_COLUMNS, _COLUMNS)}", flush=True)
    records = []
    for record in _records(config, repeats, count):
        records.append(record)
        write(output, "devices", settings, records)
        print(_row(record, records[0]), flush=True)
    print(
        "\nof one: images/s a device over those of one device; state: weights and optimizer state "
        "on a device."
    )


def _records(config: ConfigDict, repeats: int, count: int) -> Iterator[Record]:
    for data, fsdp in ((1, 1), (count, 1), (1, count)):
        layout = config.copy_and_resolve_references()
        layout.mesh = ConfigDict({"data": data, "fsdp": fsdp})
        layout.train.batch_size *= data * fsdp
        yield {"data": data, "fsdp": fsdp} | model_record("step", layout, repeats)


def _row(record: Record, one: Record) -> str:
    def rate(found: Record) -> float:
        return found["images_per_second"] / found["devices"]

    cells = (
        f"{record['data']} x {record['fsdp']}",
        str(record["batch_size"]),
        milliseconds(record),
        short(record["images_per_second"]),
        f"{rate(record) / rate(one):.1%}",
        gib(record["state_bytes"]),
        f"{record['state_bytes'] / one['state_bytes']:.1%}",
        gib((record["memory_bytes"] or {}).get("peak")),
        f"{record['compile_seconds']:.1f}{'*' if record['compile_cached'] else ''}",
    )
    return row(cells, _COLUMNS, _COLUMNS)
