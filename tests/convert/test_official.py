"""Official state dicts are converted in both directions; one error lists all that does not fit."""

import functools
import subprocess
import sys

import jax
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax import convert
from mtmamba_jax.convert.official import CTM_RULES, STM_RULES
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.mtmamba import (
    ModelSettings,
    MTMamba,
    MTMambaPlus,
    abstract_model,
    to_linen,
)
from mtmamba_jax.models.swin import Swin, SwinSize
from mtmamba_jax.tasks.table import CITYSCAPES, DEPTH, EDGE, NYUDV2, OFFICIAL_NAMES, PASCAL_CONTEXT
from tests.convert.state_dicts import assert_same_bits, microsoft_index, swin_state_dict
from tests.models.golden import group, load

SMALL = SwinSize(4, (2, 2, 2, 2), (1, 1, 2, 2), 4)
MODELS = {
    "mtmamba_nyudv2": (MTMamba, NYUDV2),
    "mtmamba_plus_pascal": (MTMambaPlus, PASCAL_CONTEXT),
}


def create(model=MTMamba, tasks=NYUDV2):
    rngs = nnx.Rngs(0)
    return model(Swin(SMALL, rngs=rngs), tasks, rngs=rngs)


def random_state_dict(golden):
    """Returns random arrays with the official code's names, including its buffers."""
    random, found = np.random.default_rng(0), {}
    for name, array in group(load(golden), "param").items():
        if name.endswith("num_batches_tracked"):
            found[name] = np.asarray(random.integers(1, 1 << 20), np.int64)
        else:
            found[name] = random.normal(size=array.shape).astype(np.float32)
        if name.endswith("bias_table"):
            found[name.replace("bias_table", "index")] = microsoft_index(SMALL.window)
    return dict(sorted(found.items()))  # sorted names mean the official order of tasks


@functools.cache
def _abstract(model, tasks):
    return nnx.eval_shape(lambda: create(model, tasks))


def create_abstract(model=MTMamba, tasks=NYUDV2):
    """Returns a model without weights, which a test may fill."""
    return nnx.clone(_abstract(model, tasks))


@pytest.fixture
def abstract():
    return create_abstract()


@pytest.mark.parametrize("golden", MODELS)
def test_a_model_is_converted_back_to_the_same_state_dict(golden):
    state_dict, model = random_state_dict(golden), create_abstract(*MODELS[golden])
    nnx.update(model, convert.from_torch(state_dict, model))
    assert_same_bits(convert.to_torch(model), state_dict)


JOINT = {"norm_share.weight": 0, "norm_share.bias": 0, "op_share.in_proj.weight": 1}
JOINT |= {"conv_share.0.weight": 1}


@pytest.mark.parametrize("golden", MODELS)
def test_concatenated_tasks_are_read_in_the_order_of_the_file(golden):
    model, arrays = create_abstract(*MODELS[golden]), group(load(golden), "param")
    wanted = convert.from_torch(arrays, model)
    tasks = convert.identify(arrays).tasks
    assert tasks[-2:] == ("edge", "normals"), "the golden file's order is not the official one"
    official = [*tasks[:-2], "normals", "edge"]
    for order in (official, tasks[::-1]):
        places = [tasks.index(task) for task in order]
        moved = dict(arrays)
        for name, array in arrays.items():
            axis = next((axis for end, axis in JOINT.items() if name.endswith(end)), None)
            if axis is not None:
                parts = np.split(array, len(tasks), axis)
                moved[name] = np.concatenate([parts[place] for place in places], axis)
        heads = {name: moved.pop(name) for name in arrays if name.startswith("final_project.")}
        for task in order:
            theirs = OFFICIAL_NAMES.get(task, task)
            moved |= {name: heads[name] for name in heads if name.split(".")[1] == theirs}
        found = convert.from_torch(moved, model)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        if order == official:  # sorted names do not tell the order
            found = convert.from_torch(dict(sorted(moved.items())), model)
            jax.tree.map(np.testing.assert_array_equal, found, wanted)
            nnx.update(model, wanted)
            written = convert.to_torch(model)
            for name, array in moved.items():
                np.testing.assert_array_equal(written[name], array, err_msg=name)


