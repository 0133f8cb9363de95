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
from mtmamba_jax.benchmark import BOTH, SPECS, Record, ss2d_records
from mtmamba_jax.timing import WARM_UPS, device_peak

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
of bytes: that of moving each input and output once a pass; both over the measured time."""


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
    rule = (
        "-" * (width - 1) + (":" if title in _NUMBERS else "-")
        for title, width in _SS2D_COLUMNS.items()
    )
    print(f"\n{_row(_SS2D_COLUMNS)}\n{_row(rule)}", flush=True)
    records, errors = [], []
    for record in ss2d_records(specs, implementations, dtype, repeats):
        records.append(record)
        write(output, "ss2d", settings, records)
        print(_ss2d_row(record), flush=True)
        if "error" in record:
            what = ", ".join(record[key] for key in ("spec", "implementation", "passes"))
            errors.append(f"{what}: {record['error'].splitlines()[0]}")
    print(_LEGEND)
    return errors


def _ss2d_row(record: Record) -> str:
    cells = [record["spec"], record["implementation"], record["passes"]]
    if "error" in record:
        return _row([*cells, *("-" for _ in _NUMBERS)])
    return _row(
        [
            *cells,
            _milliseconds(record),
            _percent(record["exponential_fraction"]),
            _percent(record["byte_fraction"]),
            _gib((record["memory_bytes"] or {}).get("peak")),
            f"{record['compile_seconds']:.1f}",
        ]
    )


def _row(cells: Iterable[str]) -> str:
    padded = (
        f"{cell:{'>' if title in _NUMBERS else '<'}{width}}"
        for cell, (title, width) in zip(cells, _SS2D_COLUMNS.items(), strict=True)
    )
    return f"| {' | '.join(padded)} |"


def model_table(record: Record) -> str:
    """Returns the table of `model_record`: one line a quantity."""
    memory = record["memory_bytes"] or {}
    parts = ("arguments", "temporaries", "outputs", "aliased")
    values = {
        "batch": str(record["batch_size"]),
        "devices": str(record["devices"]),
        "ms (min to max)": _milliseconds(record),
        "images/s": _short(record["images_per_second"]),
        "compile s": f"{record['compile_seconds']:.1f}",
        "peak of the program, GiB": _gib(memory.get("peak")),
        **{f"- {part}": _gib(memory.get(part)) for part in parts},
        "peak of the process, GiB": _gib(device_peak()),
    }
    left, right = (max(map(len, cells)) for cells in (values, values.values()))
    lines = [f"| {key:<{left}} | {value:>{right}} |" for key, value in values.items()]
    return "\n".join((lines[0], f"| {'-' * left} | {'-' * (right - 1)}: |", *lines[1:]))


def _milliseconds(record: Record) -> str:
    numbers = (record[f"{name}_seconds"] * 1e3 for name in ("median", "min", "max"))
    return "{} ({} to {})".format(*map(_short, numbers))


def _short(number: float) -> str:
    """Four digits, three of them behind the point at most."""
    return f"{number:.{3 if number < 10 else 2 if number < 100 else 1 if number < 1000 else 0}f}"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _gib(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.3f}"


def write(path: pathlib.Path, what: str, settings: Mapping, records: Sequence[Record]) -> None:
    """Writes the records as JSON, with the date, the devices, the versions and the settings."""
    devices = jax.devices()
    packages = ("jax", "jaxlib", "flax")
    document = {
        "what": what,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": {
            "kind": devices[0].device_kind,
            "platform": devices[0].platform,
            "count": len(devices),
            "peak_bytes": device_peak(),
        },
        "versions": {
            "mtmamba_jax": mtmamba_jax.__version__,
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "settings": {"warm_ups": WARM_UPS, **settings},
        "records": list(records),
    }
    path.write_text(json.dumps(document, indent=2) + "\n")
