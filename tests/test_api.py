"""The public API: `import mtmamba_jax as mt`."""

import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtmamba_jax as mt
from mtmamba_jax.models.swin import SWIN_SIZES
from tests.tiny import TINY

IMPORT = """
import sys
import mtmamba_jax as mt
assert not {"jax", "flax", "numpy"} & {*sys.modules}, "importing the package alone imports others"
import jax, flax.nnx
before = set(sys.modules)
for name in mt.__all__:
    assert getattr(mt, name) is not None
slow = {"tensorflow", "torch", "matplotlib.pyplot", "scipy.optimize", "tensorflow_datasets"}
assert not slow & (set(sys.modules) - before), slow & set(sys.modules)
"""


def test_names_are_imported_when_used_and_without_slow_packages():
    found = subprocess.run([sys.executable, "-c", IMPORT], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="mtmamba_jax' has no attribute 'Mamba'"):
        _ = mt.Mamba
    assert {*mt.__all__} <= {*dir(mt)}


@pytest.fixture(scope="module")
def model():
    assert TINY["model.encoder"] in SWIN_SIZES
    return mt.create_model(
        encoder=TINY["model.encoder"], tasks=mt.NYUDV2, state_size=2, rngs=nnx.Rngs(0)
    )


def test_predictor_maps_photos_of_any_size_to_units(model):
    predictor = mt.Predictor(model, mt.NYUDV2, (32, 64))
    rng = np.random.default_rng(0)
    for size in ((32, 64), (75, 50)):
        maps = predictor(rng.integers(0, 256, (*size, 3), np.uint8))
        assert list(maps) == ["semseg", "depth", "edge", "normals"]
        assert (maps["semseg"].dtype, maps["semseg"].shape) == (np.uint8, size)
        assert (maps["depth"].dtype, maps["depth"].shape) == (np.float32, size)
        assert 0 <= maps["edge"].min() <= maps["edge"].max() <= 1
        np.testing.assert_allclose(np.linalg.norm(maps["normals"], axis=-1), 1, rtol=1e-5)


def test_predictor_reads_the_logits_of_the_model(model):
    photo = np.random.default_rng(1).integers(0, 256, (32, 64, 3), np.uint8)
    mean, deviation = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
    images = jnp.asarray((photo / 255 - mean) / deviation, jnp.float32)[None]
    logits = nnx.jit(lambda model, x: model(x))(model, images)
    found = mt.Predictor(model, mt.NYUDV2, (32, 64))(photo)
    # Bound: float32 sums in another order, of values up to 10.
    np.testing.assert_allclose(found["depth"], logits["depth"][0, ..., 0], atol=1e-4)


@pytest.mark.parametrize(
    "photo",
    [
        np.zeros((32, 64, 3), np.float32),
        np.zeros((32, 64), np.uint8),
        np.zeros((32, 64, 4), np.uint8),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_predictor_refuses_what_is_not_an_rgb_photo(photo, model):
    with pytest.raises(ValueError, match=r"must be a uint8 RGB array \[h w 3\], got"):
        mt.Predictor(model, mt.NYUDV2, (32, 64))(photo)
