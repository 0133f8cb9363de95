"""Weights of the official PyTorch code, as parameters of the modules here.

A rule names a parameter here, the torch tensor it comes from and how one becomes the other. Rules
of a block are relative to it and are put together with prefixes, as the modules are.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtmamba_jax.kernels.ss2d import DIRECTIONS
from mtmamba_jax.models.weights import WEIGHTS

TASK_NAMES = {"saliency": "sal"}
BUFFERS = ("relative_position_index", "attn_mask", "num_batches_tracked")  # saved, not learned
"""The official names of tasks, where they differ from ours."""

Transform = Callable[[np.ndarray], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Rule:
    """One parameter's origin.

    Attributes:
      path: regular expression of the parameter's path here, dots between parts.
      name: the torch name; `\\1`, `\\2` are the path's groups, and `{task}` stands for each task,
        whose tensors are stacked on the leading axis t.
      transform: from the torch layout to ours, of one task's tensor.
      stacked: the parameter has the axis t (added, where the name has no `{task}`).
      shared_name: name of the tensor stacked after the tasks' own.
    """

    path: str
    name: str
    transform: Transform
    stacked: bool = True
    shared_name: str = ""


def _same(x: np.ndarray) -> np.ndarray:
    return x


def _transposed(x: np.ndarray) -> np.ndarray:
    return np.swapaxes(x, -1, -2)


def _unmerge(x: np.ndarray) -> np.ndarray:
    """Reorders 4c merged channels: nn.Unfold's (channel, row, column) -> (row, column, channel)."""
    return np.swapaxes(x.reshape(*x.shape[:-1], -1, 4), -1, -2).reshape(x.shape)


def within(rules: Iterable[Rule], path: str, name: str) -> tuple[Rule, ...]:
    """Returns the rules of a part as rules of the whole that holds it at `path` and `name`."""
    groups = re.compile(path).groups

    def renamed(part: str) -> str:
        return name + re.sub(r"\\(\d)", lambda m: f"\\{int(m[1]) + groups}", part)

    return tuple(
        dataclasses.replace(
            rule,
            path=path + rule.path,
            name=renamed(rule.name),
            shared_name=rule.shared_name and renamed(rule.shared_name),
        )
        for rule in rules
    )


def linear_rules(
    path: str, name: str, *, stacked: bool = True, bias: bool = True
) -> tuple[Rule, ...]:
    """Returns the rules of a linear map: torch keeps [out in], we [in out]."""
    kernel = Rule(rf"{path}\.kernel", f"{name}.weight", _transposed, stacked)
    return (kernel, Rule(rf"{path}\.bias", f"{name}.bias", _same, stacked))[: 1 + bias]


def norm_rules(path: str, name: str, *, stacked: bool = True) -> tuple[Rule, ...]:
    """Returns the rules of a LayerNorm."""
    return (
        Rule(rf"{path}\.scale", f"{name}.weight", _same, stacked),
        Rule(rf"{path}\.bias", f"{name}.bias", _same, stacked),
    )


def conv_rules(path: str, name: str) -> tuple[Rule, ...]:
    """Returns the rules of a convolution, not stacked: torch keeps [o i h w], we [h w i o]."""
    return (
        Rule(rf"{path}\.kernel", f"{name}.weight", lambda x: x.transpose(2, 3, 1, 0), False),
        Rule(rf"{path}\.bias", f"{name}.bias", _same, stacked=False),
    )


def _per_direction(x: np.ndarray) -> np.ndarray:
    return x.reshape(len(DIRECTIONS), -1, *x.shape[1:])


MFE_RULES = (
    Rule(r"conv\.kernel", "conv2d.weight", lambda x: x[:, 0].transpose(1, 2, 0)),
    Rule(r"conv\.bias", "conv2d.bias", _same),
    Rule(r"ss2d\.projection", "x_proj_weight", _transposed),
    Rule(r"ss2d\.step_weight", "dt_projs_weight", _transposed),
    Rule(r"ss2d\.step_bias", "dt_projs_bias", _same),
    Rule(r"ss2d\.log_a", "A_logs", _per_direction),
    Rule(r"ss2d\.skip", "Ds", _per_direction),
    *norm_rules("norm", "out_norm"),
)
STM_RULES = (
    *norm_rules("norm", "norm"),
    # One torch matrix holds the extractor's half and the gate's.
    Rule(r"in_proj\.kernel", "op.in_proj.weight", lambda x: np.split(x, 2)[0].T),
    Rule(r"gate\.kernel", "op.in_proj.weight", lambda x: np.split(x, 2)[1].T),
    *within(MFE_RULES, r"mfe\.", "op."),
    *linear_rules(r"out_proj", "op.out_proj", bias=False),
)


