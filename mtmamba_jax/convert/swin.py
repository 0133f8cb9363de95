"""Tables of Swin encoders: how four code bases name and arrange the same weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

from mtmamba_jax.convert.rules import Computed, Rule, linear_rules, norm_rules, rule
from mtmamba_jax.models.windows import relative_position_index

UNFOLD = ("(c p)", "(p c)", {"p": 4})
COLUMNS = ("(w h c)", "(h w c)", {"h": 2, "w": 2})
"""Orders of the 4c channels that merging gathers, theirs and ours, which goes by rows: nn.Unfold's,
each channel's four pixels; and pixels (0,0) (1,0) (0,1) (1,1), each with its channels."""


@dataclasses.dataclass(frozen=True)
class Family:
    """How one code base names a Swin encoder. Names in a block are relative to it.

    Attributes:
      embedding: the convolution of patches.
      embedding_norm: its LayerNorm.
      block: `\\1` is the stage, `\\2` the block.
      norm_1: before attention.
      norm_2: before the perceptron.
      qkv: one matrix, or three for query, key and value.
      projection: attention's output.
      position: the relative position bias table.
      index: the relative position index, which some versions save.
      mlp_in: the perceptron's first matrix.
      mlp_out: its second.
      mergings: the three patch mergings, in order.
      merged: order of their 4c channels, `UNFOLD` or `COLUMNS`.
      output_norms: of the four outputs.
      last_norm: of the last output, in classifiers.
      classifier: published files are a classifier's.
      left_out: regular expressions of tensors that have no place in an encoder of features.
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
    left_out: tuple[str, ...]


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
    # The mask, of files that its converter made from Microsoft's, is that of one image size.
    left_out=(r"head\..*", r"stages\.\d+\.blocks\.\d+\.attn_mask"),
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
    output_norms=tuple(f"norm{i}" for i in range(4)),  # of its detection repository
    last_norm="norm",
    classifier=True,
    # The mask is that of the one image size that the network was built for.
    left_out=(r"head\..*", r"layers\.\d+\.blocks\.\d+\.attn_mask"),
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
    # A SwinBackbone's `save_pretrained` (transformers 5) has `swin.` before its unused last norm.
    left_out=(r"classifier\..*", r"embeddings\.mask_token", r"swin\.layernorm\.(weight|bias)"),
)

FAMILIES: Mapping[str, Family] = {
    "mmsegmentation": _MMSEGMENTATION,
    "microsoft": _MICROSOFT,  # and timm before its version 0.8
    "timm": dataclasses.replace(
        _MICROSOFT, mergings=tuple(f"layers.{i}.downsample" for i in range(1, 4))
    ),
    "huggingface": _HUGGINGFACE,
    # The names in memory since transformers 5; its files keep those above.
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
"""Code bases of Swin encoders."""


def swin_rules(
    family: Family, norms: Sequence[str | None], *, prefix: str = "", index: bool = True
) -> tuple[Rule | Computed, ...]:
    """Returns the table of a whole encoder.

    Args:
      family: whose names.
      norms: whole names of the LayerNorms of the four outputs, None where there is none.
      prefix: of all other names.
      index: relative position indices are among the tensors.
    """
    channels, ours, sizes = family.merged
    table = [
        rule(
            r"patch_embed\.projection\.kernel",
            f"{prefix}{family.embedding}.weight",
            "o i h w -> (h w i) o",
            h=4,
            w=4,
        ),
        rule(r"patch_embed\.projection\.bias", f"{prefix}{family.embedding}.bias", "o -> o"),
        *norm_rules(r"patch_embed\.norm", prefix + family.embedding_norm),
        *_block_rules(family, prefix + family.block, index=index),
    ]
    for i, merging in enumerate(family.mergings):
        path, name = rf"mergings\.{i}\.", prefix + merging
        table += [
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
        table += norm_rules(rf"norms\.{i}", name) if name else ()
    return tuple(table)


def _block_rules(family: Family, name: str, *, index: bool) -> tuple[Rule | Computed, ...]:
    path = r"stages\.(\d+)\.(\d+)\."
    position = path + r"attention\.position_bias"
    parts = "(part o)" if len(family.qkv) == 1 else "part o"
    qkv = [name + part for part in family.qkv]
    computed = Computed(position, name + family.index, index_of_table)
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
        *((computed,) if index else ()),
    )


def window_of_table(shape: Sequence[int]) -> int:
    """Returns the side of the window that a table of [(2 * side - 1)^2 heads] is for."""
    return (math.isqrt(shape[0]) + 1) // 2


def index_of_table(shape: Sequence[int]) -> np.ndarray:
    """Returns the relative position index that belongs to a table of that shape."""
    return relative_position_index(window_of_table(shape))
