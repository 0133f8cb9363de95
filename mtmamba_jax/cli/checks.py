"""The command `checks`: what is installed, and what it will use."""

import argparse
import json
from typing import Any

from tabulate import tabulate

from mtmamba_jax.devices import checks


def run(options: argparse.Namespace) -> int:
    """Prints what `checks.collect` finds; returns 1 if something is wrong."""
    found = checks.collect()
    print(json.dumps(found, indent=2) if options.json else _format(found))
    return 1 if found["problems"] else 0


def _format(found: dict[str, Any]) -> str:
    rows = [(name, version or "not installed") for name, version in found["versions"].items()]
    rows.append(("", ""))
    for i, device in enumerate(found["devices"]):
        details = [device["kind"]]
        if device["compute_capability"]:
            details.append(f"compute capability {device['compute_capability']}")
        if device["memory_limit_gib"] is not None:
            details.append(f"JAX may allocate {device['memory_limit_gib']} GiB")
        rows.append((f"device {i}", ", ".join(details)))
    rows += [
        (f"memory of GPU {i}", f"{gpu['free_gib']} of {gpu['total_gib']} GiB free ({gpu['name']})")
        for i, gpu in enumerate(found["nvidia_gpus"])
    ]
    if found["free_host_memory_gib"] is not None:
        rows.append(("memory of the host", f"{found['free_host_memory_gib']} GiB free"))
    if found["scan"]:
        scan = found["scan"]
        rows.append(("selective scan", f"{scan['backend']} (on {scan['platform']}, usual shapes)"))
        rows += [(f"  not {name}", reason) for name, reason in scan["refusals"].items()]
    if found["devices"]:
        folder = found["compilation_cache"]
        on_cpu = found["devices"][0]["platform"] == "cpu"
        absent = "not cached (never on a CPU)" if on_cpu else "not cached"
        rows.append(("compiled programs", f"cached in {folder}" if folder else absent))
    rows.append(("launcher", found["launcher"] or "none: this is a single process"))
    text = tabulate(rows, tablefmt="plain", disable_numparse=True)
    problems = [f"\nproblem: {one['what']}\n  {one['remedy']}" for one in found["problems"]]
    return text + "\n" + ("\n".join(problems) if problems else "\nNo problems found.")
