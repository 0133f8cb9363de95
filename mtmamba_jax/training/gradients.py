"""How large gradients are, by what they belong to: the encoder, each task's decoder."""

from __future__ import annotations

import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtmamba_jax.tasks import Task

SHARED = "shared"
"""Of the decoder: what the cross-task blocks compute for all tasks together."""

_LISTED = re.compile(r"/each/(\d+)/")
"""Of modules that lie in a list, one for each task and then perhaps one for what is shared."""
_SHARED = re.compile(r"/(conv|bias)_shared(/|$)")
"""Of what there is once for all tasks."""


def gradient_norms(gradients: dict, tasks: Sequence[Task]) -> dict[str, jax.Array]:
    """Returns Euclidean norms of a gradient, float32 scalars.

    `gradient_norm` is of all of it; `gradient_norm/<part>` of a part's own weights, where a part is
    the encoder, a task (its share of decoder and heads) or the decoder's shared extractor. The
    squares of the parts add up to that of the whole.

    Args:
      gradients: of the model's parameters, a nested dict.
      tasks: in the order of the axis t.
    """
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        square = jnp.square(leaf.astype(jnp.float32))
        for owner, value in _by_owner(name, square, [task.name for task in tasks]).items():
            squares[owner] = squares.get(owner, 0.0) + value
    total = jnp.sqrt(sum(squares.values()))
    return {"gradient_norm": total} | {
        f"gradient_norm/{name}": jnp.sqrt(value) for name, value in squares.items()
    }


def _by_owner(name: str, square: jax.Array, tasks: Sequence[str]) -> dict[str, jax.Array]:
    """Returns {part: its sum of an array}, by the array's name."""
    part, *below = name.split("/")
    task = next((key for key in below if key in tasks), None)
    listed = _LISTED.search(name)
    if part == "encoder" or task:
        return {task or part: jnp.sum(square)}
    if listed:
        return {[*tasks, SHARED][int(listed[1])]: jnp.sum(square)}
    if _SHARED.search(name):
        return {SHARED: jnp.sum(square)}
    # All other arrays have a leading axis t, and may have one more for what is shared.
    sums = jnp.sum(square, axis=tuple(range(1, square.ndim)))
    owners = [*tasks, SHARED][: len(sums)]
    return dict(zip(owners, sums, strict=True))
