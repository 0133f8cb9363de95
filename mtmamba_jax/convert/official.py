"""Conversion rules of the decoders of the official PyTorch code, MTMamba's and MTMamba++'s.

Names in the rules of a block are relative to the block. A block outside a model has one task.
"""

import dataclasses
import functools

from mtmamba_jax.convert.rules import Rule, linear_rules, nest, norm_rules, rule
from mtmamba_jax.models.mtmamba import MTMamba, MTMambaPlus

task_linear_rules = functools.partial(linear_rules, axis="t ")
task_norm_rules = functools.partial(norm_rules, axis="t ")


def conv_rules(path: str, name: str) -> tuple[Rule, ...]:
    """Returns the rules of a convolution without a task axis."""
    return (
        rule(rf"{path}\.kernel", f"{name}.weight", "o i h w -> h w i o"),
        rule(rf"{path}\.bias", f"{name}.bias", "o -> o"),
    )


def _gated_rules(name: str) -> tuple[Rule, ...]:
    """Returns the rule of a matrix that concatenates those of the extractor and of the gate."""
    paths = (r"in_proj\.kernel", r"gate\.kernel")
    return (rule(paths, f"{name}.weight", "t (part o) i -> part t i o"),)


MFE_RULES = (
    rule(r"conv\.kernel", "conv2d.weight", "t d 1 h w -> t h w d"),
    rule(r"conv\.bias", "conv2d.bias", "t d -> t d"),
    rule(r"ss2d\.projection", "x_proj_weight", "t k e d -> t k d e"),
    rule(r"ss2d\.step_weight", "dt_projs_weight", "t k d r -> t k r d"),
    rule(r"ss2d\.step_bias", "dt_projs_bias", "t k d -> t k d"),
    rule(r"ss2d\.log_a", "A_logs", "t (k d) n -> t k d n"),
    rule(r"ss2d\.skip", "Ds", "t (k d) -> t k d"),
    *task_norm_rules("norm", "out_norm"),
)
STM_RULES = (
    *task_norm_rules("norm", "norm"),
    *_gated_rules("op.in_proj"),
    *nest(MFE_RULES, r"mfe\.", "op."),
    *task_linear_rules("out_proj", "op.out_proj", bias=False),
)
_CROSS_TASK_NORMS = (
    *task_norm_rules("norm", "norm.{task}"),
    rule(r"norm_shared\.scale", "norm_share.weight", "(t c) -> t c"),
    rule(r"norm_shared\.bias", "norm_share.bias", "(t c) -> t c"),
)
CTM_RULES = (
    *_CROSS_TASK_NORMS,
    *task_linear_rules("in_proj", "op.{task}.in_proj", bias=False),
    rule("in_proj_shared", "op_share.in_proj.weight", "o (t c) -> t c o"),
    *task_linear_rules("gate", "in_proj.{task}", bias=False),
    *(
        dataclasses.replace(each, shared=each.names[0].replace("op.{task}", "op_share"))
        for each in nest(MFE_RULES, r"mfe\.", "op.{task}.")
    ),
    *task_linear_rules("out_proj", "out_proj.{task}", bias=False),
)
SCTM_RULES = (
    *_CROSS_TASK_NORMS,
    rule("in_proj_shared", "conv_share.0.weight", "o (t c) 1 1 -> t c o"),
    rule("bias_shared", "conv_share.0.bias", "o -> o"),
    *conv_rules("conv_shared", "conv_share.1"),
    *_gated_rules("op.{task}.in_proj"),
    *task_linear_rules("selecting", "op.{task}.in_proj_cross", bias=False),
    *nest(MFE_RULES, r"mfe\.", "op.{task}."),
    *task_linear_rules("out_proj", "op.{task}.out_proj", bias=False),
)
EXPAND_RULES = (
    *task_linear_rules("expand", "expand", bias=False),
    *task_norm_rules("norm", "norm"),
)

_STAGE = r"decoder\.stages\.(\d+)\."


def _fusion_rules(pattern: str) -> tuple[Rule, ...]:
    """Returns the rules of a stage's input, where one matrix reads feature and skip."""
    fuse, concat = _STAGE + r"fuse\.", r"concat_layers.{task}_\1"
    paths = (fuse + r"feature\.kernel", fuse + r"skip\.kernel")
    return (
        *nest(EXPAND_RULES, _STAGE + r"expand\.", r"expand_layers.{task}_\1."),
        rule(paths, concat + ".weight", pattern),
        rule(fuse + r"feature\.bias", concat + ".bias", "t o -> t o"),
    )


def _projection_rules(path: str) -> tuple[Rule, ...]:
    """Returns the rules of the heads' 1x1 convolutions; `path` has a group for the task."""
    return (
        rule(rf"{path}\.kernel", r"final_project.\1.weight", "o i 1 1 -> i o"),
        rule(rf"{path}\.bias", r"final_project.\1.bias", "o -> o"),
    )


MTMAMBA_RULES = (
    *_fusion_rules("t o (part i) -> part t i o"),
    *nest(STM_RULES, _STAGE + r"blocks\.0\.", r"block_1.{task}_\1."),
    *nest(STM_RULES, _STAGE + r"blocks\.1\.", r"block_2.{task}_\1."),
    *nest(CTM_RULES, _STAGE + r"blocks\.2\.", r"block_3.\1."),
    *nest(EXPAND_RULES, r"heads\.", "final_expand.{task}."),
    *_projection_rules(r"heads\.projections\.(\w+)"),
)
_HEAD = r"heads\.heads\.(\w+)\."
MTMAMBA_PLUS_RULES = (
    *_fusion_rules("t o (part i) 1 1 -> part t i o"),
    *nest(STM_RULES, _STAGE + r"blocks\.0\.", r"block_stm.{task}_\1.0."),
    *nest(STM_RULES, _STAGE + r"blocks\.1\.", r"block_stm.{task}_\1.1."),
    *nest(SCTM_RULES, _STAGE + r"blocks\.2\.", r"block_ctm.\1.0."),
    *nest(conv_rules("conv", "0"), _HEAD, r"final_expand.\1."),
    *norm_rules(_HEAD + "norm", r"final_expand.\1.1"),
    rule(_HEAD + r"norm\.mean", r"final_expand.\1.1.running_mean", "c -> c"),
    rule(_HEAD + r"norm\.var", r"final_expand.\1.1.running_var", "c -> c"),
    rule(_HEAD + "batches", r"final_expand.\1.1.num_batches_tracked", " -> "),
    *_projection_rules(_HEAD + "projection"),
)


@dataclasses.dataclass(frozen=True)
class OfficialModel:
    """A model of the official code.

    Attributes:
      title: Name of the model.
      model: Its class here.
      mark: Prefix of names that only this model has.
      decoder_rules: Conversion rules of all but the encoder, which is `backbone.` there.
    """

    title: str
    model: type[MTMamba]
    mark: str
    decoder_rules: tuple[Rule, ...]


TASK_ORDER = ("semseg", "depth", "human_parts", "saliency", "normals", "edge")
"""Order in which the official code concatenates tasks (`parse_task_dictionary`, its config.py)."""

OFFICIAL_MODELS = (
    OfficialModel("MTMamba++", MTMambaPlus, "block_ctm.", MTMAMBA_PLUS_RULES),
    OfficialModel("MTMamba", MTMamba, "block_3.", MTMAMBA_RULES),
)
