"""LayerNorm over channels, for one feature map and for all tasks' maps at once."""

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.models.ops import blend, layer_norm


class LayerNorm(nnx.Module):
    """LayerNorm over the channels of [... c]; statistics in float32 at least."""

    def __init__(self, features: int, *, dtype: DTypeLike = jnp.float32):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(features, jnp.float32))

    def __call__(self, x: Float[Array, "*shape c"]) -> Float[Array, "*shape c"]:
        """Normalises x and casts it to the compute dtype."""
        return layer_norm(x, self.scale[...], self.bias[...], dtype=self.dtype)


class TaskLayerNorm(nnx.Module):
    """LayerNorm over the channels of each task; statistics in float32 at least.

    With `joint`, the statistics are over the channels of all tasks together: the LayerNorm of the
    concatenated features (Eq. 20) without concatenating them.
    """

    def __init__(
        self, tasks: int, features: int, *, joint: bool = False, dtype: DTypeLike = jnp.float32
    ):
        self.axes = (0, -1) if joint else (-1,)
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones((tasks, features), jnp.float32))
        self.bias = nnx.Param(jnp.zeros((tasks, features), jnp.float32))

    def __call__(
        self, x: Float[Array, "t b *shape c"], gate: Float[Array, "t b *shape c"] | None = None
    ) -> Float[Array, "t b *shape c"]:
        """Normalises x in the compute dtype; multiplies it by SiLU(gate) if there is a gate."""
        shape = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
        scale, bias = self.scale[...].reshape(shape), self.bias[...].reshape(shape)
        return layer_norm(x, scale, bias, gate, axes=self.axes, batch_axis=1, dtype=self.dtype)

    def blend(
        self, x: Float[Array, "s b h w c"], gate: Float[Array, "t b h w c"]
    ) -> Float[Array, "t b h w c"]:
        """Returns each task's normalised map blended with the last, shared one (Eqs. 13, 24)."""
        return blend(x.astype(self.dtype), self.scale[...], self.bias[...], gate)
