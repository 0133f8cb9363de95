"""Swin encoders of every code base are converted in both directions, bit for bit."""

import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from mtmamba_jax.cli.flags import create_parser
from mtmamba_jax.convert import (
    encoder_from_torch,
    encoder_to_torch,
    find_naming,
    from_torch,
    identify,
)
from mtmamba_jax.convert.encoder import resample_table
from mtmamba_jax.convert.state_dicts import Naming
from mtmamba_jax.convert.swin import PATCH_MERGINGS
from mtmamba_jax.models.swin import SWIN_SIZES, Swin
from tests.convert.state_dicts import (
    EACH_OUTPUT,
    FAMILIES,
    TINY,
    assert_same_bits,
    ones,
    swin_state_dict,
)

CASES = [
    (family, classifier)
    for family in FAMILIES
    for classifier in ((False, True) if family != "timm" else (True,))
]


@pytest.fixture(scope="module")
def initial():
    return Swin(TINY, rngs=nnx.Rngs(0))


@pytest.fixture
def encoder(initial):
    return nnx.clone(initial)


def leaves(state):
    return {".".join(map(str, path)): leaf[...] for path, leaf in nnx.to_flat_state(state)}


@pytest.mark.parametrize(("family", "classifier"), CASES)
@pytest.mark.parametrize("prefix", ["", "backbone."])
def test_an_encoder_is_converted_back_to_the_same_state_dict(encoder, family, classifier, prefix):
    state_dict = swin_state_dict(family, classifier=classifier, prefix=prefix)
    nnx.update(encoder, encoder_from_torch(state_dict, encoder))
    assert_same_bits(encoder_to_torch(encoder, find_naming(state_dict)), state_dict)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_names_tensors_like_its_published_files(encoder, family):
    classifier = family in ("microsoft", "timm")
    state_dict = swin_state_dict(family, classifier=classifier)
    nnx.update(encoder, encoder_from_torch(state_dict, encoder))
    found = encoder_to_torch(encoder, family)
    indices = [name for name in found if name.endswith("index") and name not in state_dict]
    assert_same_bits({k: v for k, v in found.items() if k not in indices}, state_dict)


def test_every_family_gives_the_same_encoder(encoder):
    state = encoder_from_torch(swin_state_dict("mmsegmentation"), encoder)
    nnx.update(encoder, state)
    for family in ("mmsegmentation", "huggingface", "huggingface_5"):
        again = encoder_from_torch(encoder_to_torch(encoder, family), encoder)
        assert_same_bits(*(jax.tree.map(np.asarray, leaves(x)) for x in (again, state)))


def test_the_encoder_is_found_in_a_larger_model(encoder):
    backbone = swin_state_dict("mmsegmentation", prefix="backbone.")
    whole = backbone | {"decode_head.conv_seg.weight": np.zeros((2, 3), np.float32)}
    nnx.update(encoder, encoder_from_torch(whole, encoder))
    assert_same_bits(encoder_to_torch(encoder, find_naming(whole)), backbone)


@pytest.mark.parametrize(
    ("family", "extra"),
    [
        ("microsoft", {"head.weight": (5, 64), "layers.0.blocks.1.attn_mask": (4, 16, 16)}),
        # A file from mmsegmentation's converter, which has no norms for each output.
        ("mmsegmentation", {"head.bias": (5,), "stages.0.blocks.1.attn_mask": (4, 16, 16)}),
        ("timm", {"head.fc.bias": (5,)}),
        ("huggingface", {"embeddings.mask_token": (1, 1, 8)}),
    ],
)
def test_heads_and_masks_are_ignored_and_the_first_norms_keep_their_values(encoder, family, extra):
    state_dict = swin_state_dict(family, classifier=True)
    whole = state_dict | {name: np.ones(shape, np.float32) for name, shape in extra.items()}
    state = leaves(encoder_from_torch(whole, encoder))
    assert {path for path in state if path.startswith("norms.")} == {
        "norms.3.scale",
        "norms.3.bias",
    }
    nnx.update(encoder, encoder_from_torch(whole, encoder))
    assert all((norm.scale[...] == 1).all() for norm in list(encoder.norms)[:3])
    assert_same_bits(encoder_to_torch(encoder, find_naming(whole)), state_dict)


