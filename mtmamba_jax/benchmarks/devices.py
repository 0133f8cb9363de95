"""Compares a training step on one device with all devices, for `benchmark --what=devices`."""

import pathlib
from collections.abc import Iterator

import jax

from mtmamba_jax.benchmarks.programs import Record, model_record
from mtmamba_jax.benchmarks.report import compile_seconds, milliseconds, write_records
from mtmamba_jax.config import Config
from mtmamba_jax.messages import gib, markdown_table, short

_COLUMNS = (
    *("data x fsdp", "batch", "ms a step (min to max)", "images/s", "of one"),
    *("state GiB", "of one's", "peak GiB", "compile s"),
)


def report_devices(config: Config, repeats: int, output: pathlib.Path, settings: dict) -> None:
    """Measures a training step on each mesh, prints the table and writes the records as JSON.

    Args:
      config: Sets the model, the image size and the batch size per device.
      repeats: Number of timing samples.
      output: JSON file, rewritten after each measurement.
      settings: Settings to write to the JSON file.

    Raises:
      ValueError: If there is only one device, or the configuration is invalid.
    """
    count = jax.device_count()
    if count == 1:
        raise ValueError(
            "benchmark --what=devices compares one device with several, but there is only one. On "
            "a CPU, XLA_FLAGS=--xla_force_host_platform_device_count=2 creates two."
        )
    records = []
    for record in _records(config, repeats, count):
        records.append(record)
        write_records(output, "devices", settings, records)
        print(f"data {record['data']} x fsdp {record['fsdp']}: measured", flush=True)
    print(f"\n{markdown_table(_COLUMNS, [_row(each, records[0]) for each in records], left=0)}")
    print(
        "\nof one: images/s per device relative to a single device; state: weights and optimizer "
        "state on one device."
    )


def _records(config: Config, repeats: int, count: int) -> Iterator[Record]:
    for data, fsdp in ((1, 1), (count, 1), (1, count)):
        scaled = config.replace(
            mesh={"data": data, "fsdp": fsdp},
            train={"batch_size": config.train.batch_size * data * fsdp},
        )
        yield {"data": data, "fsdp": fsdp} | model_record("step", scaled, repeats)


def _row(record: Record, one: Record) -> tuple[str, ...]:
    rate, rate_of_one = (r["images_per_second"] / r["devices"] for r in (record, one))
    return (
        f"{record['data']} x {record['fsdp']}",
        str(record["batch_size"]),
        milliseconds(record),
        short(record["images_per_second"]),
        f"{rate / rate_of_one:.1%}",
        gib(record["state_bytes"]),
        f"{record['state_bytes'] / one['state_bytes']:.1%}",
        gib((record["memory_bytes"] or {}).get("peak")),
        compile_seconds(record),
    )
