"""How long a compiled program takes and what it holds in memory."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

WARM_UPS = 3
SAMPLE = 5e-2  # seconds that a sample aims at, so that launching its calls is negligible
BACK_TO_BACK = 10  # calls in one sample at most
CACHE_HIT = "/jax/compilation_cache/cache_hits"  # event of jax.monitoring


@dataclasses.dataclass(frozen=True)
class Timing:
    """Times of one program.

    Attributes:
      seconds: of one call, for each sample.
      calls: back to back in a sample.
    """

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return statistics.median(self.seconds)


def check_repeats(repeats: int) -> None:
    """Checks that there is something to take the median of.

    Raises:
      ValueError: fewer than one repeat.
    """
    if repeats < 1:
        raise ValueError(f"--repeats must be at least 1, got {repeats}.")


def time_calls(call: Callable[[], object], repeats: int) -> Timing:
    """Times `call()`, whose result is waited for, after `WARM_UPS` calls.

    On an accelerator a sample is up to `BACK_TO_BACK` calls, waited for together, so that the host
    launches one while the device runs another.

    Args:
      call: returns the arrays that it makes.
      repeats: samples, at least one.
    """
    once = min(_sample(call, 1) for _ in range(WARM_UPS))
    calls = 1 if jax.default_backend() == "cpu" else min(BACK_TO_BACK, 1 + int(SAMPLE / once))
    return Timing(tuple(_sample(call, calls) for _ in range(repeats)), calls)


def _sample(call: Callable[[], object], calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def compile_timed(
    lower: Callable[..., jax.stages.Lowered], *args
) -> tuple[jax.stages.Compiled, dict[str, float | bool]]:
    """Returns the compiled program of `lower(*args)` and how it came about.

    That is `compile_seconds`, of tracing and compiling, and `compile_cached`: whether they are of
    reading a program that JAX had kept (`compilation_cache`).
    """
    events = []

    def listen(event, **_):
        events.append(event)

    jax.monitoring.register_event_listener(listen)
    try:
        start = time.perf_counter()
        program = lower(*args).compile()
        seconds = time.perf_counter() - start
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return program, {"compile_seconds": seconds, "compile_cached": CACHE_HIT in events}


def program_memory(program: jax.stages.Compiled) -> dict[str, int] | None:
    """Returns bytes that a program holds on each device, as its compiler counts them.

    `peak` is arguments + temporaries + outputs - aliased, where outputs that reuse the memory of
    donated arguments are aliased. None where the backend does not tell.
    """
    found = program.memory_analysis()
    if found is None:
        return None
    memory = {
        "arguments": found.argument_size_in_bytes,
        "temporaries": found.temp_size_in_bytes,
        "outputs": found.output_size_in_bytes,
        "aliased": found.alias_size_in_bytes,
    }
    whole = memory["arguments"] + memory["temporaries"] + memory["outputs"]
    return memory | {"peak": whole - memory["aliased"]}


def device_peak() -> int | None:
    """Returns the most bytes this process has held on its first device, None if not counted."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
