"""Pauses of the Python interpreter, in which no step is handed to a device, kept out of training.

Both come of what the thread that writes a checkpoint does, and of the many arrays and objects of a
large model.
"""

from __future__ import annotations

import gc
from collections.abc import Callable

from mtmamba_jax.array_types import Batch
from mtmamba_jax.training.state import TrainState
from mtmamba_jax.training.step import TrainStep

_MOST_REPLACED = 500  # states, of which each array takes a kilobyte: 0.7 GB of Swin-Large's


def keep_replaced(step: TrainStep, is_writing: Callable[[], bool]) -> TrainStep:
    """Returns a training step that frees the states it takes over when nothing is written.

    They hold no memory of a device any more, but freeing an array gives up the interpreter's lock
    (jax 0.10 to 0.12): for a thousand of them a thread that writes gets it as often, for up to 5 ms
    each.

    Args:
      step: takes over its state.
      is_writing: whether a checkpoint is being written.
    """
    replaced: list[TrainState] = []

    def keeping_step(state: TrainState, batch: Batch) -> tuple[TrainState, dict]:
        result = step(state, batch)
        replaced.append(state)
        if len(replaced) > _MOST_REPLACED or not is_writing():
            replaced.clear()
        return result

    return keeping_step


def leave_out_of_collections() -> None:
    """Has the garbage collector skip every object that exists now; `gc.unfreeze` ends that.

    JAX keeps a million objects of a traced training step. To go through them takes half a second,
    and what a checkpoint creates brings that about.
    """
    gc.collect()  # it would skip what is garbage by now
    gc.freeze()