def ctm_rules(tasks: int) -> tuple[Rule, ...]:
    """Returns the rules of a cross-task block with that many tasks."""

    def split_tasks(x):  # [tasks*c ...] -> [tasks c ...]
        return x.reshape(tasks, -1, *x.shape[1:])

    return (
        *norm_rules("norm", "norm.{task}"),
        Rule(r"norm_shared\.scale", "norm_share.weight", split_tasks, stacked=False),
        Rule(r"norm_shared\.bias", "norm_share.bias", split_tasks, stacked=False),
        *linear_rules("in_proj", "op.{task}.in_proj", bias=False),
        Rule(
            "in_proj_shared", "op_share.in_proj.weight", lambda x: split_tasks(x.T), stacked=False
        ),
        *linear_rules("gate", "in_proj.{task}", bias=False),
        *(
            dataclasses.replace(rule, shared_name=rule.name.replace("op.{task}", "op_share"))
            for rule in within(MFE_RULES, r"mfe\.", "op.{task}.")
        ),
        *linear_rules("out_proj", "out_proj.{task}", bias=False),
    )


def sctm_rules(tasks: int) -> tuple[Rule, ...]:
    """Returns the rules of MTMamba++'s cross-task block with that many tasks."""

    def split_tasks(x):  # [tasks*c ...] -> [tasks c ...]
        return x.reshape(tasks, -1, *x.shape[1:])

    return (
        *norm_rules("norm", "norm.{task}"),
        Rule(r"norm_shared\.scale", "norm_share.weight", split_tasks, stacked=False),
        Rule(r"norm_shared\.bias", "norm_share.bias", split_tasks, stacked=False),
        Rule(
            "in_proj_shared",
            "conv_share.0.weight",
            lambda x: split_tasks(x[:, :, 0, 0].T),
            stacked=False,
        ),
        Rule("bias_shared", "conv_share.0.bias", _same, stacked=False),
        *conv_rules("conv_shared", "conv_share.1"),
        # One torch matrix holds the extractor's half and the gate's.
        Rule(r"in_proj\.kernel", "op.{task}.in_proj.weight", lambda x: np.split(x, 2)[0].T),
        Rule(r"gate\.kernel", "op.{task}.in_proj.weight", lambda x: np.split(x, 2)[1].T),
        *linear_rules("selecting", "op.{task}.in_proj_cross", bias=False),
        *within(MFE_RULES, r"mfe\.", "op.{task}."),
        *linear_rules("out_proj", "op.{task}.out_proj", bias=False),
    )


EXPAND_RULES = (
    *linear_rules("expand", "expand", bias=False),
    *norm_rules("norm", "norm"),
)

_BLOCK = r"stages\.(\d+)\.(\d+)\."
SWIN_RULES = (
    Rule(
        r"patch_embed\.projection\.kernel",
        "patch_embed.projection.weight",
        lambda x: x.transpose(2, 3, 1, 0).reshape(-1, len(x)),
        stacked=False,
    ),
    Rule(r"patch_embed\.projection\.bias", "patch_embed.projection.bias", _same, stacked=False),
    *norm_rules(r"patch_embed\.norm", "patch_embed.norm", stacked=False),
    *within(
        (
            *norm_rules("norm_1", "norm1", stacked=False),
            *norm_rules("norm_2", "norm2", stacked=False),
            *linear_rules(r"attention\.qkv", "attn.w_msa.qkv", stacked=False),
            *linear_rules(r"attention\.projection", "attn.w_msa.proj", stacked=False),
            Rule(
                r"attention\.position_bias",
                "attn.w_msa.relative_position_bias_table",
                _same,
                stacked=False,
            ),
            *linear_rules("mlp_in", "ffn.layers.0.0", stacked=False),
            *linear_rules("mlp_out", "ffn.layers.1", stacked=False),
        ),
        _BLOCK,
        r"stages.\1.blocks.\2.",
    ),
    Rule(r"mergings\.(\d+)\.norm\.scale", r"stages.\1.downsample.norm.weight", _unmerge, False),
    Rule(r"mergings\.(\d+)\.norm\.bias", r"stages.\1.downsample.norm.bias", _unmerge, False),
    Rule(
        r"mergings\.(\d+)\.reduction\.kernel",
        r"stages.\1.downsample.reduction.weight",
        lambda x: _unmerge(x).T,
        False,
    ),
    *norm_rules(r"norms\.(\d+)", r"norm\1", stacked=False),
)


_STAGE = r"decoder\.stages\.(\d+)\."


def _shared_rules() -> tuple[Rule, ...]:
    """Returns the rules of what MTMamba and MTMamba++ have alike."""
    fuse, concat = _STAGE + r"fuse\.", r"concat_layers.{task}_\1"

    def half(x, index):  # MTMamba++ saves the matrix as a 1x1 convolution
        return np.split(x.reshape(x.shape[:2]), 2, 1)[index].T

    return (
        *within(SWIN_RULES, r"encoder\.", "backbone."),
        *within(EXPAND_RULES, _STAGE + r"expand\.", r"expand_layers.{task}_\1."),
        Rule(fuse + r"feature\.kernel", concat + ".weight", lambda x: half(x, 0)),
        Rule(fuse + r"skip\.kernel", concat + ".weight", lambda x: half(x, 1)),
        Rule(fuse + r"feature\.bias", concat + ".bias", _same),
    )


