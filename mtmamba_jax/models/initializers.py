"""Initial weights: a whole model's are parts of one draw, since each draw would be compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from mtmamba_jax.array_types import Array


class Parts:
    """Hands out parts of one draw; stands for `nnx.Rngs`, and for its keys, in constructors.

    Args:
      draw: numbers from `draw_unit`, [n]; None hands out zeros, to find how many are needed.

    Attributes:
      taken: how many numbers were handed out.
    """

    def __init__(self, draw: Array | None = None):
        self.taken = 0
        self._draw = draw

    def params(self) -> Parts:
        """Returns what stands for a key."""
        return self

    def take(self, shape: Sequence[int]) -> jax.Array:
        """Returns the next numbers."""
        start = self.taken
        self.taken += math.prod(shape)
        if self._draw is None:
            return jnp.zeros(shape, jnp.float32)
        return self._draw[start : self.taken].reshape(shape)


def draw_unit(key: jax.Array | Parts, shape: Sequence[int]) -> jax.Array:
    """Returns float32 numbers uniform in (-1, 1)."""
    if isinstance(key, Parts):
        return key.take(shape)
    low = np.nextafter(np.float32(-1), np.float32(0))  # erf_inv(-1) is infinite
    return jax.random.uniform(key, shape, jnp.float32, minval=low, maxval=1.0)


def uniform(key: jax.Array | Parts, shape: Sequence[int], low: float, high: float) -> jax.Array:
    """Returns numbers uniform in (low, high)."""
    return (low + high) / 2 + (high - low) / 2 * draw_unit(key, shape)


def normal(key: jax.Array | Parts, shape: Sequence[int], deviation: float) -> jax.Array:
    """Returns normal numbers of mean 0."""
    return deviation * 2**0.5 * jax.lax.erf_inv(draw_unit(key, shape))


def truncated_normal(key: jax.Array | Parts, shape: Sequence[int], deviation: float) -> jax.Array:
    """Returns normal numbers of mean 0, those beyond 2 `deviation` left out."""
    return deviation * 2**0.5 * jax.lax.erf_inv(math.erf(2**0.5) * draw_unit(key, shape))


def lecun_normal(key: jax.Array | Parts, shape: Sequence[int], dtype: jnp.dtype) -> jax.Array:
    """Returns a matrix [i o] of variance 1 / i; an initialiser for `nnx.Linear`."""
    truncation = 0.87962566  # standard deviation of a normal number within (-2, 2)
    return truncated_normal(key, shape, shape[0] ** -0.5 / truncation).astype(dtype)


def initialise(construct: Callable[[nnx.Rngs | Parts], nnx.Module], rngs: nnx.Rngs) -> nnx.Module:
    """Returns `construct(rngs)`, with all weights drawn at once."""
    counter = Parts()
    jax.eval_shape(lambda: nnx.state(construct(counter)))
    draw = draw_unit(rngs.params(), (counter.taken,))
    found = {}

    def arrays(draw):
        found["graph"], state = nnx.split(construct(Parts(draw)))
        return state

    if not isinstance(draw, jax.core.Tracer):  # options belong to the outermost jit only
        # The program runs once, so time spent on optimising it would be lost.
        arrays = jax.jit(arrays, compiler_options={"xla_backend_optimization_level": 0})
    state = arrays(draw)
    return nnx.merge(found["graph"], state)
