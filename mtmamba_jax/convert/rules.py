"""What a conversion rule is, and how a table of rules is applied in both directions.

A rule pairs tensors of a PyTorch state dict with parameters here that hold the same numbers in
another arrangement. The arrangement is an einops pattern, so the way back is the same pattern with
its sides exchanged: one table serves both directions. Rules of a block are relative to it and are
put together with `within`, as the modules are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from einops import rearrange
from flax import nnx

from mtmamba_jax.kernels.ss2d import DIRECTIONS

TASK_NAMES = {"saliency": "sal"}
"""The official names of tasks, where they differ from ours."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors and parameters that hold the same numbers.

    Attributes:
      paths: regular expressions of parameters' paths here, dots between parts. Several are stacked
        on an axis `part`, with which the pattern's right side then begins.
      names: torch names; `\\1`, `\\2` are a path's groups. Several are stacked on an axis `part`,
        with which the pattern's left side then begins.
      pattern: einops, torch's arrangement -> ours. Where the left side begins with `t`, `{task}` in
        the name stands for each task, whose tensors are stacked on that axis.
      shared: name of a tensor stacked after the tasks' own; "" is none.
      sizes: of axes that shapes do not tell; t (tasks), k (directions) and `part` are known.

    A tensor `(t c)` holds all tasks side by side, in an order of the file's own: see `pair`.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    pattern: str
    shared: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Computed:
    """A tensor that PyTorch saves although it follows from a parameter's shape.

    Attributes:
      path: as a rule's, of the parameter.
      name: as a rule's, of the tensor.
      compute: from the parameter's shape to the tensor.
    """

    path: str
    name: str
    compute: Callable[[tuple[int, ...]], np.ndarray]


Table = Sequence[Rule | Computed]


def rule(paths: str | Sequence[str], names: str | Sequence[str], pattern: str, **sizes) -> Rule:
    """Returns a `Rule`; one path or name need not be put in a tuple."""
    paths, names = ((x,) if isinstance(x, str) else tuple(x) for x in (paths, names))
    return Rule(paths, names, pattern, sizes=sizes)


def linear_rules(path: str, name: str, *, axis: str = "", bias: bool = True) -> tuple[Rule, ...]:
    """Returns the rules of a linear map: torch keeps [out in], we [in out].

    Args:
      path: of the module here.
      name: of the module there.
      axis: "t " where there is one for each task.
      bias: it has one.
    """
    kernel = rule(rf"{path}\.kernel", f"{name}.weight", f"{axis}o i -> {axis}i o")
    return (kernel, rule(rf"{path}\.bias", f"{name}.bias", f"{axis}o -> {axis}o"))[: 1 + bias]


def norm_rules(path: str, name: str, *, axis: str = "") -> tuple[Rule, ...]:
    """Returns the rules of a LayerNorm; the arguments are those of `linear_rules`."""
    return (
        rule(rf"{path}\.scale", f"{name}.weight", f"{axis}c -> {axis}c"),
        rule(rf"{path}\.bias", f"{name}.bias", f"{axis}c -> {axis}c"),
    )


def within(table: Table, path: str, name: str) -> tuple[Rule | Computed, ...]:
    """Returns the rules of a part as rules of the whole that holds it at `path` and `name`."""
    groups = re.compile(path).groups

    def renamed(part: str) -> str:
        return name + re.sub(r"\\(\d)", lambda m: f"\\{int(m[1]) + groups}", part)

    def moved(each: Rule | Computed) -> Rule | Computed:
        if isinstance(each, Computed):
            return dataclasses.replace(each, path=path + each.path, name=renamed(each.name))
        return dataclasses.replace(
            each,
            paths=tuple(path + part for part in each.paths),
            names=tuple(map(renamed, each.names)),
            shared=each.shared and renamed(each.shared),
        )

    return tuple(map(moved, table))


