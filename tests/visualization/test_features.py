"""Decoder features: the model's logits are unchanged, and how features are drawn."""

import cv2
import jax
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax.devices.sharding import create_mesh
from mtmamba_jax.evaluation.evaluate import (
    create_feature_step,
    create_predict_step,
    mean_activation,
)
from mtmamba_jax.models.mtmamba import create_model
from mtmamba_jax.tasks.table import DEPTH, EDGE
from mtmamba_jax.visualization.features import draw_features
from tests import tiny

TASKS = (EDGE, DEPTH)  # not sorted by name
SMALL = {"encoder": "swin_test", "tasks": TASKS, "state_size": 2}
assert SMALL["encoder"] in tiny.SWIN_SIZES


@pytest.fixture(
    scope="module",
    params=[
        "swin_decoder",  # compiles fastest; `features` and `logits` are the same code in all models
        pytest.param("mtmamba", marks=pytest.mark.slow),
        pytest.param("mtmamba_plus", marks=pytest.mark.slow),
    ],
)
def model(request):
    return create_model(request.param, **SMALL, rngs=nnx.Rngs(0))


def test_features_are_the_heads_inputs_and_leave_the_logits_unchanged(model):
    images = jax.random.normal(jax.random.key(1), (2, 33, 50, 3))
    graph, state = nnx.split(model)
    mesh = create_mesh(2)
    logits, activations = create_feature_step(graph, TASKS, mesh)(state, images)
    plain = create_predict_step(graph, mesh)(state, images)
    features = jax.jit(lambda state, x: nnx.merge(graph, state).features(x))(state, images)
    assert features.shape == (2, 2, 9, 13, 8)
    for i, task in enumerate(TASKS):
        # The same operations, which XLA may fuse differently in a program with more outputs.
        np.testing.assert_allclose(logits[task.name], plain[task.name], rtol=1e-5, atol=1e-6)
        assert activations[task.name].shape == (2, 9, 13)
        np.testing.assert_allclose(
            activations[task.name], np.abs(features[i]).mean(-1), rtol=1e-4, atol=1e-6
        )
        assert not np.allclose(activations["edge"], activations["depth"])


def test_activation_is_the_mean_absolute_value_in_float32():
    feature = np.array([[3.0, -1.0], [-2.0, 2.0]], jax.numpy.bfloat16)
    found = mean_activation(feature)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, [2.0, 2.0])


def test_feature_maps_lie_beside_the_photo_in_order_and_without_padding():
    # A photo of 6 x 8 pixels padded to 10 x 8, two rows above and below; 3 x 2 features.
    photo = np.zeros((10, 8, 3), np.uint8)
    photo[2:8] = 200
    strong, weak, padding = [9, 9], [0, 9], [99, -99]
    maps = {"varied": np.array([strong, weak, padding], np.float32), "even": np.ones((3, 2))}
    sheet = draw_features(photo, maps, (6, 8))
    # Each pixel is drawn as 40 x 40, below 28 pixels of gap and title; columns are 326 apart.
    drawn = [sheet[28 + 20 : 28 + 240 : 40, 6 + 326 * i + 20 :: 40][:, :8] for i in range(3)]
    black, yellow = cv2.applyColorMap(np.array([[0, 255]], np.uint8), cv2.COLORMAP_INFERNO)[0]
    assert (drawn[0] == 200).all()
    # The map's first row covers rows 0 to 3 with the padding, 0 and 1 without.
    assert (drawn[1][:2] == yellow[::-1]).all()
    assert (drawn[1][2:, :4] == black[::-1]).all()
    assert (drawn[1][2:, 4:] == yellow[::-1]).all()
    assert (drawn[2] == black[::-1]).all()
