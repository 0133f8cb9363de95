"""Blocks and whole models reproduce the official code's outputs, losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax import convert
from mtmamba_jax.convert import official as tables
from mtmamba_jax.models.blocks import CTM, MFE, STM, MambaSettings
from mtmamba_jax.models.layers import TaskLinear
from mtmamba_jax.models.mtmamba import MTMamba, MTMambaPlus
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.models.patches import PatchExpand, depth_to_space
from mtmamba_jax.models.swin import Swin, SwinSize
from mtmamba_jax.tasks.losses import multitask_loss
from mtmamba_jax.tasks.table import NYUDV2, OFFICIAL_NAMES, PASCAL_CONTEXT
from tests.models.golden import assert_states_close, group, load, run, value_and_gradients

# float32 on both sides: the agreement of the official code with itself (golden/README).
BLOCK = {"rtol": 1e-4, "atol": 1e-5}
WHOLE_MODEL = 1e-4  # of the largest absolute value


def assert_close_to_largest(found, wanted, name=""):
    np.testing.assert_allclose(
        found, wanted, rtol=0, atol=WHOLE_MODEL * np.abs(wanted).max(), err_msg=name
    )


def channels_last(x):
    return x.transpose(0, 2, 3, 1)


def fill(module, arrays, rules, tasks=()):
    """Puts golden weights in `module`; returns the golden gradients in its structure."""
    nnx.update(module, convert.from_tensors(group(arrays, "param"), module, rules, tasks))
    return convert.from_tensors(group(arrays, "grad"), module, rules, tasks)


class ExtractorWithLinear(nnx.Module):
    """The whole MFE of Eq. 13, with its Linear."""

    def __init__(self, features, rngs):
        self.in_proj = TaskLinear(1, features, 2 * features, rngs=rngs)
        self.mfe = MFE(1, features, MambaSettings(), rngs=rngs)

    def __call__(self, x):
        return self.mfe(self.in_proj(x))


class FinalExpand(nnx.Module):
    """The 4x expansion of the heads, without their projections."""

    def __init__(self, tasks, features, *, dtype, rngs):
        self.expand = TaskLinear(tasks, features, 16 * features, dtype=dtype, rngs=rngs)
        self.norm = TaskLayerNorm(tasks, features, dtype=dtype)

    def __call__(self, x):
        return self.norm(depth_to_space(self.expand(x), 4))


SINGLE_TASK_BLOCKS = {
    "mfe": (
        lambda rngs: ExtractorWithLinear(8, rngs),
        (
            *tables.task_linear_rules("in_proj", "in_proj", bias=False),
            *convert.nest(tables.MFE_RULES, r"mfe\.", ""),
        ),
    ),
    "stm": (lambda rngs: STM(1, 8, MambaSettings(), rngs=rngs), tables.STM_RULES),
}


@pytest.mark.parametrize("name", SINGLE_TASK_BLOCKS)
def test_block_reproduces_the_official_output_and_gradients(name):
    build, rules = SINGLE_TASK_BLOCKS[name]
    arrays, module = load(name), nnx.eval_shape(lambda: build(nnx.Rngs(0)))
    wanted_gradients = fill(module, arrays, rules)
    output, gradients, input_gradient = value_and_gradients(
        module, arrays["input"][None], arrays["cotangent"][None]
    )
    np.testing.assert_allclose(output[0], arrays["output"], **BLOCK)
    np.testing.assert_allclose(input_gradient[0], arrays["input_grad"], **BLOCK)
    assert_states_close(gradients, wanted_gradients, **BLOCK)


# A LayerNorm over so few channels magnifies rounding: the golden gradients themselves differ from
# the float64 ones by up to 5e-5. So float64 must meet the bound of the blocks, and float32 may be
# off by another 1e-6 of the largest value.
@pytest.mark.parametrize(
    ("dtype", "of_largest"), [(jnp.float64, 0.0), (jnp.float32, 1e-6)], ids=["float64", "float32"]
)
@pytest.mark.parametrize(
    ("name", "block"), [("patch_expand", PatchExpand), ("final_patch_expand", FinalExpand)]
)
def test_expansion_reproduces_the_official_output_and_gradients(name, block, dtype, of_largest):
    arrays = load(name)
    with jax.enable_x64(dtype == jnp.float64):
        module = nnx.eval_shape(lambda: block(1, 8, dtype=dtype, rngs=nnx.Rngs(0)))
        wanted_gradients = fill(module, arrays, tables.EXPAND_RULES)
        nnx.update(module, jax.tree.map(lambda x: x.astype(dtype), nnx.state(module, nnx.Param)))
        images, cotangent = (arrays[key].astype(dtype) for key in ("input", "cotangent"))
        output, gradients, input_gradient = value_and_gradients(
            module, channels_last(images)[None], cotangent[None]
        )
        wanted_input_gradient = channels_last(arrays["input_grad"])
        assert output.dtype == dtype
        np.testing.assert_allclose(output[0], arrays["output"], **BLOCK)
        np.testing.assert_allclose(input_gradient[0], wanted_input_gradient, **BLOCK)
        largest = max(np.abs(x).max() for x in jax.tree.leaves(wanted_gradients))
        bound = BLOCK | {"atol": BLOCK["atol"] + of_largest * largest}
        assert_states_close(gradients, wanted_gradients, **bound)


def test_cross_task_block_reproduces_the_official_output_and_gradients():
    arrays, tasks = load("ctm"), ("semseg", "depth", "normals")
    module = nnx.eval_shape(lambda: CTM(3, 8, MambaSettings(), rngs=nnx.Rngs(0)))
    wanted_gradients = fill(module, arrays, tables.CTM_RULES, tasks)

    def stack(prefix):
        return np.stack([arrays[f"{prefix}/{task}"] for task in tasks])

    output, gradients, input_gradient = value_and_gradients(
        module, stack("input"), stack("cotangent")
    )
    np.testing.assert_allclose(output, stack("output"), **BLOCK)
    np.testing.assert_allclose(input_gradient, stack("input_grad"), **BLOCK)
    assert_states_close(gradients, wanted_gradients, **BLOCK)


def test_encoder_reproduces_the_official_features_of_sizes_that_need_padding():
    arrays = load("swin")
    size = SwinSize(8, (2, 2, 6, 2), (1, 2, 4, 8), 4)
    swin = nnx.eval_shape(lambda: Swin(size, rngs=nnx.Rngs(0)))
    nnx.update(swin, convert.from_torch(group(arrays, "param"), swin))
    for i, feature in enumerate(run(swin, channels_last(arrays["input"]))):
        assert_close_to_largest(feature, channels_last(arrays[f"output/{i}"]), f"feature {i}")


OFFICIAL = {
    "mtmamba_nyudv2": (MTMamba, NYUDV2),
    "mtmamba_plus_pascal": (MTMambaPlus, PASCAL_CONTEXT),
}


@pytest.fixture(scope="module", params=OFFICIAL)
def official(request):
    """A small official model: golden arrays, the model with its weights, tasks."""
    create, tasks = OFFICIAL[request.param]
    size = SwinSize(4, (2, 2, 2, 2), (1, 1, 2, 2), 4)

    def construct():
        rngs = nnx.Rngs(0)
        return create(Swin(size, rngs=rngs), tasks, rngs=rngs)

    arrays, model = load(request.param), nnx.eval_shape(construct)
    nnx.update(model, convert.from_torch(group(arrays, "param"), model))
    return arrays, model, tasks


def of_task(arrays, what, task):
    return channels_last(arrays[f"{what}/{OFFICIAL_NAMES.get(task.name, task.name)}"])


def test_model_reproduces_the_official_features_and_logits(official):
    arrays, model, tasks = official
    images = channels_last(arrays["input"])
    graph, state = nnx.split(model)

    @jax.jit
    def predict(state, images):
        model = nnx.merge(graph, state)
        return model.encoder(images), model(images)

    features, logits = predict(state, images)  # one program: they share the encoder
    for i, feature in enumerate(features):
        assert_close_to_largest(feature, channels_last(arrays[f"feature/{i}"]), f"feature {i}")
    assert set(logits) == {task.name for task in tasks}
    for task in tasks:
        assert logits[task.name].dtype == jnp.float32
        assert_close_to_largest(logits[task.name], of_task(arrays, "output", task), task.name)


def test_model_reproduces_the_official_losses_and_gradient_norms(official):
    arrays, model, tasks = official
    labels = {"mask": np.ones(len(arrays["input"]), bool)}
    for task in tasks:
        labels[task.name] = of_task(arrays, "label", task).astype(task.label_dtype)
    graph, parameters, statistics = nnx.split(model, nnx.Param, nnx.BatchStat)

    def loss(parameters):
        logits = nnx.merge(graph, parameters, statistics)(channels_last(arrays["input"]))
        weights = dict.fromkeys(logits, 1.0)
        return multitask_loss(
            tasks, logits, labels, weights=weights, scheme="log", reduction="batch"
        )

    (total, losses), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(parameters)
    np.testing.assert_allclose(total, arrays["loss/total"], rtol=1e-5)
    for name, value in losses.items():
        wanted = arrays[f"loss/{OFFICIAL_NAMES.get(name, name)}"]
        np.testing.assert_allclose(value.mean, wanted, rtol=1e-5, err_msg=name)
    norms = gradient_norms_by_torch_name(model, gradients)
    wanted = group(arrays, "gradnorm")
    assert norms.keys() == wanted.keys()
    largest = max(wanted.values())
    for name, norm in norms.items():
        np.testing.assert_allclose(
            norm, wanted[name], rtol=1e-3, atol=WHOLE_MODEL * largest, err_msg=name
        )


def gradient_norms_by_torch_name(model, gradients):
    rules = convert.model.model_rules(convert.model.find_official_model(model))
    rules = [rule for rule in rules if rule.compute is None]
    tensors = convert.to_tensors(gradients, rules, model.heads.names)
    return {name: np.sqrt(np.square(tensor).sum()) for name, tensor in tensors.items()}
