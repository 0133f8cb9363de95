"""SS2D: the selective scan of a feature map in four directions, and its projections."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from mtmamba_jax.devices.sharding import batch_axes
from mtmamba_jax.kernels.ss2d import DIRECTIONS, selective_ss2d, xla
from mtmamba_jax.models import initializers
from mtmamba_jax.models.layers import to_features
from mtmamba_jax.models.ops import with_flops

STEP_MIN, STEP_MAX, STEP_FLOOR = 1e-3, 1e-1, 1e-4  # Mamba's initial step sizes


class SS2D(nnx.Module):
    """2-D selective scan (Eqs. 6-8 and 10-12) of a stack of t feature maps.

    Each direction k has its own projections of a pixel to B, C and a rank-r step size, and its own
    A and D; the four results are summed. State and decay are float32 in any compute dtype.

    Example:
      >>> module = SS2D(tasks=1, features=32, state_size=16, step_rank=2, rngs=nnx.Rngs(0))
      >>> module(jnp.zeros((1, 2, 14, 18, 32))).shape  # [t b h w d]
      (1, 2, 14, 18, 32)

    Args:
      tasks: Size of the leading axis t.
      features: Channels d.
      state_size: States per channel, n.
      step_rank: Rank of the step-size projection, r.
      dtype: Compute dtype; parameters are float32.
      implementation: Backend of `kernels.ss2d` to force; None chooses one by platform.
    """

    def __init__(
        self,
        tasks: int,
        features: int,
        *,
        state_size: int,
        step_rank: int,
        dtype: DTypeLike = jnp.float32,
        implementation: str | None = None,
        rngs: nnx.Rngs,
    ):
        t, k, d, n, r = tasks, len(DIRECTIONS), features, state_size, step_rank
        self.dtype = dtype
        self.implementation = implementation
        # Mamba's own scheme: fan-in uniform projections, A = -(1..n), D = 1.
        bound = d**-0.5
        shape = (t, k, d, r + 2 * n)
        self.projection = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        bound, shape = r**-0.5, (t, k, r, d)
        self.step_weight = nnx.Param(initializers.uniform(rngs.params(), shape, -bound, bound))
        self.step_bias = nnx.Param(_step_bias(rngs.params(), (t, k, d)))
        log_a = jnp.log(jnp.arange(1, n + 1, dtype=jnp.float32))
        self.log_a = nnx.Param(jnp.broadcast_to(log_a, (t, k, d, n)))
        self.skip = nnx.Param(jnp.ones((t, k, d), jnp.float32))

    def __call__(
        self, x: Float[Array, "t b h w d"], selecting: Float[Array, "t b h w d"] | None = None
    ) -> Float[Array, "t b h w d"]:
        """Scans x; B, C and the step sizes are computed from `selecting`, by default x itself."""
        t, _, d, _ = self.projection.shape
        x = to_features("x", x, t, d)
        source = x if selecting is None else to_features("selecting", selecting, t, d)
        # The scan's own parameters are float32, even if a user casts the whole model to bfloat16.
        parameters = (self.step_weight, self.step_bias, self.log_a, self.skip)
        weight, bias, log_a, skip = (each[...].astype(jnp.float32) for each in parameters)
        source, projection = (v.astype(self.dtype) for v in (source, self.projection[...]))
        arrays = (x, source, projection, weight, bias, -jnp.exp(log_a), skip)
        return selective_ss2d(*arrays, implementation=self.implementation, batch_axes=batch_axes())


def _step_bias(key: jax.Array | initializers.Parts, shape: tuple[int, ...]) -> jax.Array:
    """Returns biases whose softplus is log-uniform in [STEP_MIN, STEP_MAX]."""
    log_step = initializers.uniform(key, shape, math.log(STEP_MIN), math.log(STEP_MAX))
    step = jnp.maximum(jnp.exp(log_step), STEP_FLOOR)
    return step + jnp.log(-jnp.expm1(-step))  # the inverse of softplus


def scan_flops(x, step, weight, bias, a, b, *_) -> float:
    """Returns the multiply-adds of t scans as the paper counts them, from the arguments' shapes.

    A scan is an einsum for the step sizes, then 9 n + 1 for each of the l * d numbers of a
    direction. `numpy.einsum_path` prints the cost of an einsum with four digits, which the paper
    adds up; the correction of the projection before the scan is included here too.
    """
    del weight, bias, a
    t, pixels, d = x[0], math.prod(x[1:4]), x[4]
    (k, r), n = step[4:], b[5]
    each = k * pixels * d
    projection = each * (r + 2 * n)
    corrected = _four_digits(each * r) + _four_digits(projection) - projection
    return t * (each * (9 * n + 1) + corrected)


def _four_digits(multiply_adds: int) -> float:
    return float(f"{2 * multiply_adds:.3e}") / 2


# The op of every backend has this name; `paper.cost` counts the program with the backend "xla".
with_flops(scan_flops)(xla.ss2d_op)
