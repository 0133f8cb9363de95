"""Segments that are scanned one after the other: each program passes its state on to the next.

A few more programs than the GPU runs at once would leave most of it idle while the last ones scan a
whole reading order. With the order in segments, the multiprocessors that are free early take over
segments of the others.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    Program,
    Scan,
    States,
    Threads,
    sync_threads,
)
from mtmamba_jax.kernels.ss2d.mosaic_gpu.registers import load_states, store_states


def passed_states(scan: Scan, A: Array) -> jax.ShapeDtypeStruct:
    """Returns the shape of the states that are being passed on, [q e 4 128]; `A` is the rates."""
    return jax.ShapeDtypeStruct((scan.programs, *A.shape[1:]), jnp.float32)


class Chain:
    """A program's place among those that scan the same channels in the same direction.

    A program waits for the one that scans the segment before its own. That one has started: GPUs
    start programs in the order of their indices, of which the segment is the slowest. CUDA does not
    promise this; `pallas_gpu.MAX_CHAINED_SEGMENTS = 1` does without.

    Args:
      threads: The distribution of states over threads.
      program: The program.
      passed: Global memory of the shape `passed_states`.
      met: A barrier for all threads.
    """

    def __init__(self, threads: Threads, program: Program, passed, met):
        self._threads, self._met = threads, met
        self._states = passed.at[program.q, program.rows]
        blocks = passed.shape[1] // program.scan.stored_shape[0]
        turns = pl.get_global(plgpu.SemaphoreType.REGULAR((program.scan.programs * blocks,)))
        self._turns = turns.at[program.q * blocks + program.block]
        self._turn = lax.axis_index("segment")

    def receive(self) -> States:
        """Waits for the state after the segment before this one; zero if this is the first."""
        plgpu.semaphore_wait(self._turns, self._turn, decrement=False, memory_scope="gpu")
        found = load_states(self._threads, self._states)
        return jnp.where(self._turn > 0, found, self._threads.zeros())

    def send(self, states: States) -> None:
        """Passes the state after this segment on to the next program."""
        store_states(self._threads, self._states, states)
        sync_threads(self._met)
        plgpu.semaphore_signal(self._turns, memory_scope="gpu")
