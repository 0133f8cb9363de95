"""Python's garbage collector, kept from stopping training."""

from __future__ import annotations

import gc


def leave_out_of_collections() -> None:
    """Has the garbage collector pass over every object that exists now, until `gc.unfreeze`.

    JAX keeps a million objects of a traced training step. To go through them takes half a second,
    in which no step is handed to a device, and what a checkpoint creates brings that about.
    """
    gc.collect()  # what is garbage by now would stay
    gc.freeze()
