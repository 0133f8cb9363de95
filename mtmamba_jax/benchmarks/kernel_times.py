"""Where a program's time on a GPU goes, by kind of kernel, from a trace of the profiler."""

import collections
import pathlib
import re
import tempfile
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
from jax.profiler import ProfileData

from mtmamba_jax.messages import markdown_table, percent, short

KINDS = {
    "collectives": r"nccl|all-|reduce-scatter|collective",
    "scan, backward": r"ss2d_backward",
    "scan, forward": r"ss2d_forward",
    "scan, starts of segments": r"ss2d_summaries",
    "LayerNorm": r"layer_norm|blend",
    "convolution and SiLU": r"convolve",
    "attention": r"attention",
    "matrix products": r"gemm|nvjet|cutlass|cublas|dot|convolution",
    "normalization fusions": r"softmax|triton",
    "reductions": r"reduce",
    "copies and transposes": r"memcpy|memset|copy|transpose|concatenate|slice|pad|gather|scatter",
    "other elementwise": r"",
}
"""Kinds of kernels, with regular expressions of their names. The first that matches counts."""


class Kernel(NamedTuple):
    """All launches of a kernel in one call of a program."""

    name: str
    seconds: float
    launches: int


class Profile(NamedTuple):
    """The kernels of one call on the first device, and the seconds from its first to its last."""

    kernels: list[Kernel]
    span: float


def profile(call: Callable[[], object]) -> Profile:
    """Traces one call, which returns the arrays that it computes; it must have been compiled.

    Raises:
      RuntimeError: If the trace has no kernels.
    """
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            jax.block_until_ready(call())
        traces = sorted(pathlib.Path(folder).rglob("*.xplane.pb"))
        planes = [plane for path in traces for plane in ProfileData.from_file(str(path)).planes]
    found = read_planes(planes)
    if not found.kernels:
        raise RuntimeError(
            "The profiler's trace has no kernels of the first device. NVIDIA's driver may let only "
            "the administrator profile; in a container, add --cap-add=SYS_ADMIN."
        )
    return found


def read_planes(planes: Iterable) -> Profile:
    """Returns the kernels of the first device in a trace's planes, the longest first."""
    seconds, launches = collections.Counter(), collections.Counter()
    starts, ends = [], []
    for plane in planes:
        if not plane.name.startswith("/device:GPU:0"):
            continue
        for line in plane.lines:
            if not line.name.startswith("Stream"):
                continue
            for event in line.events:
                seconds[event.name] += event.duration_ns / 1e9
                launches[event.name] += 1
                starts.append(event.start_ns)
                ends.append(event.start_ns + event.duration_ns)
    kernels = [Kernel(name, time, launches[name]) for name, time in seconds.most_common()]
    return Profile(kernels, (max(ends) - min(starts)) / 1e9 if starts else 0.0)


def kind_of(name: str) -> str:
    """Returns the kind of a kernel, a key of `KINDS`."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, name.lower()))


def profile_table(found: Profile) -> str:
    """Returns a table with a row for each kind of kernel, the largest first."""
    by_kind: dict[str, list[Kernel]] = collections.defaultdict(list)
    for kernel in found.kernels:
        by_kind[kind_of(kernel.name)].append(kernel)
    busy = sum(kernel.seconds for kernel in found.kernels)
    totals = {kind: sum(v.seconds for v in kernels) for kind, kernels in by_kind.items()}
    rows = [
        (
            kind,
            short(totals[kind] * 1e3),
            percent(totals[kind] / found.span),
            str(sum(kernel.launches for kernel in kernels)),
            _describe(kernels[0]),
        )
        for kind, kernels in sorted(by_kind.items(), key=lambda item: -totals[item[0]])
    ]
    if found.span > busy:
        idle = found.span - busy
        rows.append(("between kernels", short(idle * 1e3), percent(idle / found.span), "", ""))
    launches = str(sum(kernel.launches for kernel in found.kernels))
    rows.append(("from first to last", short(found.span * 1e3), percent(1.0), launches, ""))
    columns = ("kind", "ms", "of the time", "launches", "largest: ms, launches")
    return markdown_table(columns, rows)


def _describe(kernel: Kernel) -> str:
    return f"{kernel.name[:40]} {short(kernel.seconds * 1e3)}, {kernel.launches}"
