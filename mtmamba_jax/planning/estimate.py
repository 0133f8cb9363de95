"""Estimates where the time of a program on a TPU goes, from its compiled text (HLO).

libtpu writes an estimate of the cycles into each of XLA's operations, but not into kernels. The
estimate of a kernel is the number of its instruction bundles, of which a core issues one per cycle,
or the time to move its operands and results, if that is longer. Nothing here has been measured on a
TPU.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from mtmamba_jax.benchmarks.kernel_times import Kernel, Profile
from mtmamba_jax.devices.chips import Chip
from mtmamba_jax.planning.collectives import ARRAY, array_bytes, array_size

BUNDLES = {
    "ss2d_forward": 72.0,
    "ss2d_backward": 194.0,
    "convolve_forward": 12.2,
    "convolve_backward": 28.6,
    "layer_norm_forward": 8.9,
    "layer_norm_backward": 15.9,
    "blend_forward": 10.6,
    "blend_backward": 14.1,
}
"""Bundles of each kernel per 1024 numbers of its largest result, on v5e, from libtpu's dump of its
schedule (libtpu 0.0.42, bfloat16, 112x144 pixels, 384 channels); docs/kernels.md."""

_OPERATION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", re.MULTILINE)
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_SOURCE = re.compile(r'op_name="([^"]*)"')


class Operation(NamedTuple):
    """An operation of a compiled program.

    Attributes:
      name: Its name without the number, and the last part of the JAX operation that it is from.
      seconds: Estimated time on one device.
    """

    name: str
    seconds: float


def estimate(text: str, chip: Chip) -> list[Operation]:
    """Returns a TPU program's operations in the order of their execution.

    Args:
      text: `jax.stages.Compiled.as_text()`.
      chip: The TPU, with a clock rate. Operations in a loop count once.
    """
    return list(_operations(text, chip))


def _operations(text: str, chip: Chip) -> Iterator[Operation]:
    assert chip.clock is not None
    for full, rest in _OPERATION.findall(text):
        name = re.sub(r"[.\d]+$", "", full)
        if found := _CYCLES.search(rest):
            source = _SOURCE.search(rest)
            last = source[1].rsplit("/", 1)[-1] if source else ""
            last = "" if "[" in last else last  # not the name of an argument
            yield Operation(f"{name} {last}".strip(), int(found[1]) / chip.clock)
        elif "tpu_custom_call" in rest:
            yield Operation(name, _kernel_seconds(name, rest, chip))


def _kernel_seconds(name: str, rest: str, chip: Chip) -> float:
    """Returns the longer of a kernel's bundles, if they are known, and its bytes."""
    results, _, operands = rest.partition("custom-call(")
    layouts = re.search(r"operand_layout_constraints=\{(.*?)\}, \w+=", operands)
    written, read = (ARRAY.findall(v) for v in (results, layouts[1] if layouts else ""))
    moved = sum(map(array_bytes, written + read))
    known = next((v for key, v in BUNDLES.items() if name.startswith(key)), 0.0)
    cycles = max(map(array_size, written)) / 1024 * known
    assert chip.clock is not None
    return max(cycles / chip.clock, moved / chip.bytes)


def to_profile(operations: list[Operation]) -> Profile:
    """Returns the operations as kernels, those of the same name together, the longest first."""
    found: dict[str, Kernel] = {}
    for name, seconds in operations:
        before = found.get(name, Kernel(name, 0.0, 0))
        found[name] = Kernel(name, before.seconds + seconds, before.launches + 1)
    kernels = sorted(found.values(), key=lambda kernel: -kernel.seconds)
    return Profile(kernels, sum(kernel.seconds for kernel in kernels))


def to_trace(operations: list[Operation]) -> dict[str, list]:
    """Returns the operations one after the other as a trace for Perfetto and chrome://tracing."""
    events, start = [], 0.0
    for name, seconds in operations:
        events.append(
            {"name": name, "ph": "X", "pid": 0, "tid": 0, "ts": start * 1e6, "dur": seconds * 1e6}
        )
        start += seconds
    return {"traceEvents": events}
