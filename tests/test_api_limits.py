"""What users of the API try that cannot work, or only in one way: each works or names the way."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtmamba_jax as mt
from mtmamba_jax.kernels.ss2d.arg_specs import ODD
from tests.tiny import TINY

ARGUMENTS = ODD["row"].arguments()


def create(**settings):
    sizes = {"encoder": TINY["model.encoder"], "state_size": 2, "expansion": 1}
    return mt.create_model(tasks=mt.CITYSCAPES, rngs=nnx.Rngs(0), **(sizes | settings))


@pytest.fixture(scope="module")
def model():
    return create()


def test_the_scan_takes_lists():
    lists = [array.tolist() for array in ARGUMENTS]
    np.testing.assert_array_equal(mt.ss2d(*lists), mt.ss2d(*ARGUMENTS))


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, "photo", "x must be an array or a nested list of numbers, got a str"),
        (0, None, "x must be an array or a nested list of numbers, got a NoneType"),
        (0, ARGUMENTS[0].astype(np.float16), r"got float16\. Cast it: x\.astype\(jnp\.float32\)"),
        (2, jnp.asarray(ARGUMENTS[2], jnp.bfloat16), r"dt_weight\.astype\(jnp\.float32\)"),
        (0, ARGUMENTS[0][:, :, :0], "every size at least 1, got"),
    ],
)
def test_the_scan_names_an_argument_it_cannot_use(index, value, message):
    arguments = [*ARGUMENTS[:index], value, *ARGUMENTS[index + 1 :]]
    with pytest.raises(ValueError, match=message):
        mt.ss2d(*arguments)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="about programs for a CPU")
@pytest.mark.parametrize("backend", ["pallas_gpu", "pallas_tpu"])
def test_a_forced_backend_of_another_platform_names_the_one_that_runs(backend):
    def loss(x):
        return mt.ss2d(x, *ARGUMENTS[1:], implementation=backend).sum()

    message = rf"{backend} does not run on cpu, only on .*implementation=.xla"
    for program in (loss, jax.jit(loss), jax.grad(loss), jax.jit(jax.grad(loss))):
        with pytest.raises(NotImplementedError, match=message):
            program(ARGUMENTS[0])


@pytest.mark.parametrize("backend", [None, "xla"])
def test_forward_mode_is_refused_with_the_rule_that_is_missing(backend):
    """A decision: docs/api.md names the backend that has it, and JAX's error names the cause."""
    scan = functools.partial(mt.ss2d, implementation=backend)
    with pytest.raises(TypeError, match=r"forward-mode autodiff \(jvp\) .* custom_vjp"):
        jax.jvp(scan, ARGUMENTS, ARGUMENTS)
    scan = functools.partial(mt.ss2d, implementation="reference")
    value, tangent = jax.jvp(scan, ARGUMENTS, ARGUMENTS)
    assert value.shape == tangent.shape == ARGUMENTS[0].shape


def test_export_for_several_platforms_works_with_xla_and_otherwise_names_it():
    together, shapes = ("cpu", "cuda", "tpu"), [jnp.asarray(array) for array in ARGUMENTS]
    with pytest.raises(NotImplementedError, match=r"several platforms at once .*=.xla"):
        jax.export.export(jax.jit(mt.ss2d), platforms=together)(*shapes)
    scan = jax.jit(lambda *arrays: mt.ss2d(*arrays, implementation="xla"))
    assert jax.export.export(scan, platforms=together)(*shapes).platforms == together
    for platform in together:
        jax.export.export(jax.jit(mt.ss2d), platforms=(platform,))(*shapes)


def test_a_task_given_twice_is_refused():
    with pytest.raises(ValueError, match="tasks of different names; got depth, depth"):
        mt.create_model(
            encoder=TINY["model.encoder"], tasks=(mt.NYUDV2[1], mt.NYUDV2[1]), rngs=nnx.Rngs(0)
        )


@pytest.mark.parametrize("shape", [(1, 0, 32, 3), (1, 32, 0, 3), (0, 32, 32, 3), (32, 32, 3)])
def test_images_without_pixels_are_refused(shape, model):
    for network in (model, model.encoder):
        with pytest.raises(ValueError, match="every size at least 1; got"):
            network(jnp.zeros(shape))


def test_float16_is_refused_with_the_dtypes_that_work():
    with pytest.raises(ValueError, match=r"Unknown dtype 'float16'.* Valid: float32, bfloat16"):
        create(dtype="float16")


def cast_to_bfloat16(module):
    cast = nnx.clone(module)
    nnx.update(cast, jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(cast)))
    return cast


def test_a_model_cast_to_bfloat16_takes_lists_and_returns_float32(model):
    images = np.zeros((1, 4, 4, 3)).tolist()
    logits = jax.eval_shape(lambda: cast_to_bfloat16(model)(images))["depth"]
    assert (logits.shape, logits.dtype) == ((1, 4, 4, 1), jnp.float32)


def test_a_scan_module_cast_to_bfloat16_gives_nearly_the_same():
    module = mt.SS2D(tasks=1, features=4, state_size=2, step_rank=1, rngs=nnx.Rngs(0))
    x = np.random.default_rng(0).normal(size=(1, 1, 3, 4, 4)).astype(np.float32)
    # Weights keep 8 bits.
    np.testing.assert_allclose(cast_to_bfloat16(module)(x), module(x), atol=0.05)
