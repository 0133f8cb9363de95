"""Prints the measurements of the command `benchmark` as tables and writes them as JSON."""

import datetime
import importlib.metadata
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from mtmamba_jax.benchmarks.programs import Record, ss2d_records
from mtmamba_jax.devices.timing import WARM_UPS, peak_device_memory
from mtmamba_jax.files.json_files import to_json
from mtmamba_jax.messages import gib, markdown_table, percent, short

_SS2D_COLUMNS = (
    *("spec", "implementation", "pass"),
    *("ms (min to max)", "of exp", "of bytes", "peak GiB", "compile s"),
)
_LEGEND = """
of exp: share of the measured time that the n*k*t*b*h*w*d exponentials of each pass take on the
chip's special-function units; of bytes: share that moving each input and output once per pass
takes.{}"""
_CACHED_LEGEND = "\n*: read from the compilation cache."


def report_ss2d(
    specs: Sequence[str],
    implementations: Sequence[str],
    dtype: str,
    repeats: int,
    output: pathlib.Path,
) -> list[str]:
    """Measures SS2D (see `ss2d_records`), prints the table and writes the records as JSON.

    The file is rewritten after each measurement. Returns the distinct errors of programs that could
    not run.
    """
    arguments = {"specs": specs, "implementations": implementations, "dtype": dtype}
    settings = arguments | {"repeats": repeats}
    records, errors = [], []
    for record in ss2d_records(specs, implementations, dtype, repeats):
        records.append(record)
        write_records(output, "ss2d", settings, records)
        what = ", ".join(record[key] for key in ("spec", "implementation", "passes"))
        print(f"{what}: {'failed' if 'error' in record else 'measured'}", flush=True)
        if "error" in record:
            error = f"{record['implementation']}: {record['error'].splitlines()[0]}"
            errors += [error] if error not in errors else []
    print(f"\n{markdown_table(_SS2D_COLUMNS, map(_ss2d_row, records), left=3)}")
    cached = any(record.get("compile_cached") for record in records)
    print(_LEGEND.format(_CACHED_LEGEND if cached else ""))
    return errors


def _ss2d_row(record: Record) -> list[str]:
    cells = [record["spec"], record["implementation"], record["passes"]]
    if "error" in record:
        return [*cells, *["-"] * (len(_SS2D_COLUMNS) - len(cells))]
    return [
        *cells,
        milliseconds(record),
        percent(record["exponential_fraction"]),
        percent(record["byte_fraction"]),
        gib((record["memory_bytes"] or {}).get("peak")),
        compile_seconds(record),
    ]


def model_table(record: Record) -> str:
    """Returns the table of a record of `model_record`, one quantity per row."""
    memory = record["memory_bytes"] or {}
    parts = ("arguments", "temporaries", "outputs", "aliased")
    cached = ", from the cache" if record["compile_cached"] else ""
    values = {
        "devices": str(record["devices"]),
        "ms (min to max)": milliseconds(record),
        "images/s": short(record["images_per_second"]),
        f"compile s{cached}": f"{record['compile_seconds']:.1f}",
        "peak of the program, GiB": gib(memory.get("peak")),
        "state on a device, GiB": gib(record["state_bytes"]),
        **{f"- {part}": gib(memory.get(part)) for part in parts},
        "peak of the process, GiB": gib(peak_device_memory()),
    }
    return markdown_table(("batch", str(record["batch_size"])), values.items())


def milliseconds(record: Record) -> str:
    """Returns the median, minimum and maximum time of a record as text."""
    numbers = (record[f"{name}_seconds"] * 1e3 for name in ("median", "min", "max"))
    return "{} ({} to {})".format(*map(short, numbers))


def compile_seconds(record: Record) -> str:
    """Returns the time of a compilation as text, marked if the program was in the cache."""
    return f"{record['compile_seconds']:.1f}{'*' if record['compile_cached'] else ''}"


def write_records(
    path: pathlib.Path, what: str, settings: Mapping, records: Sequence[Record]
) -> None:
    """Writes the records as JSON, with the date, devices, package versions and settings."""
    device = {**describe_devices(jax.devices()), "peak_bytes": peak_device_memory()}
    contents = document(what, device, {"warm_ups": WARM_UPS, **settings}, records)
    path.write_text(to_json(contents, indent=2) + "\n")


def describe_devices(devices: Sequence[Any]) -> dict[str, object]:
    """Returns kind, platform and number of devices."""
    first = devices[0]
    return {"kind": first.device_kind, "platform": first.platform, "count": len(devices)}


def document(
    what: str,
    device: Mapping,
    settings: Mapping,
    records: Sequence[Record],
    packages: Sequence[str] = ("jax", "jaxlib", "flax"),
) -> dict[str, object]:
    """Returns the records with the date, device, package versions and settings, for JSON."""
    return {
        "what": what,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "device": device,
        "versions": {
            "mtmamba_jax": importlib.metadata.version("mtmamba_jax"),
            "python": platform.python_version(),
            **{package: importlib.metadata.version(package) for package in packages},
        },
        "settings": settings,
        "records": list(records),
    }
