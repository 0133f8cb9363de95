"""MTMamba as a module: sizes, dtypes, drop path, recomputation, Linen, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from mtmamba_jax.models.blocks import STM, MambaSettings
from mtmamba_jax.models.layers import call_block
from mtmamba_jax.models.mtmamba import (
    ModelSettings,
    abstract_model,
    count_parameters,
    create_model,
    to_linen,
)
from mtmamba_jax.models.swin import SWIN_SIZES
from mtmamba_jax.tasks import CITYSCAPES, DEPTH, EDGE, NYUDV2, PASCAL_CONTEXT
from tests import tiny
from tests.models.golden import run

SMALL = {"encoder": "swin_test", "tasks": (DEPTH, EDGE), "state_size": 2}
assert SMALL["encoder"] in tiny.SWIN_SIZES


@pytest.fixture(scope="module")
def model():
    return create_model(**SMALL, rngs=nnx.Rngs(0))


def images(height, width, batch=1):
    return jax.random.normal(jax.random.key(1), (batch, height, width, 3))


@pytest.mark.parametrize(
    ("name", "tasks", "parameters"),
    [
        ("mtmamba", NYUDV2, 307_999_137),
        ("mtmamba", PASCAL_CONTEXT, 335_858_326),
        ("mtmamba", CITYSCAPES, 252_271_688),
        ("mtmamba_plus", NYUDV2, 315_021_249),
        ("mtmamba_plus", PASCAL_CONTEXT, 343_231_606),
        ("mtmamba_plus", CITYSCAPES, 258_595_976),
    ],
)
def test_swin_large_has_the_official_number_of_parameters(name, tasks, parameters):
    model = abstract_model(ModelSettings(name, "swin_large"), tasks)
    assert count_parameters(model) == parameters
    assert count_parameters(model.encoder) == 195_201_204


@pytest.mark.parametrize("encoder", SWIN_SIZES)
def test_every_encoder_gives_a_map_for_each_task(encoder):
    model = abstract_model(ModelSettings(encoder=encoder), NYUDV2)
    logits = nnx.eval_shape(
        lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 64, 96, 3), "float32")
    )
    assert {name: value.shape for name, value in logits.items()} == {
        task.name: (2, 64, 96, task.channels) for task in NYUDV2
    }


def test_the_first_gradient_of_a_padded_image_is_that_of_a_whole_one(model):
    """Zeros that reach norm after norm multiply it by 1 / sqrt(epsilon), 300, each time."""

    @nnx.jit
    def gradient_norm(model, image):
        def loss(model):
            return sum(jnp.abs(y[:, 16:48, 16:48]).mean() for y in model(image).values())

        return optax.tree.norm(nnx.state(nnx.grad(loss)(model)))

    whole = images(64, 64)
    padded = jnp.zeros_like(whole).at[:, 16:48, 16:48].set(whole[:, 16:48, 16:48])
    assert gradient_norm(model, padded) < 5 * gradient_norm(model, whole)


@pytest.mark.parametrize("name", ["mtmamba", "mtmamba_plus", "swin_decoder"])
def test_a_prediction_is_the_heads_of_the_features_in_training_too(name):
    model = create_model(name, **SMALL, rngs=nnx.Rngs(0))
    x = images(33, 50, batch=2)
    for training in (False, True):
        graph, state = nnx.split(model)

        @jax.jit
        def both(state, x, training=training, graph=graph):
            def rngs():
                return nnx.Rngs(drop_path=jax.random.key(3)) if training else None

            apart, whole = nnx.merge(graph, state), nnx.merge(graph, state)
            features = apart.features(x, training=training, rngs=rngs())
            logits = apart.logits(features, (33, 50), training=training)
            return features, logits, whole(x, training=training, rngs=rngs())

        features, logits, wanted = both(state, x)
        assert features.shape == (2, 2, 9, 13, 8)
        for task, value in wanted.items():
            np.testing.assert_array_equal(logits[task], value)


@pytest.mark.parametrize("size", [(33, 50), (1, 1)])
def test_any_image_size_gives_finite_maps_of_that_size(model, size):
    for value in run(model, images(*size)).values():
        assert value.shape[1:3] == size
        assert np.isfinite(value).all()


def test_images_of_a_batch_do_not_see_each_other(model):
    x = images(32, 32, batch=4)
    alone = run(model, x[2:3])
    for name, value in run(model, x).items():
        # Products of another batch size add up in another order: float32 rounding.
        np.testing.assert_allclose(value[2:3], alone[name], rtol=1e-4, atol=1e-5)


def test_bfloat16_computes_near_float32_and_keeps_parameters_and_logits_float32(model):
    half = create_model(**SMALL, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    wanted = run(model, images(32, 32))
    for name, value in run(half, images(32, 32)).items():
        assert value.dtype == jnp.float32
        # bfloat16 keeps 8 bits; some 30 layers in a row.
        np.testing.assert_allclose(value, wanted[name], atol=0.1 * np.abs(wanted[name]).max())


def test_drop_path_is_off_without_training_and_random_with_it(model):
    graph, state = nnx.split(model)

    @jax.jit
    def train(state, x, key):
        rngs = nnx.Rngs(drop_path=key)
        return nnx.merge(graph, state)(x, training=True, rngs=rngs)["depth"]

    x = images(32, 32, batch=4)
    first, second, again = (train(state, x, jax.random.key(seed)) for seed in (0, 1, 0))
    still = run(model, x)["depth"]
    assert not np.allclose(first, second)
    assert not np.allclose(first, still)
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize("remat", ["full", "dots"])
def test_recomputing_a_block_does_not_change_its_gradients(remat):
    block = STM(2, 8, MambaSettings(state_size=2), drop_path_rate=0.5, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(block, nnx.Param)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 5, 8))

    def gradients(policy):
        def loss(parameters, x):
            y = call_block(policy, nnx.merge(graph, parameters), x, jax.random.key(3))
            return jnp.mean(y**2)

        return jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters, x))

    for a, b in zip(gradients(remat), gradients("none"), strict=True):
        # The same operations in another order of fusion: float32 rounding.
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_linen_module_gives_the_same_maps(model):
    module = to_linen(**SMALL)
    x = images(32, 32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    assert set(variables) == {"params"}
    logits = jax.jit(module.apply)(variables, x)
    graph, state = nnx.split(model, nnx.Param)
    parameters = jax.tree.leaves(variables["params"])
    filled = nnx.merge(graph, jax.tree.unflatten(jax.tree.structure(state), parameters))
    for name, value in run(filled, x).items():
        np.testing.assert_allclose(logits[name], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "swin_larg"}, "Unknown encoder 'swin_larg'. Did you mean 'swin_large'?"),
        ({"name": "mtmambo"}, "Unknown model 'mtmambo'. Did you mean 'mtmamba'?"),
        ({"dtype": "float16"}, "Unknown dtype 'float16'. Did you mean 'bfloat16'?"),
        ({"remat": "all"}, "Unknown remat policy 'all'."),
        ({"tasks": ()}, "at least one task"),
    ],
)
def test_unknown_setting_is_refused_with_the_nearest(settings, message):
    with pytest.raises(ValueError) as error:
        create_model(**(SMALL | settings), rngs=nnx.Rngs(0))
    assert message in str(error.value)


def test_wrong_images_and_training_without_rngs_are_refused(model):
    with pytest.raises(ValueError, match=r"\[b h w 3\], channels last; got \(1, 3, 32, 32\)"):
        model(jnp.zeros((1, 3, 32, 32)))
    with pytest.raises(ValueError, match="pass rngs"):
        model(images(32, 32), training=True)
