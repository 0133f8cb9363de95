"""Finding out what a state dict holds, by its names and shapes."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping

import numpy as np

from mtmamba_jax.convert.official import OFFICIAL, ORDER, Official
from mtmamba_jax.convert.rules import TASK_NAMES, Computed, Rule
from mtmamba_jax.convert.swin import FAMILIES, swin_rules, window_of_table
from mtmamba_jax.messages import check_name
from mtmamba_jax.models.swin import SWIN_SIZES, Swin, SwinSize


@dataclasses.dataclass(frozen=True)
class Layout:
    """Which tensors stand for a Swin encoder.

    Attributes:
      family: key of `FAMILIES`.
      norms: names of the LayerNorms of the four outputs, None where there is none.
      prefix: of all other names.
      index: relative position indices are saved.
    """

    family: str
    norms: tuple[str | None, ...]
    prefix: str = ""
    index: bool = True

    @property
    def table(self) -> tuple[Rule | Computed, ...]:
        """The rules."""
        return swin_rules(FAMILIES[self.family], self.norms, prefix=self.prefix, index=self.index)

    @property
    def left_out(self) -> tuple[str, ...]:
        """Regular expressions of tensors that have no place in an encoder of features.

        All that lies outside the prefix: with one, the encoder is a part of something else.
        """
        family, prefix = FAMILIES[self.family], re.escape(self.prefix)
        inside = family.left_out
        if self.norms[0]:  # an encoder with a norm for each output does not use a classifier's
            inside += (rf"{re.escape(family.last_norm)}\.(weight|bias)",)
        outside = (rf"(?!{prefix}).*",) if prefix else ()
        return (*(prefix + each for each in inside), *outside)

    @property
    def kept(self) -> tuple[str, ...]:
        """Regular expressions of the encoder's parameters that no tensor stands for."""
        return tuple(rf"norms\.{i}\..*" for i, name in enumerate(self.norms) if name is None)

    def tables(self, names: Iterable[str]) -> dict[str, tuple[int, int]]:
        """Returns those of `names` that are position bias tables, and their stage and block."""
        return _tables(self.family, names, self.prefix)


def layout_of(family: str) -> Layout:
    """Returns the layout that files of a family have.

    Raises:
      ValueError: an unknown family; the message gives the valid ones.
    """
    check_name("family of Swin encoders", family, FAMILIES)
    names = FAMILIES[family]
    if names.classifier:
        return Layout(family, (None, None, None, names.last_norm))
    return Layout(family, names.output_norms)


def find_layout(tensors: Iterable[str]) -> Layout:
    """Returns the layout of the Swin encoder that a state dict holds, by its names.

    Raises:
      ValueError: it holds none, or several; the message says what was looked for.
    """
    names = set(tensors)
    found = [
        (family, prefix)
        for family, each in FAMILIES.items()
        for prefix in _prefixes(f"{each.embedding}.weight", names)
        if _tables(family, names, prefix) and _merges_there(family, names, prefix)
    ]
    if len(found) != 1:
        looked = "\n  ".join(
            f"{family}: {each.embedding}.weight, {each.block}{each.position}".replace(
                r"\1", "0"
            ).replace(r"\2", "0")
            for family, each in FAMILIES.items()
        )
        came = " and ".join(f"{family} at {prefix!r}" for family, prefix in found) or (
            f"{len(names)} names" + "".join(f", {name}" for name in sorted(names)[:3])
        )
        raise ValueError(
            "A state dict with one Swin encoder was wanted. Looked for, after any prefix:\n  "
            f"{looked}\nGot {came}."
        )
    family, prefix = found[0]
    index = any(name.endswith(FAMILIES[family].index) for name in names)
    return Layout(family, _find_norms(family, names, prefix), prefix, index)


def _prefixes(end: str, names: Iterable[str]) -> list[str]:
    matches = (re.fullmatch(rf"(.*\.|){re.escape(end)}", name) for name in names)
    return sorted(m[1] for m in matches if m)


def _merges_there(family: str, names: Iterable[str], prefix: str) -> bool:
    """Tells timm's names from Microsoft's, which differ in where the mergings are."""
    last = prefix + FAMILIES["timm"].mergings[-1]
    return {"timm": True, "microsoft": False}.get(family) in (
        None,
        any(name.startswith(last) for name in names),
    )


def _find_norms(family: str, names: set[str], prefix: str) -> tuple[str | None, ...]:
    """Returns which LayerNorm each output has, by its whole name."""
    # Since transformers 5 those of Hugging Face's SwinBackbone stand beside its `swin.`.
    for start in (prefix, prefix.removesuffix("swin.")):
        norms = tuple(start + name for name in FAMILIES[family].output_norms)
        present = [f"{name}.weight" in names or f"{name}.bias" in names for name in norms]
        if any(present[:3]):
            return norms
        if present[3]:
            return (None, None, None, norms[3])
    return (None, None, None, prefix + FAMILIES[family].last_norm)


def _tables(family: str, names: Iterable[str], prefix: str) -> dict[str, tuple[int, int]]:
    each = FAMILIES[family]
    pattern = _block_pattern(prefix + each.block) + re.escape(each.position)
    matches = ((name, re.fullmatch(pattern, name)) for name in names)
    return {name: (int(m[1]), int(m[2])) for name, m in matches if m}


