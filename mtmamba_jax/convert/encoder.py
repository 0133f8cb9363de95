"""A Swin encoder's weights from the state dicts of other code bases, and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import cv2
import numpy as np
from flax import nnx

from mtmamba_jax.convert.state_dicts import (
    Contents,
    Layout,
    contents_of,
    describe_size,
    layout_of,
    size_name,
    size_of,
)
from mtmamba_jax.convert.swin import FAMILIES, window_of_table
from mtmamba_jax.convert.tensors import from_tensors, to_tensors
from mtmamba_jax.models.norm import LayerNorm
from mtmamba_jax.models.swin import Swin


def encoder_from_torch(state_dict: Mapping[str, np.ndarray], encoder: Swin) -> nnx.State:
    """Returns an encoder's weights from any state dict that holds one; `nnx.update` puts them in.

    The state dict may be of Microsoft's code, mmsegmentation, timm or Hugging Face's transformers,
    or of a whole model that has the encoder as a part, such as MTMamba's. Of a classifier, which
    has a LayerNorm for the last output only, the other three outputs' norms are not among the
    result: they stay as they are. Its head is left out, and attention masks, which follow from the
    size of images. Position bias tables of another window are resampled (bicubic).

    Args:
      state_dict: torch names to arrays; float16, bfloat16 and float64 become float32.
      encoder: to fill; may be abstract (`nnx.eval_shape`). It is not changed.

    Raises:
      ValueError: no encoder, one of another size, or names, shapes and values that do not fit; the
        message lists them.
    """
    contents = contents_of(state_dict)
    if contents.layout is None:
        raise ValueError(f"The state dict holds {contents}; its encoder was wanted.")
    check_size(contents, encoder)
    layout = contents.layout
    return from_tensors(
        resample_positions(state_dict, encoder, layout),
        encoder,
        layout.table,
        left_out=layout.left_out,
        kept=layout.kept,
        about=f"It holds {contents}; the encoder is {describe_size(size_of(encoder))}.",
    )


def encoder_to_torch(
    encoder: Swin, layout: str | Layout = "mmsegmentation"
) -> dict[str, np.ndarray]:
    """Returns an encoder's weights as a state dict of another code base.

    Args:
      encoder: whose.
      layout: key of `FAMILIES`, or what `find_layout` found in a state dict. Classifiers' ("timm",
        "microsoft") have no LayerNorm for the first three outputs.

    Raises:
      ValueError: an unknown family, or it has no place for norms that are not the identity.
    """
    layout = layout_of(layout) if isinstance(layout, str) else layout
    lost = [
        f"norms.{i}"
        for i, name in enumerate(layout.norms)
        if name is None and not _is_identity(encoder.norms[i])
    ]
    if lost:
        raise ValueError(
            f"The names of {layout.family} have no place for {', '.join(lost)} of the encoder, "
            "which are not the identity. Take 'mmsegmentation' or 'huggingface'."
        )
    return to_tensors(encoder, layout.table, kept=layout.kept)


def _is_identity(norm: LayerNorm) -> bool:
    return bool((norm.scale[...] == 1).all() and (norm.bias[...] == 0).all())


def check_size(contents: Contents, encoder: Swin) -> None:
    """Checks that a state dict's encoder and a model's are of one size, windows aside.

    Raises:
      ValueError: they are not; the message describes both.
    """
    ours = size_of(encoder)
    if contents.size and dataclasses.replace(contents.size, window=ours.window) != ours:
        name = size_name(contents.size)
        encoder = f"that encoder (--config.model.encoder={name})" if name else "that encoder"
        raise ValueError(
            f"The state dict holds {describe_size(contents.size)}; the model has "
            f"{describe_size(ours)}. Take a model with {encoder}, or another file."
        )


def resample_positions(
    tensors: Mapping[str, np.ndarray], encoder: Swin, layout: Layout
) -> dict[str, np.ndarray]:
    """Returns tensors whose position bias tables are for an encoder's windows."""
    family = FAMILIES[layout.family]
    found = dict(tensors)
    wanted = {
        (i, j): block.attention.position_bias.shape
        for i, blocks in enumerate(encoder.stages)
        for j, block in enumerate(blocks)
    }
    for name, place in layout.tables(tensors).items():
        table = np.asarray(tensors[name])
        # Of what has another number of heads, or is for no window, the shape is told as wrong.
        side = 2 * window_of_table(table.shape) - 1 if table.ndim == 2 else 0
        like = (side**2, *wanted.get(place, ())[1:])
        if table.shape == like != wanted[place]:
            found[name] = resample_table(table, window_of_table(wanted[place]))
            found.pop(name.removesuffix(family.position) + family.index, None)
    return found


def resample_table(table: np.ndarray, window: int) -> np.ndarray:
    """Returns a relative position bias table for windows of another side, float32.

    Bicubic between offsets that keep their place in the window, as PyTorch's `F.interpolate` does
    (a = -0.75, half-pixel centres), with which Swin's authors transfer tables.

    Args:
      table: [(2 * side - 1)^2 heads].
      window: the side wanted.
    """
    side, wanted = 2 * window_of_table(table.shape) - 1, 2 * window - 1
    maps = table.astype(np.float32).reshape(side, side, -1)
    by_head = [
        cv2.resize(maps[..., head], (wanted, wanted), interpolation=cv2.INTER_CUBIC)
        for head in range(maps.shape[-1])
    ]
    return np.stack(by_head, -1).reshape(wanted**2, -1)
