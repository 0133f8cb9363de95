"""What users of the API try that cannot work, or only in one way: each works or names the way."""

import functools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import mtmamba_jax as mt
from mtmamba_jax.kernels.platform_check import require_platform
from mtmamba_jax.kernels.ss2d.arg_specs import ODD
from mtmamba_jax.models.blocks import MambaSettings
from mtmamba_jax.models.plus import SCTM
from tests.tiny import TINY

ARGUMENTS = ODD["row"].arguments()
SEQUENCE = (
    (1, 2, 3, 4),
    (1, 2, 3, 1),
    (1, 1, 4),
    (1, 4),
    (1, 4, 2),
    (1, 2, 3, 2),
    (1, 2, 3, 2),
    (1, 4),
)


def create(**settings):
    sizes = {"encoder": TINY["model.encoder"], "state_size": 2, "expansion": 1}
    return mt.create_model(tasks=mt.CITYSCAPES, rngs=nnx.Rngs(0), **(sizes | settings))


@pytest.fixture(scope="module")
def model():
    return create()


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("dtype", [float, int])
def test_the_scan_takes_lists_of_numbers_as_float32(dtype, x64):
    numbers = [np.asarray(array).astype(dtype) for array in ARGUMENTS]
    wanted = mt.ss2d(*(array.astype(np.float32) for array in numbers))
    with jax.enable_x64(x64):
        found = mt.ss2d(*(array.tolist() for array in numbers))
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, wanted)
    row = [np.ones(shape).tolist() for shape in SEQUENCE]
    with jax.enable_x64(x64):
        assert mt.selective_scan(*row).dtype == jnp.float32


def test_arrays_of_64_bits_are_refused_only_where_jax_has_them():
    wide = [np.asarray(array, np.float64) for array in ARGUMENTS]
    np.testing.assert_array_equal(mt.ss2d(*wide), mt.ss2d(*ARGUMENTS))
    with jax.enable_x64(True), pytest.raises(ValueError, match=r"got float64\. Cast it: x\.ast"):
        mt.ss2d(*wide)


BLOCKS = {
    "SS2D": lambda: mt.SS2D(tasks=2, features=4, state_size=2, step_rank=1, rngs=nnx.Rngs(0)),
    "STM": lambda: mt.STM(2, 4, MambaSettings(state_size=2), rngs=nnx.Rngs(0)),
    "CTM": lambda: mt.CTM(2, 4, MambaSettings(state_size=2), rngs=nnx.Rngs(0)),
    "SCTM": lambda: SCTM(2, 4, MambaSettings(state_size=2), rngs=nnx.Rngs(0)),
}


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("name", BLOCKS)
def test_blocks_take_lists_and_numpys_arrays_and_refuse_others(name, x64):
    block, z = BLOCKS[name](), np.zeros((2, 1, 3, 4, 4), np.float32)
    with jax.enable_x64(x64):
        for given in (z, z.tolist(), z.astype(int).tolist()):
            out = jax.eval_shape(lambda given=given: block(given))
            assert (out.shape, out.dtype) == (z.shape, jnp.float32)
        for wrong, message in (
            (z[:1], r"must have shape \[t b h w c\] = \[2 b h w 4\] .* got \[1 1 3 4 4\]"),
            (z[0], r"got \[1 3 4 4\]"),
            (z[:, :, :0], "every size at least 1"),
            (z.astype(np.float16), r"must be float32 or bfloat16, got float16"),
            (z.astype(int), r"got int(32|64)\. Cast it"),
            (None, "must be an array or a nested list of numbers, got a NoneType"),
            ([[1], [1, 2]], "nested list of numbers, got a list"),
        ):
            with pytest.raises(ValueError, match=message):
                block(wrong)


def test_an_eager_call_of_a_forced_backend_compiles_its_platform_check_once():
    compiled = []

    def listen(event, seconds, **_):
        compiled.append(event.endswith("backend_compile_duration"))

    x = jnp.ones((3, 5, 7))
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for _ in range(3):
            require_platform(x, "test", (jax.default_backend(),), "remedy")
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert sum(compiled) == 1


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


def test_forward_mode_of_the_reference_agrees_with_reverse_mode():
    """The other backends have reverse mode only: a decision, see docs/api.md."""
    rng = np.random.default_rng(0)
    scan = functools.partial(mt.ss2d, implementation="reference")
    tangents = [rng.normal(size=array.shape).astype(np.float32) for array in ARGUMENTS]
    value, change = jax.jvp(scan, ARGUMENTS, tuple(tangents))
    np.testing.assert_allclose(value, mt.ss2d(*ARGUMENTS), rtol=1e-4, atol=1e-5)
    cotangent = rng.normal(size=value.shape).astype(np.float32)
    gradients = jax.vjp(mt.ss2d, *ARGUMENTS)[1](cotangent)  # of the default backend
    through = sum(np.vdot(gradient, t) for gradient, t in zip(gradients, tangents, strict=True))
    # float32 sums of some thousand terms.
    np.testing.assert_allclose(np.vdot(cotangent, change), through, rtol=1e-3)


def test_export_for_several_platforms_works_with_xla_and_otherwise_names_it():
    together, shapes = ("cpu", "cuda", "tpu"), [jnp.asarray(array) for array in ARGUMENTS]
    with pytest.raises(NotImplementedError, match=r"several platforms at once .*=.xla"):
        jax.export.export(jax.jit(mt.ss2d), platforms=together)(*shapes)
    scan = jax.jit(lambda *arrays: mt.ss2d(*arrays, implementation="xla"))
    assert jax.export.export(scan, platforms=together)(*shapes).platforms == together
    for platform in together:
        jax.export.export(jax.jit(mt.ss2d), platforms=(platform,))(*shapes)


def test_a_model_is_exported_for_several_platforms_inside_portable(model):
    graph, weights = nnx.split(model)
    program = jax.jit(lambda weights, x: nnx.merge(graph, weights)(x))
    platforms, images = ("cpu", "cuda"), jnp.zeros((1, 32, 32, 3))
    export = jax.export.export(program, platforms=platforms)
    with pytest.raises(NotImplementedError, match=r"several platforms at once .*portable"):
        export(weights, images)
    with mt.portable():
        assert export(weights, images).platforms == platforms


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
