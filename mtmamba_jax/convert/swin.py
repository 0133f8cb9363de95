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


@dataclasses.dataclass(frozen=True)
class Family:
    """Names of a code base for the parts of a Swin encoder. Those in a block are relative to it.

    Attributes:
      embedding: Convolution of the patch embedding.
      embedding_norm: LayerNorm of the patch embedding.
      block: A block, where `\\1` is the stage and `\\2` the index of the block.
      norm_1: LayerNorm before the attention.
      norm_2: LayerNorm before the MLP.
      qkv: Query, key and value: one matrix or three.
      projection: Output projection of the attention.
      position: Relative position bias table.
      index: Relative position index, which some versions save.
      mlp_in: First layer of the MLP.
      mlp_out: Second layer of the MLP.
      mergings: The three patch mergings, in order.
      merged: Order of their 4c channels, `UNFOLD` or `COLUMNS`.
      output_norms: LayerNorms of the four outputs.
      last_norm: LayerNorm of the last output, in classifiers.
      classifier: Whether the published files are classifiers.
      skipped: Regular expressions of tensors that are not part of a feature encoder.
    """

    embedding: str
    embedding_norm: str
    block: str
    norm_1: str
    norm_2: str
    qkv: tuple[str, ...]
    projection: str
    position: str
    index: str
    mlp_in: str
    mlp_out: str
    mergings: tuple[str, ...]
    merged: tuple[str, str, Mapping[str, int]]
    output_norms: tuple[str, ...]
    last_norm: str
    classifier: bool
    skipped: tuple[str, ...]


_MMSEGMENTATION = Family(
    embedding="patch_embed.projection",
    embedding_norm="patch_embed.norm",
    block=r"stages.\1.blocks.\2.",
    norm_1="norm1",
    norm_2="norm2",
    qkv=("attn.w_msa.qkv",),
    projection="attn.w_msa.proj",
    position="attn.w_msa.relative_position_bias_table",
    index="attn.w_msa.relative_position_index",
    mlp_in="ffn.layers.0.0",
    mlp_out="ffn.layers.1",
    mergings=tuple(f"stages.{i}.downsample" for i in range(3)),
    merged=UNFOLD,
    output_norms=tuple(f"norm{i}" for i in range(4)),
    last_norm="norm",
    classifier=False,
    # Masks, in files that its converter made from Microsoft's, are for one image size.
    skipped=(r"head\..*", r"stages\.\d+\.blocks\.\d+\.attn_mask"),
)
_MICROSOFT = Family(
    embedding="patch_embed.proj",
    embedding_norm="patch_embed.norm",
    block=r"layers.\1.blocks.\2.",
    norm_1="norm1",
    norm_2="norm2",
    qkv=("attn.qkv",),
    projection="attn.proj",
    position="attn.relative_position_bias_table",
    index="attn.relative_position_index",
    mlp_in="mlp.fc1",
    mlp_out="mlp.fc2",
    mergings=tuple(f"layers.{i}.downsample" for i in range(3)),
    merged=COLUMNS,
    output_norms=tuple(f"norm{i}" for i in range(4)),  # in its detection repository
    last_norm="norm",
    classifier=True,
    # Masks are for the one image size that the network was built for.
    skipped=(r"head\..*", r"layers\.\d+\.blocks\.\d+\.attn_mask"),
)
_HUGGINGFACE = Family(
    embedding="embeddings.patch_embeddings.projection",
    embedding_norm="embeddings.norm",
    block=r"encoder.layers.\1.blocks.\2.",
    norm_1="layernorm_before",
    norm_2="layernorm_after",
    qkv=("attention.self.query", "attention.self.key", "attention.self.value"),
    projection="attention.output.dense",
    position="attention.self.relative_position_bias_table",
    index="attention.self.relative_position_index",
    mlp_in="intermediate.dense",
    mlp_out="output.dense",
    mergings=tuple(f"encoder.layers.{i}.downsample" for i in range(3)),
    merged=COLUMNS,
    output_norms=tuple(f"hidden_states_norms.stage{i}" for i in range(1, 5)),
    last_norm="layernorm",
    classifier=False,
    # `SwinBackbone.save_pretrained` (transformers 5) writes its unused last norm below `swin.`.
    skipped=(r"classifier\..*", r"embeddings\.mask_token", r"swin\.layernorm\.(weight|bias)"),
)

