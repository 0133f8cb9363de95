"""How the command `benchmark` shows its records: tables to paste, and JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import pathlib
import platform
from collections.abc import Iterable, Mapping, Sequence

import jax

import mtmamba_jax
from mtmamba_jax.benchmarks.programs import BOTH, SPECS, Record, ss2d_records
from mtmamba_jax.devices.timing import WARM_UPS, device_peak
from mtmamba_jax.messages import gib, percent, short
from mtmamba_jax.tables import row, rule, two_columns

# Column titles with the widths of what stands below them.
_SS2D_COLUMNS = {
    "spec": max(map(len, SPECS)),
    "implementation": len("implementation"),
    "pass": len(BOTH),
    "ms (min to max)": 24,
    "of exp": 6,
    "of bytes": 8,
    "peak GiB": 8,
    "compile s": 9,
}
_NUMBERS = list(_SS2D_COLUMNS)[3:]  # aligned to the right
_LEGEND = """
of exp: the time that n*k*t*b*h*w*d exponentials a pass take on the chip's special-function units;
of bytes: that of moving each input and output once a pass; both over the measured time.{}"""
_CACHED_LEGEND = "\n*: read from the compilation cache."


def report_ss2d(
    specs: Sequence[str],
    implementations: Sequence[str],
    dtype: str,
    repeats: int,
    output: pathlib.Path,
) -> list[str]:
    """Prints the table of `ss2d_records`, a line as soon as it is known, and writes `output`.

    Args:
      specs, implementations, dtype, repeats: of `ss2d_records`.
      output: JSON, brought up to date with each line.

    Returns:
      A message for each program that could not run.
    """
    settings = {"specs": specs, "implementations": implementations, "dtype": dtype}
    settings["repeats"] = repeats
    print(f"\n{_row(_SS2D_COLUMNS)}\n{rule(_SS2D_COLUMNS, _NUMBERS)}", flush=True)
    records, errors = [], []
    for record in ss2d_records(specs, implementations, dtype, repeats):
        records.append(record)
        write(output, "ss2d", settings, records)
        print(_ss2d_row(record), flush=True)
        if "error" in record:
            what = ", ".join(record[key] for key in ("spec", "implementation", "passes"))
            errors.append(f"{what}: {record['error'].splitlines()[0]}")
    cached = any(record.get("compile_cached") for record in records)
    print(_LEGEND.format(_CACHED_LEGEND if cached else ""))
    return errors


def _ss2d_row(record: Record) -> str:
    cells = [record["spec"], record["implementation"], record["passes"]]
    if "error" in record:
        return _row([*cells, *("-" for _ in _NUMBERS)])
    return _row(
        [
            *cells,
            milliseconds(record),
            percent(record["exponential_fraction"]),
            percent(record["byte_fraction"]),
            gib((record["memory_bytes"] or {}).get("peak")),
            f"{record['compile_seconds']:.1f}{'*' if record['compile_cached'] else ''}",
        ]
    )


def _row(cells: Iterable[str]) -> str:
    return row(cells, _SS2D_COLUMNS, _NUMBERS)


def model_table(record: Record) -> str:
    """Returns the table of `model_record`: one line a quantity."""
    memory = record["memory_bytes"] or {}
    parts = ("arguments", "temporaries", "outputs", "aliased")
    cached = ", from the cache" if record["compile_cached"] else ""
    values = {
        "batch": str(record["batch_size"]),
        "devices": str(record["devices"]),
        "ms (min to max)": milliseconds(record),
        "images/s": short(record["images_per_second"]),
        f"compile s{cached}": f"{record['compile_seconds']:.1f}",
        "peak of the program, GiB": gib(memory.get("peak")),
        "state on a device, GiB": gib(record["state_bytes"]),
        **{f"- {part}": gib(memory.get(part)) for part in parts},
        "peak of the process, GiB": gib(device_peak()),
    }
    return two_columns(values)


def milliseconds(record: Record) -> str:
    """Returns the median of a record's times with the range of its samples."""
    numbers = (record[f"{name}_seconds"] * 1e3 for name in ("median", "min", "max"))
    return "{} ({} to {})".format(*map(short, numbers))


def write(path: pathlib.Path, what: str, settings: Mapping, records: Sequence[Record]) -> None:
    """Writes the records as JSON, with the date, the devices, the versions and the settings."""
    devices = jax.devices()
    device = {
        "kind": devices[0].device_kind,
        "platform": devices[0].platform,
        "count": len(devices),
        "peak_bytes": device_peak(),
    }
    path.write_text(document(what, device, {"warm_ups": WARM_UPS, **settings}, records) + "\n")


def document(
    what: str,
    device: Mapping,
    settings: Mapping,
    records: Sequence[Record],
    packages: Sequence[str] = ("jax", "jaxlib", "flax"),
) -> str:
    """Returns records as JSON, with the date, the packages' versions and what they are of."""
    return json.dumps(
        {
            "what": what,
            "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "device": device,
            "versions": {
                "mtmamba_jax": mtmamba_jax.__version__,
                "python": platform.python_version(),
                **{package: importlib.metadata.version(package) for package in packages},
            },
            "settings": settings,
            "records": list(records),
        },
        indent=2,
    )
