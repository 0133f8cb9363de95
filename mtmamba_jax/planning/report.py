"""Prints the results of the command `plan` as text or JSON."""

from collections.abc import Iterator

from mtmamba_jax.benchmarks.kernel_times import profile_table
from mtmamba_jax.benchmarks.programs import Record
from mtmamba_jax.benchmarks.report import describe_devices, document
from mtmamba_jax.config import Config
from mtmamba_jax.files.json_files import to_json, write_json
from mtmamba_jax.messages import gib, markdown_table, percent, short
from mtmamba_jax.planning.estimate import Operation, to_profile, to_trace
from mtmamba_jax.planning.plan import batch_of, plan_records
from mtmamba_jax.planning.topology import GPUS, Topology

PARTS = ("arguments", "temporaries", "outputs", "aliased", "code")


def report_plan(
    what: str, config: Config, topology: Topology, *, trace: str | None = None, profile=False
) -> bool:
    """Prints each record of `plan_records` at once; returns whether the program fits as it is.

    Args:
      what, config, topology: Those of `plan_records`.
      trace: File for the estimated times of the operations, as a trace; prints them too.
      profile: Whether to print the estimated times.
    """
    records = plan_records(what, config, topology, estimated=profile or trace is not None)
    record = next(records)
    print(f"\n{plan_table(what, config, topology, record)}")
    if operations := [Operation(**v) for v in record.get("operations", [])]:
        _report_estimate(operations, trace)
    print("".join(f"\n{note}" for note in _notes(what, config, topology, record)))
    print(f"\n{_verdict(record)}", flush=True)
    if not record["fits"]:
        _report_options(records)
    return record["fits"]


def _report_estimate(operations: list[Operation], trace: str | None) -> None:
    print(
        "\nEstimated time on one device, not measured on any: the compiler's estimates of XLA's\n"
        "operations, and of kernels their bytes or their instructions on a v5e with bfloat16.\n"
        "Communication is left out, and loops count once.\n"
        f"\n{profile_table(to_profile(operations))}"
    )
    if trace:
        write_json(trace, to_trace(operations))
        print(f"\nWrote a trace for https://ui.perfetto.dev to {trace}")


def _report_options(records: Iterator[Record]) -> None:
    print(
        "\nSettings that may use less memory, compiled in turn, each added to those above that do:",
        flush=True,
    )
    record, before = None, {}
    for record in records:
        new = {k: v for k, v in record["settings"].items() if before.get(k) != v}
        compiled = f"(compiled in {record['compile_seconds']:.0f} s)"
        print(f"  {_flags(new)}: {_verdict(record)} {compiled}", flush=True)
        before = record["settings"]
    if record is None:
        print("  none that are not already set")
    if record is not None and record["fits"]:
        print(f"\nFits with {_flags(record['settings'])}")
    else:
        print("\nNothing found that fits. Use a smaller batch or data.size, or more devices.")


def _flags(settings: dict[str, object]) -> str:
    return " ".join(f"--config.{key}={value}" for key, value in settings.items())


def _verdict(record: Record) -> str:
    """Returns a sentence that says whether the program fits."""
    if record["refusal"]:
        return f"Does not fit. The compiler reports: {record['refusal']}"
    peak, available = record["memory_bytes"]["peak"], record["available_bytes"]
    does, share = "Fits" if record["fits"] else "Does not fit", percent(peak / available)
    return f"{does}: {gib(peak)} of {gib(available)} GiB on each device, {share}."


def plan_table(what: str, config: Config, topology: Topology, record: Record) -> str:
    """Returns the table of a record, one quantity of one device per row."""
    memory, chip, devices = record.get("memory_bytes", {}), topology.chip, topology.devices
    values = {
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        **{f"{part}, GiB": gib(memory.get(part)) for part in PARTS},
        "peak, GiB": gib(memory.get("peak")),
        "HBM for programs, GiB": gib(record["available_bytes"]),
        "GFLOP": _scaled(record.get("flops"), 1e9),
        f"- at {chip.flops / 1e12:.0f} TFLOP/s, ms": _scaled(record.get("flops_seconds"), 1e-3),
        "GB moved": _scaled(record.get("bytes"), 1e9),
        f"- at {chip.bytes / 1e12:.2f} TB/s, ms": _scaled(record.get("bytes_seconds"), 1e-3),
    }
    for kind, found in record.get("collectives", {}).items():
        values[f"{kind}, MB"] = f"{found['count']} x, {short(found['bytes'] / 1e6)}"
    values["compile s"] = f"{record['compile_seconds']:.1f}"
    return markdown_table(("batch", str(batch_of(what, config)[1])), values.items())


def _scaled(number: float | None, unit: float) -> str:
    return "-" if number is None else short(number / unit)


def _notes(what: str, config: Config, topology: Topology, record: Record) -> Iterator[str]:
    """Yields remarks that are needed to read the table."""
    if record["refusal"] is None:
        if record["flops"] is None:
            yield "The compiler counts FLOPs and bytes only if the GPU is present."
        elif record["loops"]:
            yield (
                f"The compiler counts the body of each of the {record['loops']} loops only once: "
                "FLOPs, bytes and collectives are lower bounds."
            )
    if topology.name.partition(":")[0] in GPUS:
        yield "HBM for programs is JAX's share of it: 75 % or XLA_CLIENT_MEM_FRACTION."
    count, evaluated = len(topology.devices), config.eval.batch_size
    if what == "step" and evaluated % count:
        yield (
            f"The command train uses all {count} devices only if eval.batch_size, which is "
            f"{evaluated}, is also a multiple of {count}."
        )


def plan_json(
    what: str, config: Config, topology: Topology, *, estimated: bool = False
) -> tuple[str, bool]:
    """Returns the records of `plan_records` as JSON, and whether the program fits as configured."""
    records = list(plan_records(what, config, topology, estimated=estimated))
    device = {"topology": topology.name, **describe_devices(topology.devices)}
    contents = document(what, device, {"config": config.flat()}, records)
    return to_json(contents, indent=2), records[0]["fits"]
