"""Converts PyTorch tensors to parameters and back, given a list of rules."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtmamba_jax.convert.rules import BoundRule, Path, Rule, bind, compute_buffers, join_path
from mtmamba_jax.messages import bulleted
from mtmamba_jax.models.weights import WEIGHTS

NO_RULE = "parameters without a rule"
UNEXPECTED = "unexpected tensors, which the model has no place for"
MISSING = "missing tensors"
SHAPE = "wrong shapes"
DTYPE = "wrong dtypes"
VALUE = "NaN or infinite values"
BUFFER = "wrong buffers, whose values follow from the model's size"
PROBLEMS = (NO_RULE, UNEXPECTED, MISSING, SHAPE, DTYPE, VALUE, BUFFER)  # in the order of messages


def from_tensors(
    tensors: Mapping[str, np.ndarray],
    model: nnx.Module | nnx.State,
    rules: Sequence[Rule],
    tasks: Sequence[str] = (),
    *,
    order: Sequence[str] | None = None,
    skipped_tensors: Sequence[str] = (),
    skipped_parameters: Sequence[str] = (),
    context: str = "",
) -> nnx.State:
    """Converts PyTorch tensors to the parameters of a model, which `nnx.update` then loads.

    The tensors may be weights or gradients. Floating-point tensors of any width are cast to the
    dtype of the parameters (float32).

    Args:
      tensors: Arrays by tensor name, in PyTorch's arrangement.
      model: The module or its state. It may be abstract (`nnx.eval_shape`) and is not modified.
      rules: Conversion rules of the model.
      tasks: Names of the stacked tasks, in the model's order.
      order: The same tasks, in the order of tensors that concatenate them. By default `tasks`.
      skipped_tensors: Regular expressions of tensor names to ignore.
      skipped_parameters: Regular expressions of paths of parameters that have no tensor. They are
        not part of the result.
      context: Text to append to the error message.

    Raises:
      ValueError: If parameters have no rule, or tensors are missing, unexpected, not finite or of a
        wrong shape or dtype. The message lists the first names of each problem and the number of
        the others.
    """
    parameters = _flatten(model, skipped_parameters)
    bound, no_rule = bind(parameters, rules, tasks, order)
    problems: dict[str, list[str]] = {problem: [] for problem in PROBLEMS} | {NO_RULE: no_rule}
    converted = {}
    for each in bound:
        variables = [parameters[keys] for keys in each.keys]
        for problem, text in _find_problems(each, tensors, variables[0]):
            problems[problem].append(text)
        if not any(problems.values()):  # otherwise nothing is returned
            arrays = each.to_parameters([_cast(tensors[n], variables[0]) for n in each.names])
            for keys, variable, array in zip(each.keys, variables, arrays, strict=True):
                # A copy, because JAX may otherwise keep using the memory of the caller or of torch.
                converted[keys] = variable.replace(jnp.array(array, variable.dtype))
    buffers = compute_buffers(parameters, rules)
    saved = (name for name in buffers if name in tensors)
    problems[BUFFER] = [n for n in saved if not np.array_equal(tensors[n], buffers[n])]
    known = {name for each in bound for name in each.names} | buffers.keys()
    unknown = (name for name in tensors if name not in known)
    problems[UNEXPECTED] = [name for name in unknown if not _matches(skipped_tensors, name)]
    _raise_problems("The state dict does not fit the model", problems, context)
    return nnx.from_flat_state(converted)


def to_tensors(
    model: nnx.Module | nnx.State,
    rules: Sequence[Rule],
    tasks: Sequence[str] = (),
    *,
    order: Sequence[str] | None = None,
    skipped_parameters: Sequence[str] = (),
) -> dict[str, np.ndarray]:
    """Converts the parameters of a model to PyTorch tensors, the inverse of `from_tensors`.

    Floating-point arrays are float32 and counters int64, as in PyTorch. The arguments are those of
    `from_tensors`; a state may hold weights or gradients.

    Raises:
      ValueError: If parameters have no rule. The message lists them.
    """
    parameters = _flatten(model, skipped_parameters)
    bound, no_rule = bind(parameters, rules, tasks, order)
    _raise_problems("The model cannot be converted", {NO_RULE: no_rule})
    tensors = compute_buffers(parameters, rules)
    for each in bound:
        arrays = each.to_tensors([np.asarray(parameters[keys][...]) for keys in each.keys])
        for name, array in zip(each.names, arrays, strict=True):
            is_counter = np.issubdtype(array.dtype, np.integer)
            tensors[name] = np.array(array, np.int64 if is_counter else array.dtype, order="C")
    return tensors


def _find_problems(
    bound: BoundRule, tensors: Mapping[str, np.ndarray], variable: nnx.Variable
) -> Iterator[tuple[str, str]]:
    """Yields the problems of the tensors of a rule: one of `PROBLEMS` and the tensor."""
    shapes = bound.tensor_shapes(variable.shape)
    if len(shapes) != len(bound.names):
        path = join_path(bound.keys[0])
        yield SHAPE, f"{path}: {len(shapes)} tensors, but the names are {bound.names}"
        return
    for name, shape in zip(bound.names, shapes, strict=True):
        if name not in tensors:
            yield MISSING, name
            continue
        tensor = np.asarray(tensors[name])
        if tensor.shape != shape:
            yield SHAPE, f"{name}: expected {list(shape)}, got {list(tensor.shape)}"
        elif not jnp.issubdtype(tensor.dtype, _kind(variable)):
            yield DTYPE, f"{name}: expected {_kind(variable).__name__}, got {tensor.dtype}"
        elif not np.isfinite(_cast(tensor, variable)).all():
            yield VALUE, name


def _kind(variable: nnx.Variable) -> type:
    return jnp.floating if jnp.issubdtype(variable.dtype, jnp.floating) else jnp.integer


def _cast(tensor: np.ndarray, variable: nnx.Variable) -> np.ndarray:
    with np.errstate(over="ignore"):  # a value that overflows is reported as infinite
        return np.asarray(tensor).astype(variable.dtype, copy=False)


def _raise_problems(summary: str, problems: Mapping[str, Sequence[str]], context: str = "") -> None:
    found = {kind: names for kind, names in problems.items() if names}
    if found:
        lists = "\n  ".join(f"{kind} ({len(n)}):{bulleted(sorted(n))}" for kind, n in found.items())
        raise ValueError(f"{summary}:\n  {lists}" + (context and f"\n{context}"))


def _flatten(model: nnx.Module | nnx.State, skipped: Sequence[str]) -> dict[Path, nnx.Variable]:
    """Returns the weights of a model by path, without those that match a pattern."""
    state = model if isinstance(model, nnx.State) else nnx.state(model, WEIGHTS)
    return {k: v for k, v in nnx.to_flat_state(state) if not _matches(skipped, join_path(k))}


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.fullmatch(pattern, name) for pattern in patterns)
