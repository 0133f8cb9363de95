"""Time and memory of compiled programs."""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax

WARM_UPS = 3
SAMPLE = 1.0  # seconds of a sample at most, about; several calls make their launching negligible
BACK_TO_BACK = 10  # most calls in a sample
CACHE_HIT = "/jax/compilation_cache/cache_hits"  # event of jax.monitoring


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds per call of a program, for each sample of `calls` calls back to back."""

    seconds: tuple[float, ...]
    calls: int

    @property
    def median(self) -> float:
        """Median seconds per call."""
        return statistics.median(self.seconds)


def time_calls(call: Callable[[], object], repeats: int) -> Timing:
    """Times `call()` until its result is ready, after `WARM_UPS` calls.

    On an accelerator a sample is up to `BACK_TO_BACK` calls with one wait at the end, so that the
    host launches a call while the device runs another. `call` returns the arrays it computes.
    """
    once = min(_sample(call, 1) for _ in range(WARM_UPS))
    calls = 1 if jax.default_backend() == "cpu" else min(BACK_TO_BACK, 1 + int(SAMPLE / once))
    return Timing(tuple(_sample(call, calls) for _ in range(repeats)), calls)


def _sample(call: Callable[[], object], calls: int) -> float:
    result, start = None, time.perf_counter()
    for _ in range(calls):
        result = call()
    jax.block_until_ready(result)
    return (time.perf_counter() - start) / calls


def compile_timed(
    lower: Callable[..., jax.stages.Lowered], *args
) -> tuple[jax.stages.Compiled, dict[str, float | bool]]:
    """Returns the compiled program of `lower(*args)` and how it was compiled.

    The latter is `compile_seconds`, for tracing and compiling, and `compile_cached`: whether the
    program was read from the compilation cache.
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
    """Returns the bytes that a program needs on each device, or None if the backend does not tell.

    `peak` is arguments + temporaries + outputs - aliased, where `aliased` are the outputs that
    reuse the memory of donated arguments.
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


def peak_device_memory() -> int | None:
    """Returns the peak bytes in use on this process's first device, or None if not counted."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
