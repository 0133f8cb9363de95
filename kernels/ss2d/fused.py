"""What backends of fused kernels share: all of the op that is not a scan, and its gradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Hashable, Sequence

import jax
import jax.numpy as jnp

Array = jax.Array

LOG2E = math.log2(math.e)  # kernels take exp2
LN2 = math.log(2)


def columns_and_reverses(directions: Sequence[str]) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Returns, for each direction, whether it reads down columns, and whether backwards."""
    columns = tuple(name.startswith("column") for name in directions)
    return columns, tuple(name.endswith("_reversed") for name in directions)


def fused(scan: Callable, gradients: Callable) -> Callable[..., Array]:
    """Returns `op(static, x, dt, dt_weight, dt_bias, A, B, C, D)`, differentiable in its arrays.

    Args:
      scan: `scan(static, x, .., C, save=)` returns y without D's part [t b h w d] in float32, and
        what is kept for the backward pass, if `save`.
      gradients: `gradients(static, x, .., C, saved, dy)` returns those of the seven arrays; x's
        without D's part, in float32.
    """

    def run(static: Hashable, *arrays: Array, save: bool):
        *arrays, D = arrays
        y, saved = scan(static, *arrays, save=save)
        y += arrays[0] * _skip(D)
        return y.astype(arrays[0].dtype), saved

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def op(static, *arrays):
        return run(static, *arrays, save=False)[0]

    def forward(static, *arrays):
        y, saved = run(static, *arrays, save=True)
        return y, (arrays, saved)

    def backward(static, residuals, dy):
        arrays, saved = residuals
        *inputs, D = arrays
        dx, *others = gradients(static, *inputs, saved, dy)
        dx += dy * _skip(D)
        dD = jnp.sum(dy.astype(jnp.float32) * inputs[0], (1, 2, 3))[:, None]
        found = (dx, *others, jnp.broadcast_to(dD, D.shape))
        return tuple(g.astype(v.dtype) for g, v in zip(found, arrays, strict=True))

    op.defvjp(forward, backward)
    return op


def _skip(D: Array) -> Array:
    """The directions' D, added: [t k d] to [t 1 1 1 d]."""
    return jnp.sum(D, 1)[:, None, None, None]
