"""What MTMamba++ has in place of MTMamba's cross-task block and heads (Lin et al., TPAMI 2025)."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.labels import resize_logits
from mtmamba_jax.models import initializers
from mtmamba_jax.models.blocks import MFE, MambaSettings
from mtmamba_jax.models.layers import Conv, TaskLinear, drop_path, linear, recomputed
from mtmamba_jax.models.norm import EPSILON, TaskLayerNorm
from mtmamba_jax.tasks import Task

HEAD_FEATURES = 96
MOMENTUM = 0.9  # of BatchNorm's running statistics: PyTorch's 0.1 counts from the other end


class SCTM(nnx.Module):
    """Semantic-aware cross-task Mamba block: [t b h w c] -> same, mixing the tasks.

    A feature shared by all tasks selects what each task's scan keeps: B, C and the step sizes of a
    task's SS2D come from the shared feature, what is scanned from its own.
    """

    def __init__(
        self,
        tasks: int,
        features: int,
        settings: MambaSettings,
        *,
        drop_path_rate: float = 0.0,
        rngs: nnx.Rngs,
    ):
        inner, dtype = settings.expansion * features, settings.dtype
        self.drop_path_rate = drop_path_rate
        self.dtype = dtype
        self.norm = TaskLayerNorm(tasks, features, dtype=dtype)
        self.norm_shared = TaskLayerNorm(tasks, features, joint=True, dtype=dtype)
        # One map of all t*c channels, kept as [t c c].
        bound = (tasks * features) ** -0.5
        shape = (tasks, features, features)
        self.in_proj_shared = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        self.bias_shared = nnx.Param(
            initializers.uniform(rngs.params(), (features,), -bound, bound)
        )
        self.conv_shared = Conv(features, features, dtype=dtype, rngs=rngs)
        self.selecting = TaskLinear(tasks, features, inner, dtype=dtype, rngs=rngs)
        self.in_proj = TaskLinear(tasks, features, inner, dtype=dtype, rngs=rngs)
        self.gate = TaskLinear(tasks, features, inner, dtype=dtype, rngs=rngs)
        self.mfe = MFE(tasks, features, settings, rngs=rngs)
        self.out_proj = TaskLinear(tasks, inner, features, dtype=dtype, rngs=rngs)

    def __call__(self, z: Array, key: jax.Array | None = None) -> Array:
        """Exchanges features between the tasks of [t b h w c]; a key switches drop path on."""
        normed = self.norm(z)
        shared = jnp.einsum(
            "tbhwc,tco->bhwo", self.norm_shared(z), self.in_proj_shared.astype(self.dtype)
        )
        shared = self.conv_shared(shared + self.bias_shared.astype(self.dtype))
        scanned = self.mfe.scan(self.in_proj(normed), self.selecting(shared))
        gate = self.gate(normed)
        gated = recomputed(lambda y, gate: self.mfe.norm(y) * jax.nn.silu(gate))(scanned, gate)
        return z + drop_path(self.out_proj(gated), self.drop_path_rate, key, leading=2)


class ConvHead(nnx.Module):
    """3x3 convolution, BatchNorm, ReLU, 1x1 convolution, four times as fine: one task's map.

    In training, BatchNorm takes mean and variance over the whole batch, on however many devices.

    Attributes:
      batches: how many batches BatchNorm has seen, as PyTorch counts them.
    """

    factor = 4

    def __init__(self, features: int, channels: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.dtype = dtype
        self.conv = Conv(features, HEAD_FEATURES, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(
            HEAD_FEATURES,
            momentum=MOMENTUM,
            epsilon=EPSILON,
            dtype=dtype,
            use_fast_variance=False,
            rngs=rngs,
        )
        self.batches = nnx.BatchStat(jnp.zeros((), jnp.int32))
        self.projection = linear(HEAD_FEATURES, channels, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, *, training: bool) -> jax.Array:
        """Maps [b h w c] to float32 [b 4h 4w channels]."""
        if training:
            self.batches[...] += 1
        x = jax.nn.relu(self.norm(self.conv(x), use_running_average=not training))
        logits = self.projection(x).astype(jnp.promote_types(x.dtype, jnp.float32))
        return resize_logits(logits, tuple(self.factor * n for n in x.shape[1:3]))


class ConvHeads(nnx.Module):
    """A `ConvHead` for each task."""

    def __init__(self, tasks: Sequence[Task], features: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.names = tuple(task.name for task in tasks)
        self.heads = nnx.Dict(
            {task.name: ConvHead(features, task.channels, dtype=dtype, rngs=rngs) for task in tasks}
        )

    def __call__(self, x: Array, *, training: bool = False) -> dict[str, jax.Array]:
        """Maps [t b h w c] to {task: float32 [b 4h 4w channels]}."""
        return {
            name: self.heads[name](x[i], training=training) for i, name in enumerate(self.names)
        }