@dataclasses.dataclass(frozen=True)
class Pairing:
    """A rule applied to a model.

    Attributes:
      rule: the rule.
      tasks: how many there are.
      names: the tensors it stands for, in the order they are stacked in.
      keys: the parameters', likewise.
      order: of each task its place among those of a tensor that holds them side by side.
    """

    rule: Rule
    tasks: int
    names: tuple[str, ...]
    keys: tuple[tuple, ...]
    order: tuple[int, ...]

    def to_parameters(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the parameters that hold the tensors' numbers."""
        theirs, ours = self.rule.pattern.split(" -> ")
        found = self._rearrange(_stacked(tensors, theirs, ("t", "part")), theirs, ours)
        if self._is_joint:
            found = found[list(self.order)]
        return list(found) if ours.startswith("part ") else [found]

    def to_tensors(self, parameters: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the tensors that hold the parameters' numbers."""
        if self._is_joint:
            parameters = [array[np.argsort(self.order)] for array in parameters]
        return self._to_tensors(parameters)

    def _to_tensors(self, parameters: Sequence[np.ndarray]) -> list[np.ndarray]:
        theirs, ours = self.rule.pattern.split(" -> ")
        found = self._rearrange(_stacked(parameters, ours, ("part",)), ours, theirs)
        return list(found) if theirs.startswith(("t ", "part ")) else [found]

    @property
    def _is_joint(self) -> bool:
        return "(t " in self.rule.pattern

    def tensor_shapes(self, parameter_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns the shapes of the tensors of parameters of that shape."""
        empty = np.broadcast_to(np.int8(0), parameter_shape)  # takes no memory
        return [tensor.shape for tensor in self._to_tensors([empty] * len(self.keys))]

    def _rearrange(self, array, source, target):
        parts = max(len(self.rule.paths), len(self.rule.names))
        known = {"t": self.tasks, "k": len(DIRECTIONS), "part": parts, **self.rule.sizes}
        composed = re.findall(r"\w+", " ".join(re.findall(r"\(.*?\)", source)))
        sizes = {axis: size for axis, size in known.items() if axis in composed}
        return rearrange(array, f"{source} -> {target}", **sizes)


def _stacked(arrays, side: str, axes: Sequence[str]) -> np.ndarray:
    return np.stack(arrays) if side.split(" ")[0] in axes else arrays[0]


def pair(
    parameters: Iterable[tuple],
    table: Table,
    tasks: Sequence[str],
    order: Sequence[str] | None = None,
) -> tuple[list[Pairing], list[str]]:
    """Returns the rules that apply, and the paths of parameters that none does.

    Args:
      parameters: their paths, as keys.
      table: the rules.
      tasks: the names of the stacked tasks, in the model's order.
      order: the same in that of tensors that hold them side by side; None is the model's.
    """
    places_of_tasks = tuple(map(list(order or tasks).index, tasks))
    places: dict[tuple, dict[int, tuple]] = {}
    unpaired = []
    for keys in parameters:
        found = _find(dotted(keys), table, tasks)
        if found is None:
            unpaired.append(dotted(keys))
        else:
            index, place, names = found
            places.setdefault((index, names), {})[place] = keys
    pairings = []
    for (index, names), found in places.items():
        whole = len(found) == len(table[index].paths)
        keys = tuple(found[place] for place in sorted(found))
        if whole:
            pairings.append(Pairing(table[index], len(tasks), names, keys, places_of_tasks))
        else:
            unpaired += [f"{dotted(each)}, without its other half" for each in keys]
    return pairings, unpaired


def _find(path: str, table: Table, tasks: Sequence[str]) -> tuple[int, int, tuple[str, ...]] | None:
    """Returns which rule a parameter has, which of its paths it is, and the tensors' names."""
    for index, each in enumerate(table):
        for place, pattern in enumerate(each.paths if isinstance(each, Rule) else ()):
            match = re.fullmatch(pattern, path)
            if match:
                names = [
                    _torch_name(name, match, task)
                    for name in each.names
                    for task in (tasks if "{task}" in name else ("",))
                ]
                if each.shared:
                    names.append(_torch_name(each.shared, match))
                return index, place, tuple(names)
    return None


def _torch_name(template: str, match: re.Match, task: str = "") -> str:
    groups = [TASK_NAMES.get(group, group) for group in match.groups()]
    name = re.sub(r"\\(\d)", lambda m: groups[int(m[1]) - 1], template)
    return name.replace("{task}", TASK_NAMES.get(task, task))


def computed(parameters: Mapping[tuple, nnx.Variable], table: Table) -> dict[str, np.ndarray]:
    """Returns the tensors that follow from the parameters' shapes."""
    found = {}
    for each in table:
        for keys, variable in parameters.items() if isinstance(each, Computed) else ():
            match = re.fullmatch(each.path, dotted(keys))
            if match:
                found[_torch_name(each.name, match)] = each.compute(variable.shape)
    return found


def dotted(keys: tuple) -> str:
    """Returns a parameter's path as rules have it."""
    return ".".join(map(str, keys))
