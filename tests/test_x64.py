"""JAX_ENABLE_X64=1 changes neither the dtypes of a model and its losses nor the kernels."""

import functools

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from mtmamba_jax.kernels.ss2d import ss2d
from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import with_gradients
from mtmamba_jax.kernels.ss2d.arg_specs import ODD
from mtmamba_jax.models.mtmamba import MODELS, abstract_build
from mtmamba_jax.tasks.losses import LOSSES, reduce_pixels
from mtmamba_jax.training import state
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.train import train
from tests.kernels.ss2d_suite import an_abstract_gpu, mark_slow
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config


@pytest.fixture(autouse=True)
def x64():
    with jax.enable_x64(True):
        assert jnp.zeros(1).dtype == "float64"
        yield


def dtypes(tree):
    return {leaf.dtype.name for leaf in jax.tree.leaves(tree)}


@pytest.mark.parametrize("dtype", mark_slow(["float32", "bfloat16"], ["float32"]))
@pytest.mark.parametrize(
    ("platform", "implementation"),
    [
        ("cpu", "xla"),
        ("cuda", "pallas_gpu"),
        ("cuda", "pallas_triton"),
        ("tpu", "pallas_tpu"),
        ("cpu", "reference"),
    ],
)
def test_every_scan_lowers_and_keeps_its_dtypes(platform, implementation, dtype):
    arrays = ODD["prime"].shapes(jnp.dtype(dtype))
    op = functools.partial(ss2d, implementation=implementation)
    with an_abstract_gpu():
        traced = jax.jit(with_gradients(op)).trace(arrays[0], *arrays)
        y, gradients = traced.out_info
        assert [v.dtype for v in (y, *gradients)] == [v.dtype for v in (arrays[0], *arrays)]
        traced.lower(lowering_platforms=(platform,))


@pytest.mark.parametrize("name", mark_slow(MODELS, ["mtmamba_plus"]))
def test_weights_and_logits_are_float32_and_features_in_the_compute_dtype(name):
    config = tiny_config(model__name=name, model__dtype="bfloat16")
    graph, parameters = abstract_build(config.model, config.tasks.selected)
    assert dtypes(parameters) <= {"float32", "int32"}  # BatchNorm counts its batches

    def run(parameters, images):
        model = nnx.merge(graph, parameters)
        rngs = nnx.Rngs(0)
        return model(images, training=True, rngs=rngs), model.features(images)

    images = jax.ShapeDtypeStruct((1, 32, 64, 3), jnp.float32)
    logits, features = jax.eval_shape(run, parameters, images)
    assert dtypes(logits) == {"float32"}
    assert dtypes(features) == {"bfloat16"}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_float32(name):
    logits, label = jnp.ones((1, 2, 3, 3), jnp.float32), jnp.ones((1, 2, 3, 1), jnp.float32)
    valid = jnp.ones((1, 2, 3), bool)
    loss, _ = reduce_pixels(LOSSES[name](logits, label, valid, (1, 2)), valid, (1, 2))
    assert loss.dtype == "float32"


def test_a_run_trains_scores_and_resumes(tmp_path, monkeypatch):
    monkeypatch.setattr(state, "build", build_pixel_model)
    train(tiny_config(train__steps="4"), tmp_path)
    assert train(tiny_config(train__steps="4"), tmp_path).step == 4
    train_losses = [line["loss"] for line in read_metrics(tmp_path) if line["kind"] == "train"]
    with jax.enable_x64(False):
        train(tiny_config(train__steps="4"), tmp_path / "32")
    wanted = [line["loss"] for line in read_metrics(tmp_path / "32") if line["kind"] == "train"]
    assert train_losses == pytest.approx(wanted, rel=1e-5)
