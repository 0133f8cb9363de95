"""Chunked SS2D against one whole-image `associative_scan` for each direction, forward and backward.

    python -m mtmamba_jax.kernels.ss2d.benchmark [--spec stage3_t1_b1] [--repeats 3]

Each side runs in its own process. The whole-image scans run one after another, each a program of
its own, since all four at once take 20 GB: the memory is one direction's, which favours that side.
Time is the median of the repeats, with its spread; memory is the process's peak resident size after
the runs less that before compiling, so gradients are in it.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mtmamba_jax.kernels.ss2d import DIRECTIONS, ss2d
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, SMALL

SPECS = DECODER | SMALL
CHUNKED, WHOLE = SIDES = ("chunked op", "whole-image associative_scan")


def whole_image_scan(direction, x, dt, dt_weight, dt_bias, A, B, C, D):
    """The plain way: one `associative_scan` over all pixels, k = 1, with JAX's own gradients."""
    column, reverse = direction.startswith("column"), direction.endswith("_reversed")

    def read(v):
        v = jnp.swapaxes(v, 2, 3) if column else v
        return v.reshape(*v.shape[:2], -1, *v.shape[4:])

    u, step, B, C = map(read, (x, dt[..., 0, :], B[..., 0, :], C[..., 0, :]))
    step = jnp.einsum("tblr,trd->tbld", step, dt_weight[:, 0]) + dt_bias[:, None, None, 0]
    step = jax.nn.softplus(step)[..., None]
    _, states = jax.lax.associative_scan(
        lambda left, right: (left[0] * right[0], left[1] * right[0] + right[1]),
        (jnp.exp(step * A[:, None, None, 0]), step * u[..., None] * B[..., None, :]),
        axis=2,
        reverse=reverse,
    )
    y = jnp.einsum("tbldn,tbln->tbld", states, C) + u * D[:, None, None, 0]
    shape = (x.shape[3], x.shape[2]) if column else x.shape[2:4]
    y = y.reshape(*x.shape[:2], *shape, -1)
    return jnp.swapaxes(y, 2, 3) if column else y


def of_direction(k: int, arguments: Sequence[jax.Array]) -> list[jax.Array]:
    """The arguments of `ss2d` for its k-th direction alone."""
    x, dt, dt_weight, dt_bias, A, B, C, D = arguments
    one = slice(k, k + 1)
    return [
        *(x, dt[..., one, :], dt_weight[:, one], dt_bias[:, one]),
        *(A[:, one], B[..., one, :], C[..., one, :], D[:, one]),
    ]


def with_gradients(op: Callable[..., jax.Array]) -> Callable:
    """Returns `run(cotangent, *arrays)`: the op's value and the gradients of its arrays."""

    def run(cotangent, *arrays):
        y, pull = jax.vjp(op, *arrays)
        return y, pull(cotangent)

    return run


def _programs(side: str, arguments) -> list[tuple[Callable, list]]:
    """The functions of one side, each with its arguments."""
    if side == CHUNKED:
        return [(functools.partial(ss2d, implementation="xla"), arguments)]
    return [
        (functools.partial(whole_image_scan, direction), of_direction(k, arguments))
        for k, direction in enumerate(DIRECTIONS)
    ]


def measure(side: str, spec: str, repeats: int) -> dict[str, float | list[float]]:
    """Times one side in this process: compile seconds, every run's seconds, peak MiB added."""
    arguments = [jnp.asarray(v) for v in SPECS[spec].arguments()]
    shape = arguments[0].shape
    cotangent = jnp.asarray(np.random.default_rng(1).standard_normal(shape, np.float32))

    def compiled(function, arguments):
        return jax.jit(with_gradients(function)).lower(cotangent, *arguments).compile(), arguments

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    programs = [compiled(*program) for program in _programs(side, arguments)]
    compile_seconds = time.perf_counter() - start
    seconds = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        for program, arrays in programs:
            jax.block_until_ready(program(cotangent, *arrays))
        seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # The first run also touches memory for the first time.
    return {"compile": compile_seconds, "seconds": seconds[1:], "mib": (peak - before) / 1024}


def _send(pipe, *what) -> None:
    pipe.send(measure(*what))


def main() -> None:
    """Prints a table of both sides and their ratios; JSON of every number on the last line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--spec", default="stage3_t1_b1", choices=sorted(SPECS))
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    print(f"{options.spec}: {SPECS[options.spec]}, float32, forward and backward")
    results = {}
    for side in SIDES:
        spawn = multiprocessing.get_context("spawn")  # a process that has not used jax yet
        receive, send = spawn.Pipe(duplex=False)
        what = (send, side, options.spec, options.repeats)
        process = spawn.Process(target=_send, args=what)
        process.start()
        send.close()  # so that a child's death ends the wait
        results[side] = receive.recv()
        process.join()
        seconds = results[side]["seconds"]
        print(
            f"{side:30s} {statistics.median(seconds):7.2f} s "
            f"({min(seconds):.2f} to {max(seconds):.2f} of {len(seconds)}), "
            f"peak {results[side]['mib']:6.0f} MiB, compile {results[side]['compile']:.1f} s",
            flush=True,
        )
    ours, plain = results[CHUNKED], results[WHOLE]
    faster = statistics.median(plain["seconds"]) / statistics.median(ours["seconds"])
    print(f"faster {faster:.1f}x, memory {plain['mib'] / ours['mib']:.1f}x less")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
