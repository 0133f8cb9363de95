"""Encoders give the same features as those of other code bases with the same weights.

The weights are random, and the other code bases run on PyTorch's CPU backend. They are installed
with the extra `peers`.
"""

import numpy as np
import pytest
from flax import nnx

from mtmamba_jax.convert import encoder_from_torch, encoder_to_torch, identify
from mtmamba_jax.convert.encoder import resample_table
from mtmamba_jax.models.swin import SWIN_SIZES, Swin, SwinSize
from tests.convert.state_dicts import assert_same_bits, swin_state_dict
from tests.models.golden import run

torch = pytest.importorskip("torch", reason="the extra `peers` is not installed")

SIZES = {
    "tiny": SWIN_SIZES["swin_tiny"],
    "window_12": SwinSize(32, (2, 2, 2, 2), (1, 2, 4, 8), 12),
}
# Sizes that are no multiples of patches, windows or mergings.
IMAGES = {"tiny": (75, 109), "window_12": (131, 85)}


def random_state_dict(module):
    """Fills a module with random weights of a realistic scale and returns its state dict."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_scale = "norm" in name and name.endswith("weight")
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 1
            scale = 0.1 if parameter.ndim == 1 or "table" in name else fan_in**-0.5
            parameter.copy_(noise * scale + is_scale)
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def create_encoder(size, state_dict):
    encoder = Swin(size, rngs=nnx.Rngs(0))
    nnx.update(encoder, encoder_from_torch(state_dict, encoder))
    return encoder


def draw_images(height, width):
    return np.random.default_rng(1).normal(size=(2, height, width, 3)).astype(np.float32)


def assert_same_features(encoder, images, wanted):
    """Compares the outputs of an encoder with maps [b h w c]."""
    for i, (found, feature) in enumerate(zip(run(encoder, images), wanted, strict=True)):
        feature = feature.numpy()
        bound = 1e-4 * np.abs(feature).max()  # float32 on both sides, over up to 12 blocks
        np.testing.assert_allclose(found, feature, rtol=0, atol=bound, err_msg=f"feature {i}")


def channels_first(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def hugging_face_config(transformers, size):
    return transformers.SwinConfig(
        embed_dim=size.width,
        depths=list(size.depths),
        num_heads=list(size.heads),
        window_size=size.window,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )


SIZES_WITH_SLOW = ["window_12", pytest.param("tiny", marks=pytest.mark.slow)]


@pytest.mark.parametrize("name", SIZES_WITH_SLOW)
def test_features_agree_with_hugging_face(name):
    transformers = pytest.importorskip("transformers", reason="the extra `peers` is not installed")
    size = SIZES[name]
    backbone = transformers.SwinBackbone(hugging_face_config(transformers, size)).eval()
    state_dict = random_state_dict(backbone)
    encoder = create_encoder(size, state_dict)
    images = draw_images(*IMAGES[name])
    with torch.no_grad():
        maps = backbone(channels_first(images)).feature_maps
    assert_same_features(encoder, images, [x.permute(0, 2, 3, 1) for x in maps])
    naming = identify(state_dict).naming
    unused = ("swin.layernorm.weight", "swin.layernorm.bias")  # since transformers 5
    wanted = {name: x for name, x in state_dict.items() if name not in unused}
    assert_same_bits(encoder_to_torch(encoder, naming), wanted)


def test_hugging_face_saves_the_expected_names(tmp_path):
    transformers = pytest.importorskip("transformers", reason="the extra `peers` is not installed")
    numpy = pytest.importorskip("safetensors.numpy", reason="the extra `peers` is not installed")
    size = SIZES["window_12"]
    model = transformers.SwinModel(hugging_face_config(transformers, size))
    state_dict = random_state_dict(model)
    model.save_pretrained(tmp_path)
    saved = numpy.load_file(tmp_path / "model.safetensors")
    written = swin_state_dict("huggingface", size, classifier=True)
    indices = {name for name in written if name.endswith("index")}  # until transformers 5
    assert saved.keys() in (written.keys(), written.keys() - indices)
    for found in (state_dict, saved):
        encoder = create_encoder(size, found)
        naming = identify(found).naming
        assert_same_bits(encoder_to_torch(encoder, naming), found)


@pytest.mark.parametrize("name", SIZES_WITH_SLOW)
def test_features_agree_with_timm(name):
    timm = pytest.importorskip("timm", reason="the extra `peers` is not installed")
    size = SIZES[name]
    # timm shifts a map before padding it, mmsegmentation after, so maps here are whole windows.
    side = 32 * size.window
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        embed_dim=size.width,
        depths=size.depths,
        num_heads=size.heads,
        window_size=size.window,
        img_size=side,
        num_classes=3,
        always_partition=True,
    ).eval()
    state_dict = random_state_dict(model)
    encoder = create_encoder(size, state_dict)
    images = draw_images(side, side)
    with torch.no_grad():
        maps = model.forward_intermediates(channels_first(images), intermediates_only=True)
        maps = [x.permute(0, 2, 3, 1) for x in maps]
        # A classifier normalises only its last output; our other norms have scale 1 and bias 0.
        maps = [torch.nn.functional.layer_norm(x, x.shape[-1:]) for x in maps[:3]] + [
            model.norm(maps[3])
        ]
    assert_same_features(encoder, images, maps)
    written = encoder_to_torch(encoder, identify(state_dict).naming)
    assert_same_bits(written, {k: v for k, v in state_dict.items() if "head" not in k})
    assert written.keys() == swin_state_dict("timm", size, classifier=True).keys()


@pytest.mark.parametrize(("before", "after"), [(7, 12), (12, 7), (7, 8), (3, 2)])
def test_position_tables_are_resampled_like_in_pytorch(before, after):
    table = np.random.default_rng(0).normal(size=((2 * before - 1) ** 2, 4)).astype(np.float32)
    maps = torch.from_numpy(table).T.reshape(1, 4, 2 * before - 1, 2 * before - 1)
    wanted = torch.nn.functional.interpolate(
        maps, size=(2 * after - 1, 2 * after - 1), mode="bicubic", align_corners=False
    )
    wanted = wanted.reshape(4, -1).T.numpy()
    np.testing.assert_allclose(resample_table(table, after), wanted, atol=1e-5)  # float32
