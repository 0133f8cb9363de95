"""SS2D: the selective scan of a map in four directions, with the projections that select."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import nnx

from mtmamba_jax.array_types import Array
from mtmamba_jax.devices.sharding import batch_axes
from mtmamba_jax.kernels.ss2d import DIRECTIONS, ss2d
from mtmamba_jax.models import initializers

STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4  # Mamba's initial step sizes


def _step_bias(key: jax.Array | initializers.Parts, shape: tuple[int, ...]) -> jax.Array:
    """Returns biases whose softplus is log-uniform in [STEP_MIN, STEP_MAX]."""
    log_step = initializers.uniform(key, shape, math.log(STEP_MIN), math.log(STEP_MAX))
    step = jnp.maximum(jnp.exp(log_step), STEP_FLOOR)
    return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus


class SS2D(nnx.Module):
    """2-D selective scan (Eqs. 6-8 and 10-12) for a stack of t features: [t b h w d] -> same.

    Every direction k has its own projections of the pixel to B, C and a rank-r step size, and its
    own A and D; the four results are summed. State and decay are float32 in any compute dtype.

    Args:
      tasks: size of the leading axis t.
      features: d.
      state_size: n, states a channel.
      step_rank: r, rank of the step-size projection.
      implementation: forces a backend of `kernels.ss2d`; None chooses by platform.
    """

    def __init__(
        self,
        tasks: int,
        features: int,
        *,
        state_size: int,
        step_rank: int,
        dtype: jnp.dtype = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        t, k, d, n, r = tasks, len(DIRECTIONS), features, state_size, step_rank
        self.splits = (r, r + n)
        self.dtype = dtype
        self.implementation = implementation
        # Mamba's own scheme: fan-in uniform projections, A = -(1..n), D = 1.
        bound = d**-0.5
        self.projection = nnx.Param(
            initializers.uniform(rngs.params(), (t, k, d, r + 2 * n), -bound, bound)
        )
        bound = r**-0.5
        self.step_weight = nnx.Param(
            initializers.uniform(rngs.params(), (t, k, r, d), -bound, bound)
        )
        self.step_bias = nnx.Param(_step_bias(rngs.params(), (t, k, d)))
        self.log_a = nnx.Param(
            jnp.broadcast_to(jnp.log(jnp.arange(1, n + 1, dtype=jnp.float32)), (t, k, d, n))
        )
        self.skip = nnx.Param(jnp.ones((t, k, d)))

    def __call__(self, x: Array, selecting: Array | None = None) -> Array:
        """Scans [t b h w d] in all directions and sums the results.

        Args:
          x: what is scanned.
          selecting: [t b h w d] that B, C and the step sizes are computed from, in place of x.
        """
        source = x if selecting is None else selecting
        projected = jnp.einsum(
            "tbhwd,tkde->tbhwke", source.astype(self.dtype), self.projection.astype(self.dtype)
        )
        step, b, c = jnp.split(projected, self.splits, axis=-1)
        return ss2d(
            x,
            step,
            self.step_weight[...],
            self.step_bias[...],
            -jnp.exp(self.log_a[...]),
            b,
            c,
            self.skip[...],
            implementation=self.implementation,
            batch_axes=batch_axes(),
        )
