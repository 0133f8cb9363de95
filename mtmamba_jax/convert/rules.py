"""Conversion rules between PyTorch tensors and the parameters of the modules here.

A rule relates tensors of a PyTorch state dict to parameters that hold the same numbers in another
arrangement, given as an einops pattern. The reverse conversion uses the same pattern with its
sides exchanged, so one list of rules serves both directions. The rules of a block are relative to
the block and are combined with `nest`, as the modules are.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
from einops import rearrange
from flax import nnx

from mtmamba_jax.kernels.ss2d import DIRECTIONS
from mtmamba_jax.tasks.table import OFFICIAL_NAMES

Path = tuple[object, ...]
"""Keys of a parameter in a flat NNX state."""


@dataclasses.dataclass(frozen=True)
class Rule:
    """Tensors and parameters that hold the same numbers.

    Attributes:
      paths: Regular expressions of parameter paths, with dots between the keys. Several parameters
        are stacked on an axis `part`, the first axis on the right side of the pattern.
      names: Tensor names; `\\1` and `\\2` are the groups of a path. Several tensors are stacked on
        an axis `part`, the first axis on the left side of the pattern.
      pattern: einops pattern from the tensors to the parameters. If the left side starts with `t`,
        `{task}` in a name is replaced by each task, and the tensors are stacked on that axis. An
        axis `(t c)` concatenates all tasks in the order of the state dict, see `bind`.
      shared: Name of a tensor that is stacked after those of the tasks, or "".
      sizes: Sizes of axes that shapes do not determine, besides t (tasks), k (directions) and
        `part`.
      compute: Function that computes a buffer, which PyTorch saves although it follows from the
        shape of a parameter, from that shape. The pattern is not used then.
    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    pattern: str
    shared: str = ""
    sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    compute: Callable[[tuple[int, ...]], np.ndarray] | None = None


def rule(paths: str | Sequence[str], names: str | Sequence[str], pattern: str, **sizes) -> Rule:
    """Returns a `Rule`; a single path or name need not be in a sequence."""
    paths, names = ((x,) if isinstance(x, str) else tuple(x) for x in (paths, names))
    return Rule(paths, names, pattern, sizes=sizes)


def linear_rules(path: str, name: str, *, axis: str = "", bias: bool = True) -> tuple[Rule, ...]:
    """Returns the rules of a linear layer: [out in] in PyTorch, [in out] here.

    Args:
      path: Path of the module here.
      name: Name of the module in PyTorch.
      axis: "t " if there is one layer per task.
      bias: Whether the layer has a bias.
    """
    kernel = rule(rf"{path}\.kernel", f"{name}.weight", f"{axis}o i -> {axis}i o")
    return (kernel, rule(rf"{path}\.bias", f"{name}.bias", f"{axis}o -> {axis}o"))[: 1 + bias]


def norm_rules(path: str, name: str, *, axis: str = "") -> tuple[Rule, ...]:
    """Returns the rules of a LayerNorm; see `linear_rules` for the arguments."""
    return (
        rule(rf"{path}\.scale", f"{name}.weight", f"{axis}c -> {axis}c"),
        rule(rf"{path}\.bias", f"{name}.bias", f"{axis}c -> {axis}c"),
    )


def nest(rules: Sequence[Rule], path: str, name: str) -> tuple[Rule, ...]:
    """Returns the rules of a submodule as rules of the module that contains it.

    Args:
      rules: Rules of the submodule.
      path: Regular expression that comes before the paths here.
      name: Text that comes before the names in PyTorch. `\\1` is the first group of `path`.
    """
    groups = re.compile(path).groups

    def prefix_name(part: str) -> str:
        return name + re.sub(r"\\(\d)", lambda m: f"\\{int(m[1]) + groups}", part)

    return tuple(
        dataclasses.replace(
            each,
            paths=tuple(path + part for part in each.paths),
            names=tuple(map(prefix_name, each.names)),
            shared=each.shared and prefix_name(each.shared),
        )
        for each in rules
    )


