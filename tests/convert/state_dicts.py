"""State dicts with random numbers and the names and shapes of each code base, written out."""

import numpy as np

from mtmamba_jax.models.swin import SwinSize

TINY = SwinSize(8, (2, 2, 4, 2), (1, 1, 2, 2), 4)

# Names in a block: first norm, qkv, projection, table, index, second norm, first and second linear.
BLOCK_NAMES = {
    "mmsegmentation": (
        "stages.{}.blocks.{}.",
        ("norm1", "attn.w_msa.qkv", "attn.w_msa.proj", "norm2", "ffn.layers.0.0", "ffn.layers.1"),
        ("attn.w_msa.relative_position_bias_table", "attn.w_msa.relative_position_index"),
    ),
    "microsoft": (
        "layers.{}.blocks.{}.",
        ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
        ("attn.relative_position_bias_table", "attn.relative_position_index"),
    ),
    "huggingface": (
        "encoder.layers.{}.blocks.{}.",
        (
            "layernorm_before",
            "attention.self.query attention.self.key attention.self.value",
            "attention.output.dense",
            "layernorm_after",
            "intermediate.dense",
            "output.dense",
        ),
        ("attention.self.relative_position_bias_table", "attention.self.relative_position_index"),
    ),
    "huggingface_5": (
        "encoder.layers.{}.blocks.{}.",
        (
            "layernorm_before",
            "attention.q_proj attention.k_proj attention.v_proj",
            "attention.o_proj",
            "layernorm_after",
            "mlp.fc1",
            "mlp.fc2",
        ),
        ("attention.relative_position_bias.relative_position_bias_table", None),
    ),
}
BLOCK_NAMES["timm"] = (*BLOCK_NAMES["microsoft"][:2], ("attn.relative_position_bias_table", None))
EMBEDDINGS = {
    "mmsegmentation": ("patch_embed.projection", "patch_embed.norm"),
    "microsoft": ("patch_embed.proj", "patch_embed.norm"),
    "timm": ("patch_embed.proj", "patch_embed.norm"),
    "huggingface": ("embeddings.patch_embeddings.projection", "embeddings.norm"),
    "huggingface_5": ("embeddings.patch_embeddings.projection", "embeddings.norm"),
}
EACH_OUTPUT = {
    "mmsegmentation": [f"norm{i}" for i in range(4)],
    "microsoft": [f"norm{i}" for i in range(4)],
    "huggingface": [f"hidden_states_norms.stage{i}" for i in range(1, 5)],
    "huggingface_5": [f"hidden_states_norms.stage{i}" for i in range(1, 5)],
}
LAST_OUTPUT = dict.fromkeys(BLOCK_NAMES, "norm") | {
    "huggingface": "layernorm",
    "huggingface_5": "layernorm",
}
FAMILIES = tuple(BLOCK_NAMES)


def ones(shape):
    """Returns an array that takes no memory, for full sizes."""
    return np.broadcast_to(np.float32(1), shape)


def swin_state_dict(family, size=TINY, *, classifier=False, prefix="", numbers=None):
    """Returns a state dict of a feature encoder, or of a classifier without its head."""
    random = np.random.default_rng(0)
    numbers = numbers or (lambda shape: random.normal(size=shape).astype(np.float32))
    found = {}

    def draw(name, *shape):
        found[prefix + name] = numbers(shape)

    def affine(name, *weight):
        draw(f"{name}.weight", *weight)
        draw(f"{name}.bias", weight[0])

    widths = [size.width * 2**i for i in range(4)]
    embedding, embedding_norm = EMBEDDINGS[family]
    affine(embedding, size.width, 3, 4, 4)
    affine(embedding_norm, size.width)
    start, names, (table, index) = BLOCK_NAMES[family]
    norm_1, qkv, projection, norm_2, mlp_in, mlp_out = names
    for stage, c in enumerate(widths):
        for block in range(size.depths[stage]):
            at = start.format(stage, block)
            affine(at + norm_1, c)
            affine(at + norm_2, c)
            for part in qkv.split():
                affine(at + part, 3 * c // len(qkv.split()), c)
            affine(at + projection, c, c)
            affine(at + mlp_in, 4 * c, c)
            affine(at + mlp_out, c, 4 * c)
            draw(at + table, (2 * size.window - 1) ** 2, size.heads[stage])
            if index:
                found[prefix + at + index] = microsoft_index(size.window)
        if stage < 3:
            merging = start.split(".{}")[0] + f".{stage + (family == 'timm')}.downsample"
            affine(merging + ".norm", 4 * c)
            draw(merging + ".reduction.weight", 2 * c, 4 * c)
    if classifier:
        affine(LAST_OUTPUT[family], widths[-1])
    else:
        for name, c in zip(EACH_OUTPUT[family], widths, strict=True):
            affine(name, c)
    return found


def microsoft_index(window):
    """Computes the relative position index like the code of Swin's authors."""
    coordinates = np.stack(np.meshgrid(*[np.arange(window)] * 2, indexing="ij")).reshape(2, -1)
    relative = coordinates[:, :, None] - coordinates[:, None, :] + window - 1
    return relative[0] * (2 * window - 1) + relative[1]


def assert_same_bits(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype, name
        assert found[name].shape == array.shape, name
        assert found[name].tobytes() == np.ascontiguousarray(array).tobytes(), name
