"""How large gradients are, by what they belong to: the encoder, each task's decoder."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from mtmamba_jax.tasks import Task

STACKED = ("decoder", "heads")
"""Parts of the model whose arrays have a leading axis t, and may have one more for what is shared,
unless a task's name is in their path or they are shared as a whole."""

SHARED = "shared"
"""Of the decoder: what the cross-task blocks compute for all tasks together."""


def gradient_norms(gradients: dict, tasks: Sequence[Task]) -> dict[str, jax.Array]:
    """Returns Euclidean norms of a gradient, float32 scalars.

    `gradient_norm` is of all of it; `gradient_norm/<part>` of a part's own weights, where a part is
    the encoder, a task (its share of decoder and heads) or the decoder's shared extractor. The
    squares of the parts add up to that of the whole.

    Args:
      gradients: of the model's parameters, a nested dict.
      tasks: in the order of the axis t.
    """
    names = [task.name for task in tasks]
    squares: dict[str, jax.Array] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradients):
        keys = [str(entry.key) for entry in path]
        square = jnp.square(leaf.astype(jnp.float32))
        owner = next((key for key in keys if key in names), None)
        if owner is None and keys[0] in STACKED and len(leaf) in (len(names), len(names) + 1):
            by_task = jnp.sum(square, axis=tuple(range(1, leaf.ndim)))
            owned = dict(zip([*names, SHARED], by_task, strict=False))
        elif owner is None and keys[0] in STACKED:
            owned = {SHARED: jnp.sum(square)}
        else:
            owned = {owner or keys[0]: jnp.sum(square)}
        for name, value in owned.items():
            squares[name] = squares.get(name, 0.0) + value
    total = jnp.sqrt(sum(squares.values()))
    return {"gradient_norm": total} | {
        f"gradient_norm/{name}": jnp.sqrt(value) for name, value in squares.items()
    }