def test_a_backbone_of_transformers_5_has_its_norms_beside_it(encoder):
    inside = swin_state_dict("huggingface_5", prefix="swin.")
    state_dict = {name.replace("swin.hidden", "hidden"): x for name, x in inside.items()}
    unused = {"swin.layernorm.weight": np.zeros(64, np.float32)}
    nnx.update(encoder, encoder_from_torch(state_dict | unused, encoder))
    assert_same_bits(encoder_to_torch(encoder, find_naming(state_dict)), state_dict)


def test_a_saved_backbone_of_transformers_5_keeps_a_prefix_for_its_unused_norm(encoder):
    state_dict = swin_state_dict("huggingface_5")
    unused = {f"swin.layernorm.{name}": np.zeros(64, np.float32) for name in ("weight", "bias")}
    nnx.update(encoder, encoder_from_torch(state_dict | unused, encoder))
    assert_same_bits(encoder_to_torch(encoder, find_naming(state_dict)), state_dict)


def test_learned_norms_are_refused_by_a_family_without_names_for_them(encoder):
    nnx.update(encoder, encoder_from_torch(swin_state_dict("mmsegmentation"), encoder))
    with pytest.raises(ValueError, match=r"no names for norms\.0, norms\.1, norms\.2"):
        encoder_to_torch(encoder, "timm")


@pytest.mark.parametrize("dtype", ["float16", "float64", jax.numpy.bfloat16])
def test_floating_point_arrays_of_other_widths_become_float32(encoder, dtype):
    given = {
        name: x if x.dtype == np.int64 else x.astype(dtype)
        for name, x in swin_state_dict("mmsegmentation").items()
    }
    state = leaves(encoder_from_torch(given, encoder))
    assert {x.dtype for x in state.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(
        state["stages.0.0.mlp_in.bias"],
        given["stages.0.blocks.0.ffn.layers.0.0.bias"].astype("float32"),
    )


def test_the_result_does_not_share_memory_with_the_state_dict(encoder):
    state_dict = swin_state_dict("mmsegmentation")
    state = encoder_from_torch(state_dict, encoder)
    before = jax.tree.map(np.array, leaves(state))
    for array in state_dict.values():
        array *= 0
    assert_same_bits(jax.tree.map(np.asarray, leaves(state)), before)


@pytest.mark.parametrize("name", [name for name in SWIN_SIZES if name != "swin_test"])
def test_the_size_is_found_from_names_and_shapes(name):
    found = identify(swin_state_dict("timm", SWIN_SIZES[name], classifier=True, numbers=ones))
    assert found.size == SWIN_SIZES[name]
    assert str(found).startswith(f"{name} (width {found.size.width}, depths ")


def test_tables_of_another_window_are_resampled(encoder):
    small = dataclasses.replace(TINY, window=3)
    state_dict = swin_state_dict("microsoft", small, classifier=True)
    found = leaves(encoder_from_torch(state_dict, encoder))
    table = state_dict["layers.2.blocks.1.attn.relative_position_bias_table"]
    np.testing.assert_array_equal(
        found["stages.2.1.attention.position_bias"], resample_table(table, 4)
    )


def test_a_block_with_a_huge_index_is_refused_quickly(encoder):
    state_dict = swin_state_dict("timm", classifier=True)
    state_dict["layers.0.blocks.5000.norm1.weight"] = np.zeros(
        8, np.float32
    )  # building such a model would take days
    with pytest.raises(ValueError, match=r"depths 3,2,4,2.* the model has .*depths 2,2,4,2"):
        encoder_from_torch(state_dict, encoder)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((25, 3), r"attn\.relative_position_bias_table: expected \[49, 1\], got \[25, 3\]"),
        ((26, 1), r"attn\.relative_position_bias_table: expected \[49, 1\], got \[26, 1\]"),
        ((49,), r"attn\.relative_position_bias_table: expected \[49, 1\], got \[49\]"),
        (
            None,
            r"missing tensors \(1\):\n    layers\.1\.blocks\.1\.attn\.relative_position_bias_table",
        ),
    ],
)
def test_a_table_that_does_not_fit_the_encoder_is_refused(encoder, shape, message):
    state_dict = swin_state_dict("timm", classifier=True)
    name = "layers.1.blocks.1.attn.relative_position_bias_table"
    del state_dict[name]
    if shape:
        state_dict[name] = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        encoder_from_torch(state_dict, encoder)


