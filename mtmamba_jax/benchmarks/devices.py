"""What `benchmark --what=devices` measures: a training step on one device, and on all of them."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import jax
from ml_collections import ConfigDict

from mtmamba_jax.benchmarks.programs import Record, model_record
from mtmamba_jax.benchmarks.report import milliseconds, write
from mtmamba_jax.messages import gib, markdown_table, short

_COLUMNS = (
    "data x fsdp",
    "batch",
    "ms a step (min to max)",
    "images/s",
    "of one",
    "state GiB",
    "of one's",
    "peak GiB",
    "compile s",
)


def report_devices(config: ConfigDict, repeats: int, output: pathlib.Path, settings: dict) -> None:
    """Measures each layout, prints the table and writes `output`.

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
    records = []
    for record in _records(config, repeats, count):
        records.append(record)
        write(output, "devices", settings, records)
        print(f"data {record['data']} x fsdp {record['fsdp']}: measured", flush=True)
    print(f"\n{markdown_table(_COLUMNS, [_row(each, records[0]) for each in records], left=0)}")
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


def _row(record: Record, one: Record) -> tuple[str, ...]:
    def rate(found: Record) -> float:
        return found["images_per_second"] / found["devices"]

    return (
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
