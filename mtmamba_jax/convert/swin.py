"""Conversion rules of Swin encoders, whose weights four code bases name and arrange differently."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mtmamba_jax.convert.rules import Rule, linear_rules, norm_rules, rule
from mtmamba_jax.models.windows import relative_position_index

UNFOLD = ("(c p)", "(p c)", {"p": 4})
COLUMNS = ("(w h c)", "(h w c)", {"h": 2, "w": 2})
"""Orders of the 4c channels that a patch merging gathers: in PyTorch and here, where pixels are
row by row. `UNFOLD` is that of nn.Unfold, the four pixels of each channel; `COLUMNS` has the
channels of pixels (0,0) (1,0) (0,1) (1,1)."""
PATCH_MERGINGS = {"mmsegmentation": UNFOLD, "microsoft": COLUMNS}
"""Orders by the code base that introduced them; timm and Hugging Face have Microsoft's."""

TABLE, INDEX = "relative_position_bias_table", "relative_position_index"


@dataclasses.dataclass(frozen=True)
class Family:
    """Names of a code base for the parts of a Swin encoder, by default Microsoft's.

    Attributes:
      embedding: Convolution and LayerNorm of the patch embedding.
      stages: Folder of the stages. Names in a block are relative to `STAGES.i.blocks.j.`.
      norms: LayerNorms of a block, before the attention and before the MLP.
      qkv: Query, key and value: one matrix or three.
      projection: Output projection of the attention.
      positions: Prefix of `TABLE` and of `INDEX`, which some versions save.
      mlp: Both layers of the MLP.
      merging: Index of the first of three stages with a patch merging, `STAGES.i.downsample`.
      merged: Order of the 4c channels of patch mergings, `UNFOLD` or `COLUMNS`.
      output_norms: LayerNorms of the four outputs.
      last_norm: LayerNorm of the last output, in classifiers.
      classifier: Whether the published files are classifiers.
      skipped: Regular expressions of tensors that are not part of a feature encoder.
    """

    embedding: tuple[str, str] = ("patch_embed.proj", "patch_embed.norm")
    stages: str = "layers"
    norms: tuple[str, str] = ("norm1", "norm2")
    qkv: tuple[str, ...] = ("attn.qkv",)
    projection: str = "attn.proj"
    positions: str = "attn."
    mlp: tuple[str, str] = ("mlp.fc1", "mlp.fc2")
    merging: int = 0
    merged: tuple[str, str, Mapping[str, int]] = COLUMNS
    output_norms: tuple[str, ...] = ("norm0", "norm1", "norm2", "norm3")  # its detection repository
    last_norm: str = "norm"
    classifier: bool = False
    # Masks are for the one image size that the network was built for.
    skipped: tuple[str, ...] = (r"head\..*", r"layers\.\d+\.blocks\.\d+\.attn_mask")


_HUGGINGFACE = Family(
    embedding=("embeddings.patch_embeddings.projection", "embeddings.norm"),
    stages="encoder.layers",
    norms=("layernorm_before", "layernorm_after"),
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    projection="attention.output.dense",
    positions="attention.self.",
    mlp=("intermediate.dense", "output.dense"),
    output_norms=tuple(f"hidden_states_norms.stage{i}" for i in range(1, 5)),
    last_norm="layernorm",
    # `SwinBackbone.save_pretrained` (transformers 5) writes its unused last norm below `swin.`.
    skipped=(r"classifier\..*", r"embeddings\.mask_token", r"swin\.layernorm\.(weight|bias)"),
)

