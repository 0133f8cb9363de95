"""Gradient norms belong to the encoder, to a task or to what tasks share."""

import functools

import jax
import numpy as np
import pytest

from mtmamba_jax.models.mtmamba import MODELS, abstract_build
from mtmamba_jax.training.gradients import gradient_norms
from tests.tiny import tiny_config


def test_norms_are_those_of_the_parts():
    config = tiny_config()
    tasks = config.tasks.selected
    random = np.random.default_rng(0)
    gradients = jax.tree.map(
        lambda x: random.standard_normal(x.shape).astype("f"),
        abstract_build(config.model, tasks)[1],
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


TASKS = ("semseg", "depth", "edge", "normals")


@functools.cache
def build(model, count):
    config = tiny_config(model__name=model, tasks__names=repr(TASKS[:count]))
    tasks = config.tasks.selected
    return tasks, abstract_build(config.model, tasks)[1]


def owners(model, count, part):
    """Returns the parts with a norm, for a gradient of 1 where `part` is in an array's name."""
    tasks, shapes = build(model, count)
    sizes = []

    def fill(path, leaf):
        chosen = part in jax.tree_util.keystr(path, simple=True, separator="/")
        sizes.append(leaf.size * chosen)
        return np.full(leaf.shape, float(chosen), np.float32)

    gradients = jax.tree_util.tree_map_with_path(fill, shapes)
    found = {name: float(value) for name, value in gradient_norms(gradients, tasks).items()}
    assert sum(sizes) > 0
    assert found["gradient_norm"] == pytest.approx(np.sqrt(sum(sizes)), rel=1e-5)
    parts = {name.removeprefix("gradient_norm/"): v for name, v in found.items() if "/" in name}
    assert np.sum(np.square(list(parts.values()))) == pytest.approx(sum(sizes), rel=1e-5)
    return {name for name, value in parts.items() if value > 0}


SLOW = pytest.mark.slow  # other numbers of tasks, each another model


@pytest.mark.parametrize("count", [pytest.param(1, marks=SLOW), 4])
@pytest.mark.parametrize("model", MODELS)
def test_squares_of_the_parts_add_up(model, count):
    found = owners(model, count, "")
    assert found - {"shared"} == {"encoder", *TASKS[:count]}


@pytest.mark.parametrize("count", [pytest.param(2, marks=SLOW), pytest.param(3, marks=SLOW), 4])
@pytest.mark.parametrize("array", ["conv_shared/kernel", "conv_shared/bias", "bias_shared"])
def test_arrays_without_a_task_axis_are_shared(array, count):
    assert owners("mtmamba_plus", count, array) == {"shared"}


@pytest.mark.parametrize("model", ["swin_decoder", "attention_mfe", "attention_gate"])
@pytest.mark.parametrize("count", [pytest.param(1, marks=SLOW), pytest.param(2, marks=SLOW), 4])
def test_listed_modules_belong_to_their_task(model, count):
    for index, task in enumerate(TASKS[:count]):
        assert owners(model, count, f"/each/{index}/") == {task}
    if model == "attention_mfe" and count > 1:
        assert owners(model, count, f"/each/{count}/") == {"shared"}
