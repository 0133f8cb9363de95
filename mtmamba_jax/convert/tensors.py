"""Applying a table of rules: torch tensors to parameters, parameters to torch tensors."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtmamba_jax.convert.rules import Pairing, Table, computed, dotted, pair
from mtmamba_jax.messages import bulleted
from mtmamba_jax.models.weights import WEIGHTS

NO_RULE = "parameters without a rule"
NO_PLACE = "tensors that have no place in the model"
MISSING = "missing"
SHAPE = "other shapes"
KIND = "other kinds of numbers"
VALUE = "NaN or infinite values"
INDEX = "other values than the model's size gives"
PROBLEMS = (NO_RULE, NO_PLACE, MISSING, SHAPE, KIND, VALUE, INDEX)  # in the order they are told


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    model: nnx.Module | nnx.State,
    table: Table,
    tasks: Sequence[str] = (),
    *,
    order: Sequence[str] | None = None,
    left_out: Sequence[str] = (),
    kept: Sequence[str] = (),
    about: str = "",
) -> nnx.State:
    """Returns the parameters of `model` from torch tensors; `nnx.update` puts them in.

    Gradients are converted as well as weights are. Floating-point numbers of any width become the
    parameters' (float32).

    Args:
      tensors: torch names to arrays in torch's arrangement.
      model: the module to fill, or its state; may be abstract (`nnx.eval_shape`). Not changed.
      table: its rules.
      tasks: the names of the stacked tasks, in order.
      order: the same in the order of tensors that hold them side by side; None is that of `tasks`.
      left_out: regular expressions of names that have no place in the model.
      kept: regular expressions of parameters' paths that no tensor is asked for.
      about: what is said of tensors and model at the error's end.

    Raises:
      ValueError: lists parameters without a rule, missing tensors, those left over, those of
        another shape or kind of number, NaN and infinite values; the first names of each and how
        many more there are.
    """
    parameters = _without(kept, _weights(model))
    pairings, no_rule = pair(parameters, table, tasks, order)
    problems: dict[str, list[str]] = {problem: [] for problem in PROBLEMS} | {NO_RULE: no_rule}
    converted = {}
    for pairing in pairings:
        like = [parameters[keys] for keys in pairing.keys]
        for problem, found in _faults(pairing, tensors, like):
            problems[problem].append(found)
        if not any(problems.values()):  # nothing is returned in the end otherwise
            arrays = pairing.to_parameters([_read(tensors[n], like[0]) for n in pairing.names])
            for keys, variable, array in zip(pairing.keys, like, arrays, strict=True):
                # A copy: jax may otherwise go on using the caller's memory, or torch's.
                converted[keys] = variable.replace(jnp.array(array, variable.dtype))
    follows = computed(parameters, table)
    problems[INDEX] = [
        name
        for name, wanted in follows.items()
        if name in tensors and not np.array_equal(tensors[name], wanted)
    ]
    known = {name for pairing in pairings for name in pairing.names} | follows.keys()
    problems[NO_PLACE] = [
        name for name in tensors if name not in known and not _matches(left_out, name)
    ]
    _refuse("The state dict does not fit the model", problems, about)
    return nnx.from_flat_state(converted)


def to_tensors(
    model: nnx.Module | nnx.State,
    table: Table,
    tasks: Sequence[str] = (),
    *,
    order: Sequence[str] | None = None,
    kept: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Returns the torch tensors of a model's parameters, the inverse of `from_tensors`.

    Args:
      model: a module, or a state of it: weights or gradients.
      table: its rules.
      tasks: the names of the stacked tasks, in order.
      order: as in `from_tensors`.
      kept: regular expressions of parameters' paths that are not written.

    Returns:
      Torch names to arrays in torch's arrangement, float32; counters int64, as torch has them.

    Raises:
      ValueError: lists parameters without a rule.
    """
    parameters = _without(kept, _weights(model))
    pairings, no_rule = pair(parameters, table, tasks, order)
    _refuse("The model cannot be written", {NO_RULE: no_rule})
    tensors = computed(parameters, table)
    for pairing in pairings:
        arrays = pairing.to_tensors([np.asarray(parameters[keys][...]) for keys in pairing.keys])
        for name, array in zip(pairing.names, arrays, strict=True):
            counts = np.issubdtype(array.dtype, np.integer)
            tensors[name] = np.array(array, np.int64 if counts else array.dtype, order="C")
    return tensors


def _faults(pairing: Pairing, tensors, like) -> Iterable[tuple[str, str]]:
    """Yields what is wrong with a pairing's tensors: which of `PROBLEMS`, and the tensor."""
    wanted = pairing.tensor_shapes(like[0].shape)
    if len(wanted) != len(pairing.names):
        yield SHAPE, f"{dotted(pairing.keys[0])}: of {len(wanted)}, but named {pairing.names}"
        return
    for name, shape in zip(pairing.names, wanted, strict=True):
        if name not in tensors:
            yield MISSING, name
            continue
        tensor = np.asarray(tensors[name])
        if tensor.shape != shape:
            yield SHAPE, f"{name}: wanted {list(shape)}, got {list(tensor.shape)}"
        elif not jnp.issubdtype(tensor.dtype, _kind(like[0])):
            yield KIND, f"{name}: wanted {_kind(like[0]).__name__}, got {tensor.dtype}"
        elif not np.isfinite(_read(tensor, like[0])).all():
            yield VALUE, name


def _kind(variable: nnx.Variable) -> type:
    return jnp.floating if jnp.issubdtype(variable.dtype, jnp.floating) else jnp.integer


def _read(tensor: np.ndarray, like: nnx.Variable) -> np.ndarray:
    with np.errstate(over="ignore"):  # infinite then, which is looked for
        return np.asarray(tensor).astype(like.dtype, copy=False)


def _refuse(summary: str, problems: Mapping[str, Sequence[str]], about: str = "") -> None:
    """Raises a ValueError that lists problems by their kind, if there are any."""
    found = {kind: names for kind, names in problems.items() if names}
    if found:
        lists = "\n  ".join(f"{kind} ({len(n)}):{bulleted(sorted(n))}" for kind, n in found.items())
        raise ValueError(f"{summary}:\n  {lists}" + (about and f"\n{about}"))


def _weights(model: nnx.Module | nnx.State) -> dict[tuple, nnx.Variable]:
    state = model if isinstance(model, nnx.State) else nnx.state(model, WEIGHTS)
    return dict(nnx.to_flat_state(state))


def _without(patterns: Sequence[str], parameters: Mapping[tuple, nnx.Variable]) -> dict:
    return {k: v for k, v in parameters.items() if not _matches(patterns, dotted(k))}


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