FAMILIES: Mapping[str, Family] = {
    "mmsegmentation": Family(
        embedding=("patch_embed.projection", "patch_embed.norm"),
        stages="stages",
        qkv=("attn.w_msa.qkv",),
        projection="attn.w_msa.proj",
        positions="attn.w_msa.",
        mlp=("ffn.layers.0.0", "ffn.layers.1"),
        merged=UNFOLD,
        # Masks, in files that its converter made from Microsoft's, are for one image size.
        skipped=(r"head\..*", r"stages\.\d+\.blocks\.\d+\.attn_mask"),
    ),
    "microsoft": Family(classifier=True),  # also timm before version 0.8
    "timm": Family(classifier=True, merging=1),
    "huggingface": _HUGGINGFACE,
    # Names of modules since transformers 5; files keep those above.
    "huggingface_5": dataclasses.replace(
        _HUGGINGFACE,
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        projection="attention.o_proj",
        positions="attention.relative_position_bias.",
        mlp=("mlp.fc1", "mlp.fc2"),
    ),
}
"""Names of the code bases' Swin encoders."""


def swin_rules(
    family: Family, norms: Sequence[str | None], *, prefix: str = "", has_index: bool = True
) -> tuple[Rule, ...]:
    """Returns the rules of an encoder.

    Args:
      family: Names of the parts.
      norms: Full names of the LayerNorms of the four outputs, None for outputs without one.
      prefix: Prefix of all other names.
      has_index: Whether the state dict has relative position indices.
    """
    embedding, embedding_norm = (prefix + name for name in family.embedding)
    pixels = "o i h w -> (h w i) o"
    rules = [
        rule(r"patch_embed\.projection\.kernel", f"{embedding}.weight", pixels, h=4, w=4),
        rule(r"patch_embed\.projection\.bias", f"{embedding}.bias", "o -> o"),
        *norm_rules(r"patch_embed\.norm", embedding_norm),
    ]

    path, name = r"stages\.(\d+)\.(\d+)\.", rf"{prefix}{family.stages}.\1.blocks.\2."
    qkv, parts = path + r"attention\.qkv", "(part o)" if len(family.qkv) == 1 else "part o"
    weights, biases = ([f"{name}{x}.{end}" for x in family.qkv] for end in ("weight", "bias"))
    table = path + r"attention\.position_bias"
    index = Rule((table,), (name + family.positions + INDEX,), "", compute=table_index)
    rules += [
        *norm_rules(path + "norm_1", name + family.norms[0]),
        *norm_rules(path + "norm_2", name + family.norms[1]),
        rule(qkv + r"\.kernel", weights, f"{parts} i -> i (part o)", part=3),
        rule(qkv + r"\.bias", biases, f"{parts} -> (part o)", part=3),
        *linear_rules(path + r"attention\.projection", name + family.projection),
        rule(table, name + family.positions + TABLE, "index heads -> index heads"),
        *linear_rules(path + "mlp_in", name + family.mlp[0]),
        *linear_rules(path + "mlp_out", name + family.mlp[1]),
        *((index,) if has_index else ()),
    ]

    theirs, ours, sizes = family.merged
    for i in range(3):
        path, name = rf"mergings\.{i}\.", f"{prefix}{family.stages}.{family.merging + i}.downsample"
        kernel, reduction = path + r"reduction\.kernel", f"{name}.reduction.weight"
        rules += [
            rule(path + r"norm\.scale", f"{name}.norm.weight", f"{theirs} -> {ours}", **sizes),
            rule(path + r"norm\.bias", f"{name}.norm.bias", f"{theirs} -> {ours}", **sizes),
            rule(kernel, reduction, f"o {theirs} -> {ours} o", **sizes),
        ]
    for i, norm in enumerate(norms):
        rules += norm_rules(rf"norms\.{i}", norm) if norm else ()
    return tuple(rules)


def table_window(shape: Sequence[int]) -> int:
    """Returns the side of the window of a position bias table [(2 * side - 1)^2 heads]."""
    return (math.isqrt(shape[0]) + 1) // 2


def table_index(shape: Sequence[int]) -> np.ndarray:
    """Returns the relative position index of a position bias table of that shape."""
    return relative_position_index(table_window(shape))