@pytest.mark.parametrize("golden", MODELS)
def test_the_encoder_of_a_model_is_converted_alone(golden):
    state_dict = random_state_dict(golden)
    encoder = nnx.eval_shape(lambda: Swin(SMALL, rngs=nnx.Rngs(0)))
    nnx.update(encoder, convert.encoder_from_torch(state_dict, encoder))
    wanted = {k.removeprefix("backbone."): v for k, v in state_dict.items() if "backbone." in k}
    assert_same_bits(convert.encoder_to_torch(encoder), wanted)


def test_the_contents_of_a_state_dict_are_described_in_words():
    description = str(convert.identify(random_state_dict("mtmamba_plus_pascal")))
    assert description == (
        "MTMamba++ with a Swin (width 4, depths 2,2,2,2, heads 1,1,2,2, window 4), expansion 2, "
        "state size 16 and tasks edge, human_parts, normals, saliency, semseg"
    )


def test_gradients_of_a_block_are_converted_back_to_the_same_tensors():
    tasks = ("semseg", "depth", "normals")
    for name, build, table in (
        ("ctm", lambda rngs: CTM(3, 8, MambaSettings(), rngs=rngs), CTM_RULES),
        ("stm", lambda rngs: STM(1, 8, MambaSettings(), rngs=rngs), STM_RULES),
    ):
        module = nnx.eval_shape(lambda build=build: build(nnx.Rngs(0)))
        gradients = group(load(name), "grad")
        state = convert.from_tensors(gradients, module, table, tasks)
        assert_same_bits(convert.to_tensors(state, table, tasks), gradients)


