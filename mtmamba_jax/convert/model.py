"""A whole model's weights from the official PyTorch code, and back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flax import nnx

from mtmamba_jax.convert.encoder import check_size, encoder_from_torch, encoder_to_torch
from mtmamba_jax.convert.official import OFFICIAL, Official
from mtmamba_jax.convert.rules import Computed, Rule, within
from mtmamba_jax.convert.state_dicts import (
    Layout,
    check_not_whole,
    contents_of,
    describe_model,
    describe_size,
    in_official_order,
    size_of,
)
from mtmamba_jax.convert.swin import FAMILIES, swin_rules
from mtmamba_jax.convert.tensors import from_tensors, to_tensors
from mtmamba_jax.models.mtmamba import MTMamba
from mtmamba_jax.models.swin import Swin

BACKBONE = "backbone."


def from_torch(state_dict: Mapping[str, np.ndarray], model: nnx.Module) -> nnx.State:
    """Returns a model's weights from a PyTorch state dict; `nnx.update` puts them in.

    The cross-task blocks read tasks side by side, in the order of the state dict's names (that of
    the official code, where they are sorted); the model may have another. `to_torch` returns the
    state dict again, bit for bit, where the order is the official one. Floating-point numbers of
    other widths (float16, bfloat16, float64) become float32, as all our weights are.

    Args:
      state_dict: names to arrays in torch's arrangement.
      model: an `MTMamba` or `MTMambaPlus` with a `Swin`, for which the state dict is of the same
        model of the official code; or a `Swin`, as in `encoder_from_torch`. It may be abstract
        (`nnx.eval_shape`) and is not changed.

    Raises:
      ValueError: the state dict is of another model or size; or it lists all names that are
        missing, that have no place, whose shapes do not fit or that hold NaN or infinite values.
      TypeError: another class of model.
    """
    if isinstance(model, Swin):
        return encoder_from_torch(state_dict, model)
    official = official_model(model)
    contents = contents_of(state_dict)
    if contents.official is None:
        check_not_whole(state_dict)
    if contents.official is not official:
        remedy = (
            f"Take a configuration of {contents.official.title}, or another file."
            if contents.official
            else "An encoder alone is given as config.init.encoder (`encoder_from_torch`)."
        )
        raise ValueError(
            f"The state dict holds {contents}; the model is {official.title}. {remedy}"
        )
    check_size(contents, model.encoder)
    encoder, names = describe_size(size_of(model.encoder)), model.heads.names
    ours = describe_model(official, encoder, _blocks_of(model), names)
    return from_tensors(
        state_dict,
        model,
        official_table(official),
        model.heads.names,
        order=contents.tasks if set(contents.tasks) == set(model.heads.names) else None,
        about=f"It holds {contents}; the model is {ours}.",
    )


def to_torch(model: nnx.Module, layout: str | Layout = "mmsegmentation") -> dict[str, np.ndarray]:
    """Returns a model's weights as a state dict that the official PyTorch code loads.

    Tasks that lie side by side are in the official order, names are sorted. Buffers that PyTorch
    saves are in it; attention masks, which follow from the size of images, are
    not.

    Args:
      model: an `MTMamba` or `MTMambaPlus` with a `Swin`, or a `Swin` alone.
      layout: of a `Swin` alone, as in `encoder_to_torch`.

    Returns:
      Names to arrays in torch's arrangement: float32, and int64 for indices and counters.

    Raises:
      ValueError: a `Swin` has weights that the layout has no place for.
      TypeError: another class of model.
    """
    if isinstance(model, Swin):
        return encoder_to_torch(model, layout)
    official = official_model(model)
    tasks = model.heads.names
    table = official_table(official)
    found = to_tensors(model, table, tasks, order=in_official_order(tasks))
    return dict(sorted(found.items()))  # no order of the tasks is to be read from the names'


def _blocks_of(model: MTMamba) -> tuple[int, int]:
    """Returns expansion and state size of a model's blocks."""
    block = model.decoder.stages[0].blocks[0]
    width = block.norm.scale.shape[-1]
    *_, inner, states = block.mfe.ss2d.log_a.shape
    return inner // width, states


def official_model(model: nnx.Module) -> Official:
    """Returns the model of the official code that a model here is.

    Raises:
      TypeError: it is none.
    """
    found = next((each for each in OFFICIAL if type(model) is each.model), None)
    if found is None or not isinstance(model.encoder, Swin):
        what = type(model).__name__
        if found is not None:
            what += f" with a {type(model.encoder).__name__}"
        raise TypeError(
            f"A Swin, or an MTMamba or MTMambaPlus with one, was wanted; got {what}. For modules "
            "of your own there are `from_tensors` and `to_tensors`, which take a table."
        )
    return found


def official_table(official: Official) -> tuple[Rule | Computed, ...]:
    """Returns the table of a whole model of the official code."""
    family = FAMILIES["mmsegmentation"]
    norms = [BACKBONE + name for name in family.output_norms]
    encoder = swin_rules(family, norms, prefix=BACKBONE)
    return (*within(encoder, r"encoder\.", ""), *official.table)
