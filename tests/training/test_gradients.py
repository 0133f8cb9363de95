"""Gradient norms by what they belong to."""

import jax
import numpy as np
import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.training.gradients import gradient_norms
from mtmamba_jax.training.state import build
from tests.tiny import tiny_config


def test_norms_are_of_the_encoder_each_task_and_what_tasks_share():
    config = tiny_config()
    tasks = configuration.tasks(config)
    random = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda x: random.standard_normal(x.shape).astype("f"), build(config, tasks)[1]
    )
    found = {name: float(value) for name, value in gradient_norms(gradients, tasks).items()}
    parts = ("encoder", "semseg", "depth", "shared")
    assert found.keys() == {"gradient_norm", *(f"gradient_norm/{part}" for part in parts)}

    def norm(arrays):
        return np.sqrt(sum(np.square(array, dtype=np.float64).sum() for array in arrays))

    assert found["gradient_norm"] == pytest.approx(norm(jax.tree.leaves(gradients)), rel=1e-5)
    encoder = jax.tree.leaves(gradients["encoder"])
    assert found["gradient_norm/encoder"] == pytest.approx(norm(encoder), rel=1e-5)
    projections = gradients["heads"].pop("projections")
    stacked = jax.tree.leaves(gradients["decoder"]) + jax.tree.leaves(gradients["heads"])
    for index, task in enumerate(tasks):
        own = [array[index] for array in stacked] + jax.tree.leaves(projections[task.name])
        assert found[f"gradient_norm/{task.name}"] == pytest.approx(norm(own), rel=1e-5)
    shared = [array[2] for array in stacked if len(array) == 3]
    assert found["gradient_norm/shared"] == pytest.approx(norm(shared), rel=1e-5)