def test_linen_parameters_have_the_same_paths_and_shapes():
    tasks = (DEPTH, EDGE)
    model = abstract_model(ModelSettings(encoder="swin_nano"), tasks)
    linen = to_linen(encoder="swin_nano", tasks=tasks)
    images = np.zeros((1, 32, 32, 3), np.float32)
    shapes = jax.eval_shape(linen.init, jax.random.key(0), images)
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), nnx.state(model, nnx.Param))
    state = convert.from_torch(convert.to_torch(nnx.merge(nnx.graphdef(model), zeros)), model)
    found, wanted = (
        {
            jax.tree_util.keystr(path, simple=True): leaf.shape
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (nnx.to_pure_dict(state), shapes["params"])
    )
    assert found == wanted


def error(state_dict, model):
    with pytest.raises(ValueError) as raised:
        convert.from_torch(state_dict, model)
    return str(raised.value)


def test_everything_that_does_not_fit_is_in_one_error(abstract):
    state_dict = random_state_dict("mtmamba_nyudv2")
    table = "backbone.stages.0.blocks.1.attn.w_msa.relative_position_bias_table"
    del state_dict["final_project.edge.bias"], state_dict["block_3.1.op_share.Ds"]
    state_dict["block_1.depth_0.op.A_logs"] = np.zeros((3, 16), np.float32)
    state_dict["block_2.sal_0.norm.weight"] = np.zeros(16, np.float32)
    state_dict["backbone.norm2.bias"][3] = np.nan
    state_dict["concat_layers.depth_1.bias"] = np.full(8, 1e300)
    state_dict["backbone.norm3.bias"] = np.zeros(32, np.int8)
    state_dict[table.replace("bias_table", "index")] = microsoft_index(4)[::-1]
    assert error(state_dict, abstract) == (
        "The state dict does not fit the model:\n"
        "  unexpected tensors, which the model has no place for (1):\n"
        "    block_2.sal_0.norm.weight\n"
        "  missing tensors (2):\n"
        "    block_3.1.op_share.Ds\n"
        "    final_project.edge.bias\n"
        "  wrong shapes (1):\n"
        "    block_1.depth_0.op.A_logs: expected [128, 16], got [3, 16]\n"
        "  wrong dtypes (1):\n"
        "    backbone.norm3.bias: expected floating, got int8\n"
        "  NaN or infinite values (2):\n"
        "    backbone.norm2.bias\n"
        "    concat_layers.depth_1.bias\n"
        "  wrong buffers, whose values follow from the model's size (1):\n"
        f"    {table.replace('bias_table', 'index')}\n"
        "It holds MTMamba with a Swin (width 4, depths 2,2,2,2, heads 1,1,2,2, window 4), "
        "expansion 2, state size 16 and tasks depth, edge, normals, semseg; the model is MTMamba "
        "with a Swin (width 4, depths 2,2,2,2, heads 1,1,2,2, window 4), expansion 2, state size "
        "16 and tasks depth, edge, normals, semseg."
    )


def test_long_lists_show_the_first_names_and_the_number_of_the_others():
    model = create_abstract(tasks=CITYSCAPES)
    message = error(random_state_dict("mtmamba_nyudv2"), model)
    assert "unexpected tensors, which the model has no place for (" in message
    assert message.count("\n    block_1.edge_") + message.count("\n    block_2.edge_") <= 20
    assert " more\n" in message
    assert "tasks depth, edge, normals, semseg; the model is" in message


@pytest.mark.parametrize(
    ("state_dict", "model", "message"),
    [
        (
            lambda: random_state_dict("mtmamba_plus_pascal"),
            MTMamba,
            r"holds MTMamba\+\+ with .*; the model is MTMamba\. Use a configuration of",
        ),
        (
            lambda: random_state_dict("mtmamba_nyudv2"),
            MTMambaPlus,
            r"holds MTMamba with .*; the model is MTMamba\+\+",
        ),
        (
            lambda: swin_state_dict("timm", SMALL, classifier=True),
            MTMamba,
            r"holds a Swin \(width 4.*with the names of timm; the model is MTMamba",
        ),
        (
            lambda: {"fc.weight": np.zeros(3, np.float32)},
            MTMamba,
            r"(?s)Expected.*timm: patch_embed\.proj\.weight, layers\.0\.blocks\.0\.attn\.rel"
            r".*Got fc\.weight\.",
        ),
        (dict, MTMamba, r"not the names of MTMamba\+\+ \(block_ctm\.\*\)(?s:.*)Got no names\."),
    ],
)
def test_another_model_is_refused(state_dict, model, message):
    with pytest.raises(ValueError, match=message):
        convert.from_torch(state_dict(), create_abstract(model))


def test_an_encoder_of_another_size_is_refused_with_both_described(abstract):
    other = swin_state_dict("mmsegmentation", SwinSize(8, (2, 2, 2, 2), (1, 1, 2, 2), 4))
    decoder = {k: v for k, v in random_state_dict("mtmamba_nyudv2").items() if "backbone" not in k}
    whole = decoder | {f"backbone.{name}": array for name, array in other.items()}
    assert error(whole, abstract) == (
        "The state dict holds a Swin (width 8, depths 2,2,2,2, heads 1,1,2,2, window 4); the model "
        "has a Swin (width 4, depths 2,2,2,2, heads 1,1,2,2, window 4). Use a model with that "
        "encoder, or another file."
    )


def test_a_decoder_alone_is_refused():
    decoder = {k: v for k, v in random_state_dict("mtmamba_nyudv2").items() if "backbone" not in k}
    encoder = nnx.eval_shape(lambda: Swin(SMALL, rngs=nnx.Rngs(0)))
    with pytest.raises(ValueError, match=r"holds MTMamba with an encoder of unknown size and task"):
        convert.encoder_from_torch(decoder, encoder)
    with pytest.raises(ValueError, match=r"missing tensors \(\d+\):\n    backbone\.norm0\.bias"):
        convert.from_torch(decoder, create_abstract())


def test_two_encoders_are_refused():
    both = swin_state_dict("timm", classifier=True, prefix="a.") | swin_state_dict(
        "timm", classifier=True, prefix="b."
    )
    with pytest.raises(ValueError, match=r"Got timm at 'a\.' and timm at 'b\.'"):
        convert.find_naming(both)


def test_a_model_of_another_class_is_refused_with_the_functions_for_it():
    with pytest.raises(TypeError, match=r"got LayerNorm.*`from_tensors`"):
        convert.to_torch(nnx.LayerNorm(3, rngs=nnx.Rngs(0)))


def test_a_wrong_number_of_tasks_is_refused():
    module = CTM(2, 8, MambaSettings(), rngs=nnx.Rngs(0))
    gradients = group(load("ctm"), "grad")
    with pytest.raises(
        ValueError, match=r"norm\.scale: 2 tensors, but the names are \('norm\.semseg\.weight', "
    ):
        convert.from_tensors(gradients, module, CTM_RULES, ("semseg", "depth", "normals"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mtmamba", "mtmamba_plus"])
def test_a_full_size_model_is_converted_in_both_directions_within_12_gib(name):
    done = subprocess.run(
        [sys.executable, "-m", "tests.convert.full_size", name],
        check=True,
        capture_output=True,
        text=True,
    )
    print(done.stdout)
    assert float(done.stdout.split()[-1]) < 12
