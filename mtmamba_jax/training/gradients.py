"""Computes gradient norms of the encoder, each task's decoder and what the tasks share."""

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtmamba_jax.tasks.table import Task

SHARED = "shared"
"""Part of the decoder that the cross-task blocks compute for all tasks together."""

_EACH_INDEX = re.compile(r"/each/(\d+)/")
"""Index in a list of modules with one for each task and perhaps a last one for the shared part."""
_SHARED_NAME = re.compile(r"/(conv|bias)_shared(/|$)")
"""Arrays of the shared part alone."""


def gradient_norms(gradients: dict, tasks: Sequence[Task]) -> dict[str, jax.Array]:
    """Returns Euclidean norms of a gradient, float32 scalars.

    `gradient_norm` is the norm of the whole gradient, `gradient_norm/<part>` that of a part: the
    encoder, a task (its weights in decoder and heads) or `SHARED`. The squares of the parts add up
    to the square of the whole. Tasks are in the order of the axis t.
    """
    names = [task.name for task in tasks]
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        square = jnp.square(leaf.astype(jnp.float32))
        for part, value in _sums_by_part(name, square, names).items():
            squares[part] = squares.get(part, 0.0) + value
    total = jnp.sqrt(sum(squares.values()))
    return {"gradient_norm": total} | {
        f"gradient_norm/{part}": jnp.sqrt(value) for part, value in squares.items()
    }


def _sums_by_part(name: str, square: jax.Array, tasks: Sequence[str]) -> dict[str, jax.Array]:
    """Returns the sum of an array over each part that it belongs to, by the array's name."""
    top, *below = name.split("/")
    task = next((key for key in below if key in tasks), None)
    each = _EACH_INDEX.search(name)
    if top == "encoder" or task:
        return {task or top: jnp.sum(square)}
    if each:
        return {[*tasks, SHARED][int(each[1])]: jnp.sum(square)}
    if _SHARED_NAME.search(name):
        return {SHARED: jnp.sum(square)}
    # Other arrays have a leading axis t, which may have one more entry for the shared part.
    sums = jnp.sum(square, axis=tuple(range(1, square.ndim)))
    parts = [*tasks, SHARED][: len(sums)]
    return dict(zip(parts, sums, strict=True))
