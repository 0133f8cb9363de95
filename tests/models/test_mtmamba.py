"""MTMamba as a module: sizes, dtypes, drop path, recomputation, Linen and invalid input."""

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
    create_model,
    to_linen,
)
from mtmamba_jax.models.swin import SWIN_SIZES
from mtmamba_jax.tasks.table import CITYSCAPES, DEPTH, EDGE, NYUDV2, PASCAL_CONTEXT
from tests import tiny
from tests.models.golden import run

SMALL = {"encoder": "swin_test", "tasks": (DEPTH, EDGE), "state_size": 2}
assert SMALL["encoder"] in tiny.SWIN_SIZES


@pytest.fixture(scope="module")
def model():
    return create_model(**SMALL, rngs=nnx.Rngs(0))


@pytest.fixture(scope="module")
def predict(model):
    """The model's prediction, compiled once for each shape of images."""
    graph, state = nnx.split(model)
    compiled = jax.jit(lambda state, x: nnx.merge(graph, state)(x))
    return lambda x: compiled(state, x)


def count_parameters(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def images(height=33, width=50, batch=2):
    """Returns random images; by default of the size that `predict` is compiled for once."""
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
def test_every_encoder_predicts_a_map_for_each_task(encoder):
    model = abstract_model(ModelSettings(encoder=encoder), NYUDV2)
    logits = nnx.eval_shape(
        lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 64, 96, 3), "float32")
    )
    assert {name: value.shape for name, value in logits.items()} == {
        task.name: (2, 64, 96, task.channels) for task in NYUDV2
    }


@pytest.mark.slow
def test_zero_padding_does_not_inflate_the_gradient(model):
    """Each norm that zeros pass multiplies the gradient there by 1 / sqrt(epsilon), 300."""

    @nnx.jit
    def gradient_norm(model, image):
        def loss(model):
            return sum(jnp.abs(y[:, 16:48, 16:48]).mean() for y in model(image).values())

        return optax.tree.norm(nnx.state(nnx.grad(loss)(model)))

    whole = images(64, 64, batch=1)
    padded = jnp.zeros_like(whole).at[:, 16:48, 16:48].set(whole[:, 16:48, 16:48])
    assert gradient_norm(model, padded) < 5 * gradient_norm(model, whole)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["mtmamba", "mtmamba_plus", "swin_decoder"])
def test_calls_are_the_program_of_features_then_logits(name, training):
    settings = ModelSettings(name, SMALL["encoder"], state_size=SMALL["state_size"])
    graph, state = nnx.split(abstract_model(settings, SMALL["tasks"]))
    x = jax.ShapeDtypeStruct((2, 33, 50, 3), jnp.float32)

    def rngs():
        return nnx.Rngs(drop_path=jax.random.key(3)) if training else None

    def at_once(state, x):
        return nnx.merge(graph, state)(x, training=training, rngs=rngs())

    def apart(state, x):
        model = nnx.merge(graph, state)
        features = model.features(x, training=training, rngs=rngs())
        assert features.shape == (2, 2, 9, 13, 8)
        return model.logits(features, (33, 50), training=training)

    assert str(jax.make_jaxpr(apart)(state, x)) == str(jax.make_jaxpr(at_once)(state, x))


@pytest.mark.parametrize("size", [(33, 50), (1, 1)])
def test_images_of_any_size_give_finite_maps_of_that_size(predict, size):
    for value in predict(images(*size, batch=1)).values():
        assert value.shape[1:3] == size
        assert np.isfinite(value).all()


def test_images_of_a_batch_are_independent(predict):
    x = images()
    alone, others = predict(x[:1]), predict(x.at[1].set(images(batch=3)[2]))
    for name, value in predict(x).items():
        # Products of another batch size are summed in another order: float32 rounding.
        np.testing.assert_allclose(value[:1], alone[name], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(value[0], others[name][0])
        assert not np.allclose(value[1], others[name][1])


def test_bfloat16_is_close_to_float32_and_keeps_parameters_and_logits_float32(predict):
    half = create_model(**SMALL, dtype="bfloat16", rngs=nnx.Rngs(0))
    assert {x.dtype for x in jax.tree.leaves(nnx.state(half))} == {jnp.dtype("float32")}
    wanted = predict(images())
    for name, value in run(half, images()).items():
        assert value.dtype == jnp.float32
        # bfloat16 has 8 bits of precision; some 30 layers in a row.
        np.testing.assert_allclose(value, wanted[name], atol=0.1 * np.abs(wanted[name]).max())


def test_drop_path_is_random_in_training_only(model, predict):
    graph, state = nnx.split(model)

    @jax.jit
    def train(state, x, key):
        rngs = nnx.Rngs(drop_path=key)
        return nnx.merge(graph, state)(x, training=True, rngs=rngs)["depth"]

    x = images()
    first, second, again = (train(state, x, jax.random.key(seed)) for seed in (0, 1, 0))
    still = predict(x)["depth"]
    assert not np.allclose(first, second)
    assert not np.allclose(first, still)
    np.testing.assert_array_equal(first, again)


def test_recomputing_a_block_keeps_its_gradients():
    block = STM(2, 8, MambaSettings(state_size=2), drop_path_rate=0.5, rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(block, nnx.Param)
    x = jax.random.normal(jax.random.key(1), (2, 3, 4, 5, 8))

    def gradients(policy):
        def loss(parameters, x):
            y = call_block(policy, nnx.merge(graph, parameters), x, jax.random.key(3))
            return jnp.mean(y**2)

        return jax.tree.leaves(jax.jit(jax.grad(loss, argnums=(0, 1)))(parameters, x))

    kept = gradients("none")
    for remat in ("full", "dots"):
        for a, b in zip(gradients(remat), kept, strict=True):
            # The same operations, fused in another way: float32 rounding.
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=remat)


def test_linen_module_predicts_the_same_maps(model, predict):
    module = to_linen(**SMALL)
    x = images()
    shapes = jax.eval_shape(module.init, jax.random.key(0), x)
    assert set(shapes) == {"params"}
    weights = jax.tree.leaves(nnx.state(model, nnx.Param))
    filled = jax.tree.unflatten(jax.tree.structure(shapes["params"]), weights)
    logits = jax.jit(module.apply)({"params": filled}, x)
    for name, value in predict(x).items():
        np.testing.assert_allclose(logits[name], value, rtol=1e-5, atol=1e-6)


def test_linen_modules_have_the_name_of_any_model():
    module = to_linen("mtmamba_plus", **SMALL)
    shapes = jax.eval_shape(module.init, jax.random.key(0), images(32, 32))
    assert set(shapes) == {"params", "batch_stats"}


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
def test_unknown_names_are_rejected_with_a_suggestion(settings, message):
    with pytest.raises(ValueError) as error:
        create_model(**(SMALL | settings), rngs=nnx.Rngs(0))
    assert message in str(error.value)


def test_wrong_images_and_training_without_rngs_are_rejected(model):
    with pytest.raises(ValueError, match=r"\[b h w 3\], channels last.* got \(1, 3, 32, 32\)"):
        model(jnp.zeros((1, 3, 32, 32)))
    with pytest.raises(ValueError, match="pass rngs"):
        model(images(32, 32), training=True)
