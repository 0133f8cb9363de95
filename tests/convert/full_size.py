"""Converts a full-size official model in both directions and prints the memory used.

python -m tests.convert.full_size mtmamba
"""

import resource
import sys

import jax
import numpy as np
from flax import nnx

from mtmamba_jax.convert import from_torch, to_torch
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_model
from mtmamba_jax.tasks.table import PASCAL_CONTEXT
from tests.convert.state_dicts import assert_same_bits, ones


def main(name: str) -> None:
    """Converts the model `name`; the last line printed is the peak memory in GiB."""
    model = abstract_model(ModelSettings(name), PASCAL_CONTEXT)
    graph, shapes = nnx.split(model)
    placeholders = jax.tree.map(lambda x: ones(x.shape).astype(x.dtype, copy=False), shapes)
    random, state_dict = np.random.default_rng(0), to_torch(nnx.merge(graph, placeholders))
    for array in state_dict.values():
        if array.dtype == np.float32:
            random.random(dtype=np.float32, out=array)
    written = to_torch(nnx.merge(graph, from_torch(state_dict, model)))
    assert_same_bits(written, state_dict)
    size = sum(array.nbytes for array in state_dict.values())
    print(f"{name}: a state dict of {size / 2**30:.2f} GiB; peak of the process in GiB:")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)


if __name__ == "__main__":
    main(sys.argv[1])
