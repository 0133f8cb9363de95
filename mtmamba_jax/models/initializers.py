"""Initial weights, drawn for a whole model at once: every separate draw would be compiled."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jax.typing import DTypeLike
from jaxtyping import Array, Float

Model = TypeVar("Model", bound=nnx.Module)


class Parts:
    """Hands out consecutive parts of one draw; stands in for `nnx.Rngs` and for its keys.

    Args:
      draw: Numbers from `draw_unit`; None hands out zeros, to count how many are needed.
    """

    def __init__(self, draw: Float[Array, " n"] | None = None):
        self.count = 0  # numbers handed out so far
        self._draw = draw

    def params(self) -> Parts:
        """Returns itself, in the role of a key."""
        return self

    def take(self, shape: Sequence[int]) -> jax.Array:
        """Returns the next numbers, in this shape."""
        start = self.count
        self.count += math.prod(shape)
        if self._draw is None:
            return jnp.zeros(shape, jnp.float32)
        return self._draw[start : self.count].reshape(shape)


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
    """Returns normal numbers of mean 0, cut off at twice `deviation`."""
    return deviation * 2**0.5 * jax.lax.erf_inv(math.erf(2**0.5) * draw_unit(key, shape))


def lecun_normal(key: jax.Array | Parts, shape: Sequence[int], dtype: DTypeLike) -> jax.Array:
    """Returns a matrix [i o] of variance 1 / i; an initializer for `nnx.Linear`."""
    truncation = 0.87962566  # standard deviation of a normal number within (-2, 2)
    return truncated_normal(key, shape, shape[0] ** -0.5 / truncation).astype(dtype)


def initialize(construct: Callable[[Any], Model], rngs: nnx.Rngs) -> Model:
    """Returns `construct(rngs)`, with all weights drawn at once."""
    counter = Parts()
    jax.eval_shape(lambda: nnx.state(construct(counter)))
    draw = draw_unit(rngs.params(), (counter.count,))
    structure: Any = None

    def arrays(draw):
        nonlocal structure
        structure, state = nnx.split(construct(Parts(draw)))
        return state

    if not isinstance(draw, Tracer):  # options belong to the outermost jit only
        # The program runs once, so time spent on optimising it would be lost.
        arrays = jax.jit(arrays, compiler_options={"xla_backend_optimization_level": 0})
    state = arrays(draw)
    return nnx.merge(structure, state)
