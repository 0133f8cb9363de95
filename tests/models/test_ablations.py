"""MTMamba with parts replaced: every variant's blocks learn, and do what their row says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax.convert.model import to_torch
from mtmamba_jax.models.ablations import (
    ABLATIONS,
    AttentionMFE,
    ClosedCTM,
    OpenCTM,
    TaskSwin,
)
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_model, create_model
from mtmamba_jax.tasks import DEPTH, EDGE
from tests import tiny
from tests.models.golden import run

SMALL = {"encoder": "swin_test", "tasks": (DEPTH, EDGE), "state_size": 2}
assert SMALL["encoder"] in tiny.SWIN_SIZES
TASKS, FEATURES = 2, 8
SETTINGS = MambaSettings(state_size=2)
# Larger than a window of 12 in one direction, smaller in the other.
Z = jax.random.normal(jax.random.key(1), (TASKS, 1, 5, 14, FEATURES))


NEW = [block for block in dict.fromkeys(sum(ABLATIONS.values(), ())) if block is not STM]


def create(block, settings=SETTINGS, **options):
    return block(TASKS, FEATURES, settings, rngs=nnx.Rngs(0), **options)


def name_of(block):
    return getattr(block, "__name__", "shifted TaskSwin")


def is_cut_off(block, path):
    """Whether a weight is of a part that a fixed gate leaves without a say."""
    if block is ClosedCTM:
        return path[0] in ("norm_shared", "in_proj_shared")
    return block is OpenCTM and path[0] in ("norm", "in_proj")


@pytest.mark.parametrize("block", NEW, ids=name_of)
def test_every_weight_has_a_finite_gradient_and_those_that_count_one_that_is_not_0(block):
    graph, weights = nnx.split(create(block), nnx.Param)

    @jax.jit
    def gradients(weights, z):
        return jax.grad(lambda w: jnp.mean(nnx.merge(graph, w)(z) ** 3))(weights)

    for path, gradient in nnx.to_flat_state(gradients(weights, Z)):
        assert np.isfinite(gradient[...]).all(), path
        assert np.any(gradient[...]) != is_cut_off(block, path), path


def test_swin_blocks_drop_paths_of_images_and_tasks_by_themselves_and_only_with_a_key():
    graph, state = nnx.split(create(TaskSwin, drop_path_rate=0.5))
    z = jnp.repeat(Z, 8, axis=1)
    refine = jax.jit(lambda state, key: nnx.merge(graph, state)(z, key))
    first, second, again = (refine(state, jax.random.key(seed)) for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    # All images are the same one.
    dropped = np.isclose(first, z).all((2, 3, 4))
    assert dropped.any(1).all() and not dropped.all(1).any()
    assert (dropped[0] != dropped[1]).any()
    assert not np.isclose(refine(state, None), z).all((2, 3, 4)).any()


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_variant_is_a_model_that_gives_all_maps(name):
    model = abstract_model(ModelSettings(name, "swin_test", state_size=2), (DEPTH, EDGE))
    logits = nnx.eval_shape(
        lambda m, x: m(x), model, jax.ShapeDtypeStruct((2, 33, 64, 3), "float32")
    )
    assert {task: value.shape for task, value in logits.items()} == {
        "depth": (2, 33, 64, 1),
        "edge": (2, 33, 64, 1),
    }


@pytest.mark.parametrize("name", ["swin_decoder", "attention_mfe", "gate_0"])
def test_bfloat16_reaches_every_part_of_a_variant(name):
    settings = MambaSettings(state_size=2, dtype=jnp.bfloat16)
    for block in ABLATIONS[name]:
        module = create(block, settings)
        found = nnx.eval_shape(lambda m, z: m(z), module, Z.astype(jnp.bfloat16))
        assert found.dtype == jnp.bfloat16


def changes(block, task):
    """Which tasks' results change when one task's feature does."""
    graph, state = nnx.split(block)
    refine = jax.jit(lambda state, z: nnx.merge(graph, state)(z) - z)
    before, after = refine(state, Z), refine(state, Z.at[task].multiply(jnp.arange(FEATURES)))
    return [not np.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]


def test_tasks_meet_in_a_cross_task_block_unless_its_gate_is_closed():
    assert changes(create(CTM), 0) == [True, True]
    assert changes(create(OpenCTM), 0) == [True, True]
    assert changes(create(ClosedCTM), 0) == [True, False]
    assert changes(create(TaskSwin), 0) == [True, False]


def test_an_open_gate_gives_every_task_the_same_feature_before_its_own_projection():
    block = create(OpenCTM)
    block.out_proj.kernel[...] = block.out_proj.kernel[...].at[1].set(block.out_proj.kernel[0])
    added = run(block, Z) - Z
    np.testing.assert_allclose(added[0], added[1], atol=1e-6)


def test_only_the_parts_that_a_row_names_are_replaced():
    mfe, gate = (list(map(create, ABLATIONS[f"attention_{part}"])) for part in ("mfe", "gate"))
    assert all(isinstance(block.mfe, AttentionMFE) for block in mfe)
    assert [len(block.mfe.attention.each) for block in mfe] == [TASKS, TASKS, TASKS + 1]
    for block, plain in zip(gate, (STM, STM, CTM), strict=True):
        whole = create(plain)
        assert jax.tree.structure(nnx.state(block.mfe)) == jax.tree.structure(nnx.state(whole.mfe))
        assert block.gate.linear.kernel.shape == whole.gate.kernel.shape


def test_a_variant_is_not_taken_for_the_official_codes_model():
    model = create_model(name="stm_2", **SMALL, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="got Ablation"):
        to_torch(model)
