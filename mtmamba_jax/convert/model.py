"""Conversion of a whole model's weights from the official PyTorch code, and back."""

from collections.abc import Mapping

import numpy as np
from flax import nnx

from mtmamba_jax.convert.encoder import check_size, encoder_from_torch, encoder_to_torch
from mtmamba_jax.convert.official import OFFICIAL_MODELS, OfficialModel
from mtmamba_jax.convert.rules import Rule, nest
from mtmamba_jax.convert.state_dicts import (
    Contents,
    check_no_prefix,
    encoder_size,
    identify,
    sort_tasks,
)
from mtmamba_jax.convert.swin import FAMILIES, swin_rules
from mtmamba_jax.convert.tensors import from_tensors, to_tensors
from mtmamba_jax.models.blocks import STM
from mtmamba_jax.models.mtmamba import MTMamba
from mtmamba_jax.models.swin import Swin


def from_torch(state_dict: Mapping[str, np.ndarray], model: nnx.Module) -> nnx.State:
    """Converts a PyTorch state dict to a model's weights; `nnx.update` loads the result.

    The official cross-task blocks concatenate the tasks in the order of the names in the state
    dict, which may differ from the model's order. If it is the official order, `to_torch` returns
    the same state dict, bit for bit. Floating-point arrays of other widths (float16, bfloat16,
    float64) are cast to float32, the dtype of all weights.

    Args:
      state_dict: Arrays by tensor name, in PyTorch's arrangement.
      model: An `MTMamba` or `MTMambaPlus` with a `Swin`, for a state dict of the same model of the
        official code; or a `Swin`, see `encoder_from_torch`. The model may be abstract
        (`nnx.eval_shape`) and is not modified.

    Raises:
      ValueError: If the state dict is of another model or size, or tensors are missing, unexpected,
        not finite or of a wrong shape. The message lists them.
      TypeError: If the class of the model is not supported.
    """
    if isinstance(model, Swin):
        return encoder_from_torch(state_dict, model)
    official = find_official_model(model)
    assert isinstance(model, MTMamba)
    contents = identify(state_dict)
    if contents.official is None:
        check_no_prefix(state_dict)
    if contents.official is not official:
        remedy = (
            f"Use a configuration of {contents.official.title}, or another file."
            if contents.official
            else "To load only an encoder, use config.init.encoder or `encoder_from_torch`."
        )
        raise ValueError(
            f"The state dict holds {contents}; the model is {official.title}. {remedy}"
        )
    assert isinstance(model.encoder, Swin)
    check_size(contents, model.encoder)
    names = model.heads.names
    ours = Contents(official, names, None, encoder_size(model.encoder), _find_blocks(model))
    return from_tensors(
        state_dict,
        model,
        model_rules(official),
        names,
        order=contents.tasks if set(contents.tasks) == set(names) else None,
        context=f"It holds {contents}; the model is {ours}.",
    )


def to_torch(model: nnx.Module) -> dict[str, np.ndarray]:
    """Returns a model's weights as a state dict that the official PyTorch code loads.

    Tasks are concatenated in the official order, and names are sorted. The state dict includes the
    buffers that PyTorch saves, except for attention masks, which follow from the image size.
    Arrays are in PyTorch's arrangement: float32, and int64 for indices and counters.

    Args:
      model: An `MTMamba` or `MTMambaPlus` with a `Swin`, or a `Swin` alone.

    Raises:
      TypeError: If the class of the model is not supported.
    """
    if isinstance(model, Swin):
        return encoder_to_torch(model)
    official = find_official_model(model)
    assert isinstance(model, MTMamba)
    tasks = model.heads.names
    tensors = to_tensors(model, model_rules(official), tasks, order=sort_tasks(tasks))
    return dict(sorted(tensors.items()))  # sorted names mean that tasks are in the official order


def _find_blocks(model: MTMamba) -> tuple[int, int]:
    """Returns expansion and state size of the decoder blocks."""
    block = model.decoder.stages[0].blocks[0]
    assert isinstance(block, STM)
    width = block.norm.scale.shape[-1]
    *_, inner, states = block.mfe.ss2d.log_a.shape
    return inner // width, states


def find_official_model(model: nnx.Module) -> OfficialModel:
    """Returns the official code's counterpart of a model.

    Raises:
      TypeError: If there is none.
    """
    what = type(model).__name__
    if isinstance(model, MTMamba):
        for official in OFFICIAL_MODELS:
            if type(model) is official.model and isinstance(model.encoder, Swin):
                return official
        what += f" with a {type(model.encoder).__name__}"
    raise TypeError(
        f"Expected a Swin, or an MTMamba or MTMambaPlus with one; got {what}. For other modules, "
        "use `from_tensors` and `to_tensors` with rules of your own."
    )


def model_rules(official: OfficialModel) -> tuple[Rule, ...]:
    """Returns the rules of a whole model of the official code."""
    family = FAMILIES["mmsegmentation"]
    norms = [f"backbone.{name}" for name in family.output_norms]
    encoder = swin_rules(family, norms, prefix="backbone.")
    return (*nest(encoder, r"encoder\.", ""), *official.decoder_rules)
