"""Identifies the model in a PyTorch state dict by the names and shapes of its tensors."""

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from mtmamba_jax.convert.official import OFFICIAL_MODELS, TASK_ORDER, OfficialModel
from mtmamba_jax.convert.rules import Rule
from mtmamba_jax.convert.swin import (
    FAMILIES,
    INDEX,
    PATCH_MERGINGS,
    TABLE,
    swin_rules,
    table_window,
)
from mtmamba_jax.messages import check_name, shortened
from mtmamba_jax.models.swin import SWIN_SIZES, Swin, SwinSize
from mtmamba_jax.tasks.table import OFFICIAL_NAMES


@dataclasses.dataclass(frozen=True)
class Naming:
    """Names of the tensors of a Swin encoder in a state dict.

    Attributes:
      family: Key of `FAMILIES`.
      norms: Full names of the LayerNorms of the four outputs, None for outputs without one.
      prefix: Prefix of all other names.
      has_index: Whether relative position indices are saved.
      patch_merging: Key of `PATCH_MERGINGS`, the order of patch mergings; None for the family's.
    """

    family: str
    norms: tuple[str | None, ...]
    prefix: str = ""
    has_index: bool = True
    patch_merging: str | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """Conversion rules of the encoder."""
        family = FAMILIES[self.family]
        if self.patch_merging:
            family = dataclasses.replace(family, merged=PATCH_MERGINGS[self.patch_merging])
        return swin_rules(family, self.norms, prefix=self.prefix, has_index=self.has_index)

    @property
    def skipped_tensors(self) -> tuple[str, ...]:
        """Regular expressions of tensors that are not part of a feature encoder.

        Everything outside a prefix is skipped, because the encoder is then a part of another model.
        """
        family, prefix = FAMILIES[self.family], re.escape(self.prefix)
        inside = family.skipped
        if self.norms[0]:  # an encoder with a norm for each output does not use a classifier's norm
            inside += (rf"{re.escape(family.last_norm)}\.(weight|bias)",)
        outside = (rf"(?!{prefix}).*",) if prefix else ()
        return (*(prefix + each for each in inside), *outside)

    @property
    def skipped_parameters(self) -> tuple[str, ...]:
        """Regular expressions of the encoder's parameters that have no tensor."""
        return tuple(rf"norms\.{i}\..*" for i, name in enumerate(self.norms) if name is None)

    @property
    def block_pattern(self) -> str:
        """Regular expression of the beginning of a block's names, with groups for the indices."""
        return re.escape(self.prefix + FAMILIES[self.family].stages) + r"\.(\d+)\.blocks\.(\d+)\."

    def find_tables(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Returns the stage and block of each name that is a position bias table."""
        pattern = self.block_pattern + re.escape(FAMILIES[self.family].positions + TABLE)
        matches = ((name, re.fullmatch(pattern, name)) for name in names)
        return {name: (int(m[1]), int(m[2])) for name, m in matches if m}


def default_naming(family: str) -> Naming:
    """Returns the naming of published files of a family.

    Raises:
      ValueError: If the family is unknown; the message lists the valid ones.
    """
    check_name("family of Swin encoders", family, FAMILIES)
    names = FAMILIES[family]
    last = (None, None, None, names.last_norm)
    return Naming(family, last if names.classifier else names.output_norms)


def find_naming(tensors: Iterable[str]) -> Naming:
    """Returns the naming of the Swin encoder in a state dict, found by the names in it.

    Raises:
      ValueError: If the state dict has no Swin encoder or several. The message lists the names that
        were searched for.
    """
    names = set(tensors)
    found = [naming for family in FAMILIES for naming in _find_family(family, names)]
    if len(found) == 1:
        return found[0]
    searched = "\n  ".join(
        f"{family}: {each.embedding[0]}.weight, {each.stages}.0.blocks.0.{each.positions}{TABLE}"
        for family, each in FAMILIES.items()
    )
    got = " and ".join(f"{each.family} at {each.prefix!r}" for each in found)
    got = got or shortened(sorted(names), 3) or "no names"
    raise ValueError(
        "Expected a state dict with one Swin encoder, whose names after any prefix are those of"
        f"\n  {searched}\nGot {got}."
    )


def _find_family(family: str, names: set[str]) -> Iterator[Naming]:
    """Yields the naming of each encoder with the names of a family."""
    names_of = FAMILIES[family]
    embedding = re.escape(names_of.embedding[0])
    matches = (re.fullmatch(rf"(.*\.|){embedding}\.weight", name) for name in names)
    for prefix in sorted(m[1] for m in matches if m):
        # Timm differs from Microsoft only in the place of the mergings.
        is_timm = any(name.startswith(f"{prefix}layers.3.downsample") for name in names)
        if family in ("timm", "microsoft") and is_timm != (family == "timm"):
            continue
        has_index = any(name.endswith(names_of.positions + INDEX) for name in names)
        naming = Naming(family, _find_norms(family, names, prefix), prefix, has_index)
        if naming.find_tables(names):
            yield naming


def _find_norms(family: str, names: set[str], prefix: str) -> tuple[str | None, ...]:
    """Returns the full name of the LayerNorm of each output."""
    # Since transformers 5 Hugging Face's SwinBackbone has them outside its `swin.`.
    for start in (prefix, prefix.removesuffix("swin.")):
        norms = tuple(start + name for name in FAMILIES[family].output_norms)
        present = [f"{name}.weight" in names or f"{name}.bias" in names for name in norms]
        if any(present[:3]):
            return norms
        if present[3]:
            return (None, None, None, norms[3])
    return (None, None, None, prefix + FAMILIES[family].last_norm)


@dataclasses.dataclass(frozen=True)
class Contents:
    """The model in a state dict.

    Attributes:
      official: Model of the official code, or None for an encoder alone.
      tasks: Tasks of that model, in the order in which its cross-task blocks concatenate them.
      naming: Names of the encoder's tensors, or None if there is no encoder.
      size: Size of the encoder, or None if the shapes do not determine it.
      blocks: Expansion and state size of the decoder blocks, or None if the shapes do not determine
        them.
    """

    official: OfficialModel | None
    tasks: tuple[str, ...]
    naming: Naming | None
    size: SwinSize | None
    blocks: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Describes the model in words."""
        encoder = describe_size(self.size) if self.size else "an encoder of unknown size"
        if self.official is None:
            return f"{encoder}, with the names of {self.naming.family}" if self.naming else encoder
        sizes = ", expansion {}, state size {}".format(*self.blocks) if self.blocks else ""
        return (
            f"{self.official.title} with {encoder}{sizes} and tasks {', '.join(sorted(self.tasks))}"
        )


def identify(tensors: Mapping[str, np.ndarray]) -> Contents:
    """Identifies the model in a state dict.

    Raises:
      ValueError: If the state dict has neither a model of the official code nor one Swin encoder.
    """
    found = (each for each in OFFICIAL_MODELS if any(n.startswith(each.mark) for n in tensors))
    official = next(found, None)
    try:
        naming = find_naming(tensors)
    except ValueError as error:
        if official is None:
            marks = " or ".join(f"{each.title} ({each.mark}*)" for each in OFFICIAL_MODELS)
            raise ValueError(f"These are not the names of {marks}. {error}") from None
        return Contents(official, _find_tasks(tensors), None, None)
    size, blocks = find_size(tensors, naming), _find_blocks(tensors) if official else None
    return Contents(official, _find_tasks(tensors), naming, size, blocks)


def check_no_prefix(names: Iterable[str]) -> None:
    """Checks that a state dict without a known model is not a whole model below a prefix.

    Raises:
      ValueError: If it is a model of the official code, but its names have a prefix.
    """
    marks = "|".join(re.escape(each.mark) for each in OFFICIAL_MODELS)
    matches = (re.match(rf"(.*?\.)(?:{marks})", name) for name in names)
    prefix = next((m[1] for m in matches if m), "")
    if prefix:
        raise ValueError(
            f"The state dict holds a whole model, but its names have the prefix {prefix!r}. Save "
            f"only these names, without the prefix: {{k.removeprefix({prefix!r}): v for k, v in "
            f"state_dict.items() if k.startswith({prefix!r})}}."
        )


def _find_blocks(tensors: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """Returns expansion and state size of the decoder blocks, or None if they cannot be found."""
    for name, tensor in tensors.items():
        start, _, end = name.rpartition(".op.")
        if end != "out_proj.weight":
            continue
        projection, log_a = np.shape(tensor), np.shape(tensors.get(f"{start}.op.A_logs", ()))
        if len(projection) == len(log_a) == 2 and projection[0] and log_a[1]:
            return projection[1] // projection[0], log_a[1]
    return None


def _find_tasks(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the tasks of a model of the official code, in the model's order.

    That is the order of the names in the state dict. If the file has sorted its names, the order
    is lost, and that of the official code for its datasets is used.
    """
    ours = {theirs: task for task, theirs in OFFICIAL_NAMES.items()}
    matches = (re.fullmatch(r"final_project\.(\w+)\.weight", name) for name in names)
    theirs = [m[1] for m in matches if m]
    tasks = tuple(ours.get(name, name) for name in theirs)
    return sort_tasks(tasks) if theirs == sorted(theirs) else tasks


def sort_tasks(tasks: Iterable[str]) -> tuple[str, ...]:
    """Returns tasks in the order of the official code, with tasks unknown to it at the end."""
    return tuple(sorted(tasks, key=lambda task: [*TASK_ORDER, task].index(task)))


def find_size(tensors: Mapping[str, np.ndarray], naming: Naming) -> SwinSize | None:
    """Returns the size of the encoder in a state dict, or None if shapes do not determine it."""
    tables = {place: np.shape(tensors[n]) for n, place in naming.find_tables(tensors).items()}
    embedding = np.shape(tensors[f"{naming.prefix}{FAMILIES[naming.family].embedding[0]}.weight"])
    firsts = [tables.get((stage, 0), ()) for stage in range(4)]
    if not embedding or any(len(shape) != 2 for shape in firsts):
        return None
    matches = (re.match(naming.block_pattern, name) for name in tensors)
    blocks = {(int(m[1]), int(m[2])) for m in matches if m}
    size = SwinSize(
        embedding[0],
        # The number of blocks, not the largest index: a name may have any number in it.
        _per_stage(lambda stage: sum(at == stage for at, _ in blocks)),
        _per_stage(lambda stage: firsts[stage][1]),
        table_window(firsts[0]),
    )
    return size if min(size.width, size.window, *size.heads) > 0 else None


def encoder_size(encoder: Swin) -> SwinSize:
    """Returns the size of an encoder."""
    stages = encoder.stages
    return SwinSize(
        encoder.widths[0],
        _per_stage(lambda stage: len(stages[stage])),
        _per_stage(lambda stage: stages[stage][0].attention.heads),
        stages[0][0].attention.window,
    )


def _per_stage(number: Callable[[int], int]) -> tuple[int, int, int, int]:
    return number(0), number(1), number(2), number(3)


def size_name(size: SwinSize) -> str | None:
    """Returns the key of `SWIN_SIZES` of a size with any window, or None if there is none."""
    without_window = {dataclasses.replace(s, window=0): name for name, s in SWIN_SIZES.items()}
    return without_window.get(dataclasses.replace(size, window=0))


def describe_size(size: SwinSize) -> str:
    """Describes a size in words, with its name if it has one."""
    name = size_name(size) or "a Swin"
    depths, heads = (",".join(map(str, each)) for each in (size.depths, size.heads))
    return f"{name} (width {size.width}, depths {depths}, heads {heads}, window {size.window})"