def _projection_rules(path: str) -> tuple[Rule, ...]:
    """Returns the rules of the heads' 1x1 convolutions; the path has a group for the task."""
    name = r"final_project.\1"
    return (
        Rule(rf"{path}\.kernel", f"{name}.weight", lambda x: x[:, :, 0, 0].T, stacked=False),
        Rule(rf"{path}\.bias", f"{name}.bias", _same, stacked=False),
    )


def mtmamba_rules(tasks: int) -> tuple[Rule, ...]:
    """Returns the rules of a whole MTMamba checkpoint with that many tasks."""
    return (
        *_shared_rules(),
        *within(STM_RULES, _STAGE + r"blocks\.0\.", r"block_1.{task}_\1."),
        *within(STM_RULES, _STAGE + r"blocks\.1\.", r"block_2.{task}_\1."),
        *within(ctm_rules(tasks), _STAGE + r"blocks\.2\.", r"block_3.\1."),
        *within(EXPAND_RULES, r"heads\.", "final_expand.{task}."),
        *_projection_rules(r"heads\.projections\.(\w+)"),
    )


def mtmamba_plus_rules(tasks: int) -> tuple[Rule, ...]:
    """Returns the rules of a whole MTMamba++ checkpoint with that many tasks."""
    head, name = r"heads\.heads\.(\w+)\.", r"final_expand.\1."
    return (
        *_shared_rules(),
        *within(STM_RULES, _STAGE + r"blocks\.0\.", r"block_stm.{task}_\1.0."),
        *within(STM_RULES, _STAGE + r"blocks\.1\.", r"block_stm.{task}_\1.1."),
        *within(sctm_rules(tasks), _STAGE + r"blocks\.2\.", r"block_ctm.\1.0."),
        *within(conv_rules("conv", "0"), head, name),
        *within(norm_rules("norm", "1", stacked=False), head, name),
        Rule(head + r"norm\.mean", name + "1.running_mean", _same, stacked=False),
        Rule(head + r"norm\.var", name + "1.running_var", _same, stacked=False),
        *_projection_rules(head + "projection"),
    )


def from_torch(
    state_dict: Mapping[str, np.ndarray],
    model: nnx.Module,
    rules: Sequence[Rule],
    tasks: Sequence[str] = (),
) -> nnx.State:
    """Returns the parameters of `model` from an official state dict; `nnx.update` puts them in.

    Gradients are converted as well as weights are: every transform is a rearrangement.

    Args:
      state_dict: torch names to arrays in torch's layouts.
      model: the module to fill; may be abstract (`nnx.eval_shape`). It is not changed.
      rules: `mtmamba_rules(...)`, or those of a block.
      tasks: the names of the stacked tasks, in order.

    Raises:
      ValueError: lists every parameter without a rule or a tensor, every shape that does not fit
        and every tensor left over.
    """
    problems: list[str] = []
    used: set[str] = set()
    converted = {}
    for keys, parameter in nnx.to_flat_state(nnx.state(model, WEIGHTS)):
        path = ".".join(map(str, keys))
        found = find_rule(path, rules, tasks)
        if found is None:
            problems.append(f"{path}: no rule")
            continue
        rule, names = found
        used.update(names)
        missing = [name for name in names if name not in state_dict]
        if missing:
            problems.append(f"{path}: missing {', '.join(missing)}")
            continue
        try:
            arrays = [rule.transform(np.asarray(state_dict[name])) for name in names]
            array = np.stack(arrays) if rule.stacked else arrays[0]
        except (ValueError, IndexError):  # a rearrangement that the tensor's shape does not allow
            array = None
        if array is None or array.shape != parameter.shape:
            came = ", ".join(f"{name} {np.shape(state_dict[name])}" for name in names)
            problems.append(f"{path}: wanted {parameter.shape}, got {came}")
            continue
        converted[keys] = parameter.replace(jnp.asarray(array, parameter.dtype))
    left = sorted(name for name in set(state_dict) - used if not name.endswith(BUFFERS))
    problems += [f"{name}: not used" for name in left]
    if problems:
        raise ValueError(
            f"The state dict does not fit the model ({len(problems)} problems):\n  "
            + "\n  ".join(problems)
        )
    return nnx.from_flat_state(converted)


def find_rule(
    path: str, rules: Iterable[Rule], tasks: Sequence[str]
) -> tuple[Rule, list[str]] | None:
    """Returns the rule of the parameter at `path` and the torch tensors it stacks, or None."""
    for rule in rules:
        match = re.fullmatch(rule.path, path)
        if match:
            per_task = tasks if "{task}" in rule.name else ("",)
            names = [_torch_name(rule.name, match, task) for task in per_task]
            if rule.shared_name:
                names.append(_torch_name(rule.shared_name, match))
            return rule, names
    return None


def _torch_name(template: str, match: re.Match, task: str = "") -> str:
    groups = [TASK_NAMES.get(group, group) for group in match.groups()]
    name = re.sub(r"\\(\d)", lambda m: groups[int(m[1]) - 1], template)
    return name.replace("{task}", TASK_NAMES.get(task, task))