def bicubic(values, size):
    """Resamples the first axis by definition: a = -0.75, half-pixel centres, repeated edges."""
    a, found = -0.75, []
    for i in range(size):
        place = (i + 0.5) * len(values) / size - 0.5
        first = int(np.floor(place)) - 1
        total = 0.0
        for j in range(first, first + 4):
            x = abs(place - j)
            near = (a + 2) * x**3 - (a + 3) * x**2 + 1
            weight = near if x <= 1 else a * (x**3 - 5 * x**2 + 8 * x - 4)
            total = total + weight * values[min(max(j, 0), len(values) - 1)]
        found.append(total)
    return np.stack(found)


@pytest.mark.parametrize(("before", "after"), [(7, 12), (12, 7), (3, 4)])
def test_resampling_is_bicubic(before, after):
    table = np.random.default_rng(0).normal(size=((2 * before - 1) ** 2, 3)).astype(np.float32)
    maps = table.reshape(2 * before - 1, 2 * before - 1, 3)
    rows = bicubic(maps, 2 * after - 1)
    wanted = bicubic(rows.swapaxes(0, 1), 2 * after - 1).swapaxes(0, 1).reshape(-1, 3)
    found = resample_table(table, after)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=1e-5)  # float32 of values up to 4


def test_from_torch_also_converts_an_encoder(encoder):
    state_dict = swin_state_dict("huggingface")
    assert_same_bits(
        *(
            jax.tree.map(np.asarray, leaves(read(state_dict, encoder)))
            for read in (from_torch, encoder_from_torch)
        )
    )


def test_microsofts_tensors_under_mmsegmentations_names_are_warned_of_and_can_be_forced(
    encoder, caplog
):
    theirs = encoder_to_torch(encoder, "mmsegmentation")
    microsofts = encoder_to_torch(encoder, Naming("microsoft", tuple(EACH_OUTPUT["microsoft"])))
    merging = {name: v for name, v in microsofts.items() if "downsample" in name}
    renamed = theirs | {name.replace("layers", "stages"): v for name, v in merging.items()}
    assert renamed.keys() == theirs.keys()
    wanted = leaves(nnx.state(encoder))

    def found(tensors, patch_merging=None):
        return leaves(encoder_from_torch(tensors, encoder, patch_merging))

    wrong = found(renamed)
    assert "--patch_merging=microsoft (or =mmsegmentation, without this warning)" in caplog.text
    assert any((wrong[path] != value).any() for path, value in wanted.items())
    caplog.clear()
    for tensors, order in ((renamed, "microsoft"), (theirs, "mmsegmentation")):
        right = found(tensors, order)
        assert all((right[path] == value).all() for path, value in wanted.items())
    whole = {f"backbone.{name}": v for name, v in theirs.items()}
    found(whole | {"decode_head.conv_seg.bias": np.zeros(2, np.float32)})
    assert not caplog.text
    with pytest.raises(ValueError, match="Unknown order of patch mergings 'timm'"):
        found(theirs, "timm")


@pytest.mark.parametrize("order", PATCH_MERGINGS)
def test_the_command_offers_every_order(order):
    arguments = ["convert", "--from=a.pth", "--to=b", f"--patch_merging={order}"]
    assert create_parser().parse_known_args(arguments)[0].patch_merging == order
