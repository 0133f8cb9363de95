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
        if device["memory_gib"] is not None:
            details.append(f"{device['memory_gib']} GiB for JAX")
        rows.append((f"device {i}", ", ".join(details)))
    if found["memory_gib"] is not None:
        rows.append(("memory", f"{found['memory_gib']} GiB free on this host"))
    if found["scan"]:
        rows.append(("scan", f"{found['scan']['backend']} (on {found['scan']['platform']})"))
        rows += [(f"  not {name}", reason) for name, reason in found["scan"]["not"].items()]
    cache = found["compilation_cache"]
    rows.append(("compiled programs", f"cached in {cache}" if cache else "not cached"))
    rows.append(("cluster", found["cluster"] or "none found"))
    text = tabulate(rows, tablefmt="plain", disable_numparse=True)
    problems = [f"\nproblem: {one['what']}\n  {one['remedy']}" for one in found["problems"]]
    return text + "\n" + ("\n".join(problems) if problems else "\nNo problems found.")