def _block_pattern(block: str) -> str:
    """Returns a regular expression with groups for the stage and the block."""
    return re.escape(block).replace(r"\\1", r"(\d+)").replace(r"\\2", r"(\d+)")


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a state dict holds.

    Attributes:
      official: the model of the official code; None where it is an encoder alone.
      tasks: that model's, in the order in which its cross-task blocks put them side by side.
      layout: of the encoder; None where none was found.
      size: of the encoder; None where shapes do not tell.
      blocks: expansion and state size of the decoder's blocks; None where shapes do not tell.
    """

    official: Official | None
    tasks: tuple[str, ...]
    layout: Layout | None
    size: SwinSize | None
    blocks: tuple[int, int] | None = None

    def __str__(self) -> str:
        """Says it in words."""
        encoder = describe_size(self.size) if self.size else "an encoder of unknown size"
        if self.official is None:
            return f"{encoder}, with the names of {self.layout.family}"
        return describe_model(self.official, encoder, self.blocks, self.tasks)


def describe_model(
    official: Official, encoder: str, blocks: tuple[int, int] | None, tasks: Iterable[str]
) -> str:
    """Returns a whole model in words; arguments are those of `Contents`, the encoder in words."""
    inner = "" if blocks is None else f", expansion {blocks[0]}, state size {blocks[1]}"
    return f"{official.title} with {encoder}{inner} and tasks {', '.join(sorted(tasks))}"


def contents_of(tensors: Mapping[str, np.ndarray]) -> Contents:
    """Returns what a state dict holds.

    Raises:
      ValueError: no model of the official code, and not one Swin encoder either.
    """
    official = next(
        (each for each in OFFICIAL if any(name.startswith(each.mark) for name in tensors)), None
    )
    try:
        layout = find_layout(tensors)
    except ValueError as error:
        if official is None:
            marks = " or ".join(f"{each.title} ({each.mark}*)" for each in OFFICIAL)
            raise ValueError(f"These are not the names of {marks}. {error}") from None
        return Contents(official, _tasks_of(tensors), None, None)
    size, blocks = find_size(tensors, layout), official and _find_blocks(tensors)
    return Contents(official, _tasks_of(tensors), layout, size, blocks)


def check_not_whole(names: Iterable[str]) -> None:
    """Checks that what looks like an encoder alone is not the part of a whole model.

    Raises:
      ValueError: it is one of the official code, with something before its names.
    """
    marks = "|".join(re.escape(each.mark) for each in OFFICIAL)
    matches = (re.match(rf"(.*?\.)(?:{marks})", name) for name in names)
    prefix = next((m[1] for m in matches if m), "")
    if prefix:
        raise ValueError(
            f"The state dict holds a whole model, with {prefix!r} before its names. Take that away "
            "from them."
        )


def _find_blocks(tensors: Mapping[str, np.ndarray]) -> tuple[int, int] | None:
    """Returns expansion and state size of a decoder's blocks; None where shapes do not tell."""
    for name, tensor in tensors.items():
        start, _, end = name.rpartition(".op.")
        if end != "out_proj.weight":
            continue
        outward, states = np.shape(tensor), np.shape(tensors.get(f"{start}.op.A_logs"))
        if len(outward) == len(states) == 2 and outward[0] and states[1]:
            return outward[1] // outward[0], states[1]
    return None


def _tasks_of(names: Iterable[str]) -> tuple[str, ...]:
    """Returns the tasks of a model of the official code, in its order.

    That is the order of the names in a state dict. Files that sort names do not keep it: then it
    is the one that the code has for its datasets.
    """
    ours = {theirs: task for task, theirs in TASK_NAMES.items()}
    matches = (re.fullmatch(r"final_project\.(\w+)\.weight", name) for name in names)
    theirs = [m[1] for m in matches if m]
    tasks = tuple(ours.get(name, name) for name in theirs)
    return in_official_order(tasks) if theirs == sorted(theirs) else tasks


def in_official_order(tasks: Iterable[str]) -> tuple[str, ...]:
    """Returns tasks in the official code's order; those that it does not know come last."""
    return tuple(sorted(tasks, key=lambda task: [*ORDER, task].index(task)))


def find_size(tensors: Mapping[str, np.ndarray], layout: Layout) -> SwinSize | None:
    """Returns the size of the encoder that a state dict holds; None where shapes do not tell."""
    family = FAMILIES[layout.family]
    places = {place: np.shape(tensors[name]) for name, place in layout.tables(tensors).items()}
    embedding = np.shape(tensors[f"{layout.prefix}{family.embedding}.weight"])
    firsts = [places.get((stage, 0), ()) for stage in range(4)]
    if not embedding or any(len(shape) != 2 for shape in firsts):
        return None
    pattern = _block_pattern(layout.prefix + family.block)
    blocks = {(int(m[1]), int(m[2])) for m in (re.match(pattern, name) for name in tensors) if m}
    size = SwinSize(
        embedding[0],
        # Blocks that there are: a number in a name may be any.
        tuple(sum(at == stage for at, _ in blocks) for stage in range(4)),
        tuple(shape[1] for shape in firsts),
        window_of_table(firsts[0]),
    )
    return size if min(size.width, size.window, *size.heads) > 0 else None


def size_of(encoder: Swin) -> SwinSize:
    """Returns the size of an encoder."""
    firsts = [blocks[0].attention for blocks in encoder.stages]
    return SwinSize(
        encoder.widths[0],
        tuple(len(blocks) for blocks in encoder.stages),
        tuple(attention.heads for attention in firsts),
        firsts[0].window,
    )


def size_name(size: SwinSize) -> str | None:
    """Returns the key of `SWIN_SIZES` of a size, windows aside; None where there is none."""
    of_any_window = {dataclasses.replace(s, window=0): name for name, s in SWIN_SIZES.items()}
    return of_any_window.get(dataclasses.replace(size, window=0))


def describe_size(size: SwinSize) -> str:
    """Returns a size in words, with its name if it has one."""
    name = size_name(size) or "a Swin"
    depths, heads = (",".join(map(str, each)) for each in (size.depths, size.heads))
    return f"{name} (width {size.width}, depths {depths}, heads {heads}, window {size.window})"
