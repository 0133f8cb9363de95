"""Ablations of MTMamba: their blocks learn and replace the parts that their row names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax.convert.model import to_torch
from mtmamba_jax.models.ablations import (
    ABLATIONS,
    AttentionMFE,
    TaskSwin,
)
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_model
from mtmamba_jax.tasks.table import DEPTH, EDGE
from tests import tiny
from tests.models.golden import randomized, run

assert "swin_test" in tiny.SWIN_SIZES
TASKS, FEATURES = 2, 8
SETTINGS = MambaSettings(state_size=2)
# Larger than a window of 12 in one direction, smaller in the other.
Z = jax.random.normal(jax.random.key(1), (TASKS, 1, 5, 14, FEATURES))


CLOSED_CTM, OPEN_CTM = (ABLATIONS[name][-1] for name in ("gate_0", "gate_1"))
NEW = {
    f"{name}_{i}": block
    for name, blocks in ABLATIONS.items()
    for i, block in enumerate(blocks)
    if block is not STM and block not in blocks[:i]
}


def create(block, settings=SETTINGS, **options):
    return randomized(lambda rngs: block(TASKS, FEATURES, settings, rngs=rngs, **options))


def is_cut_off(block, path):
    """Returns True for weights of a part that a fixed gate cuts off."""
    if block is CLOSED_CTM:
        return path[0] in ("norm_shared", "in_proj_shared")
    return block is OPEN_CTM and path[0] in ("norm", "in_proj")


@pytest.mark.parametrize("block", NEW.values(), ids=NEW)
def test_gradients_are_finite_and_nonzero_unless_a_fixed_gate_cuts_them_off(block):
    graph, weights = nnx.split(create(block), nnx.Param)

    @jax.jit
    def gradients(weights, z):
        return jax.grad(lambda w: jnp.mean(nnx.merge(graph, w)(z) ** 3))(weights)

    for path, gradient in nnx.to_flat_state(gradients(weights, Z)):
        assert np.isfinite(gradient[...]).all(), path
        assert np.any(gradient[...]) != is_cut_off(block, path), path


def test_swin_blocks_drop_images_and_tasks_independently_and_only_with_a_key():
    graph, state = nnx.split(create(TaskSwin, drop_path_rate=0.5))
    z = jnp.repeat(Z, 8, axis=1)
    refine = jax.jit(lambda state, key: nnx.merge(graph, state)(z, key))
    first, second, again = (refine(state, jax.random.key(seed)) for seed in (0, 1, 0))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, second)
    # All images are equal.
    dropped = np.isclose(first, z).all((2, 3, 4))
    assert dropped.any(1).all() and not dropped.all(1).any()
    assert (dropped[0] != dropped[1]).any()
    assert not np.isclose(refine(state, None), z).all((2, 3, 4)).any()


@pytest.mark.parametrize("name", ABLATIONS)
def test_every_variant_predicts_all_maps(name):
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
    """Returns which tasks' results change when one task's feature does."""
    graph, state = nnx.split(block)
    refine = jax.jit(lambda state, z: nnx.merge(graph, state)(z) - z)
    before, after = refine(state, Z), refine(state, Z.at[task].multiply(jnp.arange(FEATURES)))
    return [not np.allclose(a, b, atol=1e-6) for a, b in zip(before, after, strict=True)]


def test_cross_task_blocks_exchange_features_unless_their_gate_is_closed():
    assert changes(create(CTM), 0) == [True, True]
    assert changes(create(OPEN_CTM), 0) == [True, True]
    assert changes(create(CLOSED_CTM), 0) == [True, False]
    assert changes(create(TaskSwin), 0) == [True, False]


def test_an_open_gate_passes_the_same_feature_to_every_task():
    block = create(OPEN_CTM)
    kernel = block.out_proj.kernel[...]
    block.out_proj.kernel[...] = np.stack([kernel[0], kernel[0]])
    added = run(block, Z) - Z
    np.testing.assert_allclose(added[0], added[1], atol=1e-6)


def test_only_the_named_parts_are_replaced():
    mfe, gate = (list(map(create, ABLATIONS[f"attention_{part}"])) for part in ("mfe", "gate"))
    assert all(isinstance(block.mfe, AttentionMFE) for block in mfe)
    assert [len(block.mfe.attention.each) for block in mfe] == [TASKS, TASKS, TASKS + 1]
    for block, plain in zip(gate, (STM, STM, CTM), strict=True):
        whole = create(plain)
        assert jax.tree.structure(nnx.state(block.mfe)) == jax.tree.structure(nnx.state(whole.mfe))
        assert block.gate.linear.kernel.shape == whole.gate.kernel.shape


def test_a_variant_is_not_converted_as_the_official_model():
    model = abstract_model(ModelSettings("stm_2", "swin_test", state_size=2), (DEPTH, EDGE))
    with pytest.raises(TypeError, match="got Ablation"):
        to_torch(model)
