"""Output heads: from a stage's features to a map of the input's size (Section 3.5)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.models.layers import TaskLayerNorm, TaskLinear, linear
from mtmamba_jax.models.patches import depth_to_space
from mtmamba_jax.tasks import Task


class ExpandHeads(nnx.Module):
    """Enlarges each task's feature 4x and projects each pixel to the task's channels.

    LayerNorm and projection act per pixel, so they come before the pixels are put in place: only
    the logits, not c channels, are written at full resolution.
    """

    factor = 4

    def __init__(self, tasks: Sequence[Task], features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.names = tuple(task.name for task in tasks)
        self.expand = TaskLinear(
            len(tasks), features, self.factor**2 * features, dtype=dtype, rngs=rngs
        )
        self.norm = TaskLayerNorm(len(tasks), features, dtype=dtype)
        self.projections = nnx.Dict(
            {task.name: linear(features, task.channels, dtype=dtype, rngs=rngs) for task in tasks}
        )

    def __call__(self, x: Array) -> dict[str, jax.Array]:
        """Maps [t b h w c] to {task: float32 [b 4h 4w channels]}."""
        t, b, h, w, c = x.shape
        fine = self.norm(self.expand(x).reshape(t, b, h, w, self.factor**2, c))
        logits = {}
        for i, name in enumerate(self.names):
            projected = self.projections[name](fine[i]).astype(jnp.float32)
            logits[name] = depth_to_space(projected.reshape(b, h, w, -1), self.factor)
        return logits


def resize(x: Array, size: tuple[int, int]) -> Array:
    """Bilinear resize of [b h w c] to `size` with half-pixel centres; no smoothing."""
    if x.shape[1:3] == tuple(size):
        return x
    return jax.image.resize(x, (x.shape[0], *size, x.shape[3]), method="linear", antialias=False)
