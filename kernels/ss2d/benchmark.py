"""Times chunked SS2D against one whole-image `associative_scan` per direction, on this device.

    python -m mtmamba_jax.kernels.ss2d.benchmark [--spec stage3_t1_b1] [--repeats 3]

Measures forward and backward passes, each side in a process of its own. The whole-image scans run
one after another as separate programs, since all four at once need 20 GB. Their memory is therefore
that of one direction, which favours them. Time is the median of the repeats, with minimum and
maximum. Memory is the process's peak resident size after the runs, less that before compiling;
gradients are included.
"""

import argparse
import functools
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from mtmamba_jax.kernels.ss2d import DIRECTIONS, ss2d
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, SMALL
from mtmamba_jax.kernels.ss2d.common import combine, parse_directions

SPECS = DECODER | SMALL
SIDES = CHUNKED, WHOLE = ("chunked op", "whole-image associative_scan")


def whole_image_scan(direction, x, dt, dt_weight, dt_bias, A, B, C, D):
    """Runs one `associative_scan` over all pixels; arguments as in `ss2d`, for k = 1."""
    ((column,), (reverse,)) = parse_directions([direction])

    def read(v):
        v = jnp.swapaxes(v, 2, 3) if column else v
        return v.reshape(*v.shape[:2], -1, *v.shape[4:])

    u, step, B, C = map(read, (x, dt[..., 0, :], B[..., 0, :], C[..., 0, :]))
    step = jnp.einsum("tblr,trd->tbld", step, dt_weight[:, 0]) + dt_bias[:, None, None, 0]
    step = jax.nn.softplus(step)[..., None]
    _, states = jax.lax.associative_scan(
        combine,
        (jnp.exp(step * A[:, None, None, 0]), step * u[..., None] * B[..., None, :]),
        axis=2,
        reverse=reverse,
    )
    y = jnp.einsum("tbldn,tbln->tbld", states, C) + u * D[:, None, None, 0]
    shape = (x.shape[3], x.shape[2]) if column else x.shape[2:4]
    y = y.reshape(*x.shape[:2], *shape, -1)
    return jnp.swapaxes(y, 2, 3) if column else y


def select_direction(k: int, arguments: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns the arguments of `ss2d` for its k-th direction only."""
    x, dt, dt_weight, dt_bias, A, B, C, D = arguments
    one = slice(k, k + 1)
    return [
        *(x, dt[..., one, :], dt_weight[:, one], dt_bias[:, one]),
        *(A[:, one], B[..., one, :], C[..., one, :], D[:, one]),
    ]


def with_gradients(op: Callable[..., jax.Array]) -> Callable:
    """Returns `run(cotangent, *arrays)`, which computes the op's value and its gradients."""

    def run(cotangent, *arrays):
        y, pull = jax.vjp(op, *arrays)
        return y, pull(cotangent)

    return run


def measure(side: str, spec: str, repeats: int) -> dict[str, float | list[float]]:
    """Times one side in this process.

    Args:
      side: One of `SIDES`.
      spec: Key of `SPECS`.
      repeats: Number of timed runs.

    Returns:
      "compile": Seconds to compile. "seconds": Seconds of each run. "mib": Peak memory added, MiB.
    """
    arguments = [jnp.asarray(v) for v in SPECS[spec].arguments()]
    shape = arguments[0].shape
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))

    functions = [(functools.partial(ss2d, implementation="xla"), arguments)]
    if side == WHOLE:
        functions = [
            (functools.partial(whole_image_scan, direction), select_direction(k, arguments))
            for k, direction in enumerate(DIRECTIONS)
        ]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    programs = [
        (jax.jit(with_gradients(function)).lower(cotangent, *arrays).compile(), arrays)
        for function, arrays in functions
    ]
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for program, arrays in programs:
            jax.block_until_ready(program(cotangent, *arrays))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The first run is left out: it also touches memory for the first time.
    return {"compile": compile_seconds, "seconds": seconds[1:], "mib": (peak - before) / 1024}


def main() -> None:
    """Prints a line per side, their ratios and, on the last line, all numbers as JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--spec", default="stage3_t1_b1", choices=sorted(SPECS))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.spec}: {SPECS[options.spec]}, float32, forward and backward")
    results = {}
    for side in SIDES:
        # A new process, which has not used JAX yet.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            results[side] = pool.submit(measure, side, options.spec, options.repeats).result()
        seconds = results[side]["seconds"]
        print(
            f"{side:30s} {statistics.median(seconds):7.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f} of {len(seconds)}), "
            f"peak {results[side]['mib']:6.0f} MiB, compile {results[side]['compile']:.1f} s",
            flush=True,
        )
    chunked, whole = results[CHUNKED], results[WHOLE]
    speedup = statistics.median(whole["seconds"]) / statistics.median(chunked["seconds"])
    print(f"{CHUNKED}: {speedup:.1f}x faster, {whole['mib'] / chunked['mib']:.1f}x less memory")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
