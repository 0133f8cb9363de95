"""MTMamba++'s cross-task block and heads, instead of MTMamba's (Lin et al., TPAMI 2025)."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.array_types import Features, TaskFeatures
from mtmamba_jax.models import initializers
from mtmamba_jax.models.blocks import STM, MambaSettings
from mtmamba_jax.models.layers import Conv, TaskLinear, linear, to_features
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.models.ops import EPSILON
from mtmamba_jax.tasks.labels import resize_logits
from mtmamba_jax.tasks.table import Task

HEAD_FEATURES = 96
MOMENTUM = 0.9  # of BatchNorm's running statistics: PyTorch's 0.1 weighs the new value

batch_norm = functools.partial(
    nnx.BatchNorm, momentum=MOMENTUM, epsilon=EPSILON, use_fast_variance=False
)


class SCTM(STM):
    """Semantic-aware cross-task Mamba block, which exchanges features between tasks.

    A feature shared by all tasks selects what each task's scan keeps: a task's SS2D scans the
    task's own feature, with B, C and the step sizes computed from the shared one.

    Arguments are those of `STM`.
    """

    def __init__(
        self, tasks: int, features: int, settings: MambaSettings, *, rngs: nnx.Rngs, **options
    ):
        inner, dtype = settings.expansion * features, settings.dtype
        self.dtype = dtype
        self.norm_shared = TaskLayerNorm(tasks, features, joint=True, dtype=dtype)
        # One map of all t*c channels, kept as [t c c].
        bound, shape = (tasks * features) ** -0.5, (tasks, features, features)
        self.in_proj_shared = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        self.bias_shared = nnx.Param(initializers.uniform(rngs.params(), shape[-1:], -bound, bound))
        self.conv_shared = Conv(features, features, dtype=dtype, rngs=rngs)
        self.selecting = TaskLinear(tasks, features, inner, dtype=dtype, rngs=rngs)
        super().__init__(tasks, features, settings, rngs=rngs, **options)

    def __call__(self, z: TaskFeatures, key: jax.Array | None = None) -> TaskFeatures:
        """Exchanges features between the tasks; a key switches drop path on."""
        z = to_features("z", z, *self.in_proj.kernel.shape[:2])
        normed = self.norm(z)
        shared = jnp.einsum(
            "tbhwc,tco->bhwo", self.norm_shared(z), self.in_proj_shared.astype(self.dtype)
        )
        shared = self.conv_shared(shared + self.bias_shared.astype(self.dtype))
        return self._refine(z, normed, self.selecting(shared), key)


class ConvHead(nnx.Module):
    """One task's head: 3x3 convolution, BatchNorm, ReLU, 1x1 convolution, 4x bilinear upsampling.

    In training, BatchNorm takes mean and variance over the whole batch, across all devices.

    Attributes:
      batches: Number of batches BatchNorm has seen, as PyTorch counts them.
    """

    factor = 4

    def __init__(self, features: int, channels: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.dtype = dtype
        self.conv = Conv(features, HEAD_FEATURES, dtype=dtype, rngs=rngs)
        self.norm = batch_norm(HEAD_FEATURES, dtype=dtype, rngs=rngs)
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.projection = linear(HEAD_FEATURES, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Features, *, training: bool) -> Float[Array, "b 4*h 4*w channels"]:
        """Returns float32 logits."""
        if training:
            self.batches[...] += 1
        x = jax.nn.relu(self.norm(self.conv(x), use_running_average=not training))
        logits = self.projection(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        return resize_logits(logits, tuple(self.factor * n for n in x.shape[1:3]))


class ConvHeads(nnx.Module):
    """A `ConvHead` for each task."""

    def __init__(self, tasks: Sequence[Task], features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.names = tuple(task.name for task in tasks)
        self.heads = nnx.Dict(
            {task.name: ConvHead(features, task.channels, dtype=dtype, rngs=rngs) for task in tasks}
        )

    def __call__(
        self, x: TaskFeatures, *, training: bool = False
    ) -> dict[str, Float[Array, "b 4*h 4*w channels"]]:
        """Returns each task's float32 logits."""
        return {
            name: self.heads[name](x[i], training=training) for i, name in enumerate(self.names)
        }