@dataclasses.dataclass(frozen=True)
class BoundRule:
    """A rule with the parameters of a model and the tensors that it converts.

    Attributes:
      rule: The rule.
      tasks: Number of tasks.
      names: Tensor names, in the order of stacking.
      keys: Paths of the parameters, in the order of stacking.
      order: Position of each task in a tensor that concatenates all tasks.
    """

    rule: Rule
    tasks: int
    names: tuple[str, ...]
    keys: tuple[Path, ...]
    order: tuple[int, ...]

    def to_parameters(self, tensors: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Converts tensors to parameters."""
        theirs, ours = self.rule.pattern.split(" -> ")
        stacks = theirs.startswith(("t ", "part "))
        array = self._rearrange(np.stack(tensors) if stacks else tensors[0], theirs, ours)
        if self._concatenates_tasks:
            array = array[list(self.order)]
        return list(array) if ours.startswith("part ") else [array]

    def to_tensors(self, parameters: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Converts parameters to tensors."""
        if self._concatenates_tasks:
            parameters = [array[np.argsort(self.order)] for array in parameters]
        return self._to_tensors(parameters)

    def _to_tensors(self, parameters: Sequence[np.ndarray]) -> list[np.ndarray]:
        theirs, ours = self.rule.pattern.split(" -> ")
        stacks = ours.startswith("part ")
        array = self._rearrange(np.stack(parameters) if stacks else parameters[0], ours, theirs)
        return list(array) if theirs.startswith(("t ", "part ")) else [array]

    @property
    def _concatenates_tasks(self) -> bool:
        return "(t " in self.rule.pattern

    def tensor_shapes(self, parameter_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
        """Returns the shapes of the tensors, given the shape of each parameter."""
        empty = np.broadcast_to(np.int8(0), parameter_shape)  # allocates nothing
        return [tensor.shape for tensor in self._to_tensors([empty] * len(self.keys))]

    def _rearrange(self, array: np.ndarray, source: str, target: str) -> np.ndarray:
        parts = max(len(self.rule.paths), len(self.rule.names))
        known = {"t": self.tasks, "k": len(DIRECTIONS), "part": parts, **self.rule.sizes}
        composed = re.findall(r"\w+", " ".join(re.findall(r"\(.*?\)", source)))
        sizes = {axis: size for axis, size in known.items() if axis in composed}
        return rearrange(array, f"{source} -> {target}", **sizes)


def bind(
    parameters: Iterable[Path],
    rules: Sequence[Rule],
    tasks: Sequence[str],
    order: Sequence[str] | None = None,
) -> tuple[list[BoundRule], list[str]]:
    """Returns the rules that apply to parameters, and the paths of parameters without a rule.

    Args:
      parameters: Paths of a model's parameters.
      rules: The model's rules.
      tasks: Names of the stacked tasks, in the model's order.
      order: The same tasks, in the order of tensors that concatenate them. By default the model's.
    """
    positions = tuple(map(list(order or tasks).index, tasks))
    matches: dict[tuple[int, tuple[str, ...]], dict[int, Path]] = {}
    unmatched = []
    for keys in parameters:
        if found := _find_rule(join_path(keys), rules, tasks):
            index, part, names = found
            matches.setdefault((index, names), {})[part] = keys
        else:
            unmatched.append(join_path(keys))
    bound = []
    for (index, names), parts in matches.items():
        keys = tuple(parts[part] for part in sorted(parts))
        if len(parts) == len(rules[index].paths):
            bound.append(BoundRule(rules[index], len(tasks), names, keys, positions))
        else:
            unmatched += [f"{join_path(each)}, without its other half" for each in keys]
    return bound, unmatched


def _find_rule(
    path: str, rules: Sequence[Rule], tasks: Sequence[str]
) -> tuple[int, int, tuple[str, ...]] | None:
    """Returns the index of a parameter's rule, the index in its paths, and the tensor names."""
    for index, each in enumerate(rules):
        for part, pattern in enumerate(() if each.compute else each.paths):
            if match := re.fullmatch(pattern, path):
                names = [
                    _expand_name(name, match, task)
                    for name in each.names
                    for task in (tasks if "{task}" in name else ("",))
                ]
                if each.shared:
                    names.append(_expand_name(each.shared, match))
                return index, part, tuple(names)
    return None


def _expand_name(template: str, match: re.Match, task: str = "") -> str:
    groups = [OFFICIAL_NAMES.get(group, group) for group in match.groups("")]
    name = re.sub(r"\\(\d)", lambda m: groups[int(m[1]) - 1], template)
    return name.replace("{task}", OFFICIAL_NAMES.get(task, task))


def compute_buffers(
    parameters: Mapping[Path, nnx.Variable], rules: Sequence[Rule]
) -> dict[str, np.ndarray]:
    """Returns the buffers that follow from the shapes of the parameters."""
    return {
        _expand_name(each.names[0], match): each.compute(variable.shape)
        for each in rules
        if each.compute
        for keys, variable in parameters.items()
        if (match := re.fullmatch(each.paths[0], join_path(keys)))
    }


def join_path(keys: Path) -> str:
    """Returns the path of a parameter as rules match it, with dots between the keys."""
    return ".".join(map(str, keys))