FAMILIES: Mapping[str, Family] = {
    "mmsegmentation": _MMSEGMENTATION,
    "microsoft": _MICROSOFT,  # also timm before version 0.8
    "timm": dataclasses.replace(
        _MICROSOFT, mergings=tuple(f"layers.{i}.downsample" for i in range(1, 4))
    ),
    "huggingface": _HUGGINGFACE,
    # Names of modules since transformers 5; files keep those above.
    "huggingface_5": dataclasses.replace(
        _HUGGINGFACE,
        qkv=("attention.q_proj", "attention.k_proj", "attention.v_proj"),
        projection="attention.o_proj",
        position="attention.relative_position_bias.relative_position_bias_table",
        index="attention.relative_position_bias.relative_position_index",
        mlp_in="mlp.fc1",
        mlp_out="mlp.fc2",
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
    channels, ours, sizes = family.merged
    rules = [
        rule(
            r"patch_embed\.projection\.kernel",
            f"{prefix}{family.embedding}.weight",
            "o i h w -> (h w i) o",
            h=4,
            w=4,
        ),
        rule(r"patch_embed\.projection\.bias", f"{prefix}{family.embedding}.bias", "o -> o"),
        *norm_rules(r"patch_embed\.norm", prefix + family.embedding_norm),
        *_block_rules(family, prefix + family.block, has_index=has_index),
    ]
    for i, merging in enumerate(family.mergings):
        path, name = rf"mergings\.{i}\.", prefix + merging
        rules += [
            rule(path + r"norm\.scale", f"{name}.norm.weight", f"{channels} -> {ours}", **sizes),
            rule(path + r"norm\.bias", f"{name}.norm.bias", f"{channels} -> {ours}", **sizes),
            rule(
                path + r"reduction\.kernel",
                f"{name}.reduction.weight",
                f"o {channels} -> {ours} o",
                **sizes,
            ),
        ]
    for i, name in enumerate(norms):
        rules += norm_rules(rf"norms\.{i}", name) if name else ()
    return tuple(rules)


def _block_rules(family: Family, name: str, *, has_index: bool) -> tuple[Rule, ...]:
    path = r"stages\.(\d+)\.(\d+)\."
    position = path + r"attention\.position_bias"
    parts = "(part o)" if len(family.qkv) == 1 else "part o"
    qkv = [name + part for part in family.qkv]
    index = Rule((position,), (name + family.index,), "", compute=table_index)
    return (
        *norm_rules(path + "norm_1", name + family.norm_1),
        *norm_rules(path + "norm_2", name + family.norm_2),
        rule(
            path + r"attention\.qkv\.kernel",
            [f"{each}.weight" for each in qkv],
            f"{parts} i -> i (part o)",
            part=3,
        ),
        rule(
            path + r"attention\.qkv\.bias",
            [f"{each}.bias" for each in qkv],
            f"{parts} -> (part o)",
            part=3,
        ),
        *linear_rules(path + r"attention\.projection", name + family.projection),
        rule(position, name + family.position, "index heads -> index heads"),
        *linear_rules(path + "mlp_in", name + family.mlp_in),
        *linear_rules(path + "mlp_out", name + family.mlp_out),
        *((index,) if has_index else ()),
    )


def table_window(shape: Sequence[int]) -> int:
    """Returns the side of the window of a position bias table [(2 * side - 1)^2 heads]."""
    return (math.isqrt(shape[0]) + 1) // 2


def table_index(shape: Sequence[int]) -> np.ndarray:
    """Returns the relative position index of a position bias table of that shape."""
    return relative_position_index(table_window(shape))
