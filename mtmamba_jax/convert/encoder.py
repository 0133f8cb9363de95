"""Conversion of a Swin encoder's weights from the state dicts of other code bases, and back."""

import dataclasses
import logging
from collections.abc import Mapping

import cv2
import numpy as np
from flax import nnx
from jaxtyping import Float

from mtmamba_jax.convert.state_dicts import (
    Contents,
    Naming,
    default_naming,
    describe_size,
    encoder_size,
    identify,
    size_name,
)
from mtmamba_jax.convert.swin import INDEX, PATCH_MERGINGS, TABLE, table_window
from mtmamba_jax.convert.tensors import from_tensors, to_tensors
from mtmamba_jax.messages import check_name, command
from mtmamba_jax.models.norm import LayerNorm
from mtmamba_jax.models.swin import Swin

MMSEGMENTATION_PARTS = ("decode_head.", "auxiliary_head.", "head.fc.")
"""Beginnings of other names in whole models of mmsegmentation and mmpretrain."""


def encoder_from_torch(
    state_dict: Mapping[str, np.ndarray], encoder: Swin, patch_merging: str | None = None
) -> nnx.State:
    """Converts the Swin encoder in a state dict; `nnx.update` loads the result.

    The state dict may be from Microsoft's code, mmsegmentation, timm or Hugging Face transformers,
    or from a model that has the encoder as a part, such as MTMamba. A classifier has a LayerNorm
    only for the last output: the norms of the other three outputs are then not in the result and
    keep their values. Heads are ignored, and so are attention masks, which follow from the image
    size. Position bias tables of another window are resampled (bicubic).

    mmsegmentation's patch mergings gather the same channels in another order than those of the
    other code bases, in arrays of the same shapes. An encoder alone with its names may thus hold
    Microsoft's tensors, only renamed: a warning is logged unless `patch_merging` is given.

    Args:
      state_dict: Arrays by tensor name; float16, bfloat16 and float64 are cast to float32.
      encoder: It may be abstract (`nnx.eval_shape`) and is not modified.
      patch_merging: Key of `swin.PATCH_MERGINGS`, the order of the channels of patch mergings. None
        uses the order of the code base that the names are from.

    Raises:
      ValueError: If the order is unknown, there is no encoder, the encoder has another size, or
        names, shapes or values do not fit. The message lists them.
    """
    contents = identify(state_dict)
    if (naming := contents.naming) is None:
        raise ValueError(f"The state dict holds {contents}; expected a Swin encoder.")
    check_size(contents, encoder)
    if patch_merging:
        check_name("order of patch mergings", patch_merging, PATCH_MERGINGS)
        naming = dataclasses.replace(naming, patch_merging=patch_merging)
    elif contents.official is None and naming.family == "mmsegmentation":
        if not any(part in name for name in state_dict for part in MMSEGMENTATION_PARTS):
            advice = command("convert", "--from=FILE", "--to=DIR", "--patch_merging=microsoft")
            logging.getLogger(__name__).warning(
                "warning: the encoder has mmsegmentation's names, so its patch mergings are read "
                "in mmsegmentation's order. If these are Microsoft's tensors, only renamed, that "
                "is wrong. To choose, convert the file first: %s (or =mmsegmentation, without this "
                "warning), then --config.init.encoder=DIR.",
                advice,
            )
    return from_tensors(
        resample_positions(state_dict, encoder, naming),
        encoder,
        naming.rules,
        skipped_tensors=naming.skipped_tensors,
        skipped_parameters=naming.skipped_parameters,
        context=f"It holds {contents}; the encoder is {describe_size(encoder_size(encoder))}.",
    )


def encoder_to_torch(
    encoder: Swin, naming: str | Naming = "mmsegmentation"
) -> dict[str, np.ndarray]:
    """Returns an encoder's weights as a state dict of another code base.

    Args:
      naming: Key of `FAMILIES`, or the result of `find_naming` for a state dict. Those of
        classifiers ("timm", "microsoft") have no LayerNorm for the first three outputs.

    Raises:
      ValueError: If the family is unknown, or it has no names for norms that are not the identity.
    """
    naming = default_naming(naming) if isinstance(naming, str) else naming
    nameless = [i for i, name in enumerate(naming.norms) if name is None]
    lost = [f"norms.{i}" for i in nameless if not _is_identity(encoder.norms[i])]
    if lost:
        raise ValueError(
            f"{naming.family} has no names for {', '.join(lost)} of the encoder, which are not the "
            "identity. Use 'mmsegmentation' or 'huggingface'."
        )
    return to_tensors(encoder, naming.rules, skipped_parameters=naming.skipped_parameters)


def _is_identity(norm: LayerNorm) -> bool:
    return bool((norm.scale[...] == 1).all() and (norm.bias[...] == 0).all())


def check_size(contents: Contents, encoder: Swin) -> None:
    """Checks that the encoder in a state dict has the size of another, except for the window.

    Raises:
      ValueError: If the sizes differ. The message describes both.
    """
    ours = encoder_size(encoder)
    if contents.size and dataclasses.replace(contents.size, window=ours.window) != ours:
        name = size_name(contents.size)
        flag = f" (--config.model.encoder={name})" if name else ""
        raise ValueError(
            f"The state dict holds {describe_size(contents.size)}; the model has "
            f"{describe_size(ours)}. Use a model with that encoder{flag}, or another file."
        )


def resample_positions(
    tensors: Mapping[str, np.ndarray], encoder: Swin, naming: Naming
) -> dict[str, np.ndarray]:
    """Returns the tensors with position bias tables resampled for the windows of an encoder."""
    resampled = dict(tensors)
    shapes = {
        (i, j): block.attention.position_bias.shape
        for i, blocks in enumerate(encoder.stages)
        for j, block in enumerate(blocks)
    }
    for name, place in naming.find_tables(tensors).items():
        table = np.asarray(tensors[name])
        # A table with another number of heads or of no square window is reported as a wrong shape.
        side = 2 * table_window(table.shape) - 1 if table.ndim == 2 else 0
        same_heads = (side**2, *shapes.get(place, ())[1:])
        if table.shape == same_heads != shapes[place]:
            resampled[name] = resample_table(table, table_window(shapes[place]))
            resampled.pop(name.removesuffix(TABLE) + INDEX, None)
    return resampled


def resample_table(
    table: Float[np.ndarray, "offsets heads"], window: int
) -> Float[np.ndarray, "resampled heads"]:
    """Resamples a relative position bias table [(2 * side - 1)^2 heads] to a window, in float32.

    The interpolation is bicubic between offsets at the same relative place in the window, as in
    PyTorch's `F.interpolate` (a = -0.75, half-pixel centres), with which the authors of Swin
    transfer tables.
    """
    old, new = 2 * table_window(table.shape) - 1, 2 * window - 1
    maps = table.astype(np.float32).reshape(old, old, -1)
    heads = [
        cv2.resize(m, (new, new), interpolation=cv2.INTER_CUBIC) for m in np.moveaxis(maps, -1, 0)
    ]
    return np.stack(heads, -1).reshape(new**2, -1)
