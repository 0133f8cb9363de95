"""What the colours of classes mean, below a panel of maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from mtmamba_jax.readout import is_ignored
from mtmamba_jax.tasks import Task
from mtmamba_jax.visualization.canvas import Canvas, Colour, text_width
from mtmamba_jax.visualization.render import IGNORED

_SIZE, _LINE, _EDGE = 13, 22, 6  # pixels: of text, of a line, left and right
_SAMPLE, _GAP, _INDENT = 14, 16, 90  # of a square of colour, between classes, of the first class
_FRAME = (160, 160, 160)


def add_legend(
    sheet: np.ndarray, tasks: Sequence[Task], maps: Mapping[str, Sequence[np.ndarray]]
) -> np.ndarray:
    """Puts the names of the classes in some maps below a picture of them, the most frequent first.

    Args:
      sheet: uint8 RGB [h w 3].
      tasks: of the maps; those without classes have no line.
      maps: {task: its maps on the sheet}, each as `readout.to_value` or `label_value` gives it.

    Returns:
      uint8 RGB [h+ w 3].
    """
    width = sheet.shape[1]
    lines = []
    for task in tasks:
        if task.display == "classes":
            lines += _lines(task.name, _found(task, maps[task.name]), width)
    if not lines:
        return sheet
    canvas = Canvas(width, len(lines) * _LINE + _EDGE)
    for i, line in enumerate(lines):
        middle = i * _LINE + _LINE / 2
        for x, colour, text in line:
            if colour is not None:
                corner = (x, middle - _SAMPLE / 2)
                opposite = (x + _SAMPLE, middle + _SAMPLE / 2)
                canvas.area(corner, opposite, colour)
                canvas.frame(corner, opposite, _FRAME)  # white and cream are on white
                x += _SAMPLE + _EDGE
            canvas.text(text, (x, middle), "lm", _SIZE)
    return np.concatenate([sheet, np.asarray(canvas.finish())])


def _found(task: Task, maps: Sequence[np.ndarray]) -> Iterator[tuple[Colour, str]]:
    """Yields colour and name of what is in a task's maps, ignored pixels last."""
    ignored = [is_ignored(task, value) for value in maps]
    classes = np.concatenate([value[~out] for value, out in zip(maps, ignored, strict=True)])
    counts = np.bincount(classes.astype(np.int64), minlength=len(task.class_names))
    for index in np.argsort(-counts, kind="stable"):
        if counts[index]:
            yield task.palette[index], task.class_names[index]
    if any(out.any() for out in ignored):
        yield IGNORED, "(ignored)"


def _lines(
    title: str, found: Iterator[tuple[Colour, str]], width: int
) -> list[list[tuple[float, Colour | None, str]]]:
    """Returns lines of (x, colour, text), as many as the width asks for."""
    indent = max(_INDENT, _EDGE + text_width(f"{title}:", _SIZE) + _GAP)
    lines, x = [[(_EDGE, None, f"{title}:")]], indent
    for colour, name in found:
        needed = _SAMPLE + _EDGE + text_width(name, _SIZE)
        if x + needed > width - _EDGE and x > indent:
            lines.append([])
            x = indent
        lines[-1].append((x, colour, name))
        x += needed + _GAP
    return lines
