"""MTMamba's output heads: from decoder features to maps four times as fine (Section 3.5)."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.array_types import TaskFeatures
from mtmamba_jax.models.layers import TaskLinear, linear
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.models.ops import inverse_deviation, wide_einsum
from mtmamba_jax.models.patches import depth_to_space
from mtmamba_jax.tasks.table import Task


class ExpandHeads(nnx.Module):
    """Enlarges each task's feature 4x and projects each pixel to the task's channels.

    The c channels of a fine pixel, e = E x, are normalised and projected:
    P (scale (e - mean(e)) r + bias), with r the inverse standard deviation. All of it but r is
    linear in x, so it is one small matrix; and with the mean subtracted from E's columns, 1 / r^2
    is the mean of e^2. The fine map of c channels is therefore computed for its squares only, and
    is neither normalised nor rearranged.
    """

    factor = 4

    def __init__(self, tasks: Sequence[Task], features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.names = tuple(task.name for task in tasks)
        self.dtype = dtype
        self.expand = TaskLinear(
            len(tasks), features, self.factor**2 * features, dtype=dtype, rngs=rngs
        )
        self.norm = TaskLayerNorm(len(tasks), features, dtype=dtype)
        self.projections = nnx.Dict(
            {task.name: linear(features, task.channels, dtype=dtype, rngs=rngs) for task in tasks}
        )

    def __call__(
        self, x: TaskFeatures, *, training: bool = False
    ) -> dict[str, Float[Array, "b 4*h 4*w channels"]]:
        """Returns each task's float32 logits; `training` makes no difference."""
        del training
        t, b, h, w, c = x.shape
        x = x.astype(self.dtype)
        kernel = self.expand.kernel[...].reshape(t, c, self.factor**2, c)
        kernel -= kernel.mean(-1, keepdims=True)
        logits = {}
        for i, name in enumerate(self.names):
            projection = self.projections[name]
            weight = self.norm.scale[i][:, None] * projection.kernel[...]
            shift = self.norm.bias[i] @ projection.kernel[...]
            bias = shift + projection.bias[...]  # pyright: ignore[reportOptionalSubscript] it has one
            value = wide_einsum(
                "bhwc,cse->bhwse", x[i], jnp.einsum("csd,de->cse", kernel[i], weight)
            )
            value = value * inverse_deviation(x[i], kernel[i])[..., None] + bias
            logits[name] = depth_to_space(value.reshape(b, h, w, -1), self.factor)
        return logits
