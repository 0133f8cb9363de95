"""The definition of SS2D: one pixel after another, in float32."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

Array = jax.Array


def ss2d_reference(
    x: Array,
    dt: Array,
    dt_weight: Array,
    dt_bias: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Array,
    *,
    directions: Sequence[str],
) -> Array:
    """Runs `h = exp(step * A) * h + step * x * B`, `y = C.h + D * x` in each direction and adds.

    Arguments and result as in `api.ss2d`. Gradients are JAX's own: every state is kept, so this is
    for small arrays and for tests.
    """
    dtype = x.dtype
    arrays = (x, dt, dt_weight, dt_bias, A, B, C, D)
    x, dt, dt_weight, dt_bias, A, B, C, D = (v.astype(jnp.float32) for v in arrays)
    y = jnp.zeros_like(x)
    exact = jax.lax.Precision.HIGHEST
    for k, direction in enumerate(directions):
        column, reverse = direction.startswith("column"), direction.endswith("_reversed")

        def read(v, column=column):  # [t b h w ...] -> [l t b ...] in reading order
            v = jnp.swapaxes(v, 2, 3) if column else v
            return jnp.moveaxis(v.reshape(*v.shape[:2], -1, *v.shape[4:]), 2, 0)

        def advance(state, pixel, k=k):
            x, dt, B, C = pixel  # [t b d], [t b r], [t b n], [t b n]
            projected = jnp.einsum("tbr,trd->tbd", dt, dt_weight[:, k], precision=exact)
            step = jax.nn.softplus(projected + dt_bias[:, None, k])[..., None]
            state = jnp.exp(step * A[:, None, k]) * state + step * x[..., None] * B[:, :, None]
            return state, jnp.sum(state * C[:, :, None], -1) + D[:, None, k] * x

        # Zeros made of x and A vary, inside shard_map, as the state does.
        start = jnp.zeros_like(x[:, :, 0, 0, :, None] * A[:, None, k])
        pixels = tuple(map(read, (x, dt[..., k, :], B[..., k, :], C[..., k, :])))
        _, out = jax.lax.scan(advance, start, pixels, reverse=reverse)
        shape = (x.shape[3], x.shape[2]) if column else x.shape[2:4]
        out = jnp.moveaxis(out, 0, 2).reshape(*x.shape[:2], *shape, -1)
        y = y + (jnp.swapaxes(out, 2, 3) if column else out)
    return y.astype(dtype)
