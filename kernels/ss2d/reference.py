"""The definition of SS2D, which other backends are tested against: pixel by pixel, in float32."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.common import parse_directions


def ss2d_reference(*arrays: Array, directions: Sequence[str]) -> Float[Array, "t b h w d"]:
    """Sums `h = exp(step * A) * h + step * x * B`, `y = C.h + D * x` over the directions.

    Arrays and result are those of `api.ss2d`. Gradients are JAX's own, which keep every state, so
    use this for small arrays and tests only.
    """
    x, dt, dt_weight, dt_bias, A, B, C, D = (v.astype(jnp.float32) for v in arrays)
    y = jnp.zeros_like(x)
    exact = jax.lax.Precision.HIGHEST
    for k, (column, reverse) in enumerate(zip(*parse_directions(directions), strict=True)):

        def read(v, column=column):  # [t b h w ...] -> [l t b ...], row- or column-major
            v = jnp.swapaxes(v, 2, 3) if column else v
            return jnp.moveaxis(v.reshape(*v.shape[:2], -1, *v.shape[4:]), 2, 0)

        def advance(state, pixel, k=k):
            x, dt, B, C = pixel  # [t b d], [t b r], [t b n], [t b n]
            projected = jnp.einsum("tbr,trd->tbd", dt, dt_weight[:, k], precision=exact)
            step = jax.nn.softplus(projected + dt_bias[:, None, k])[..., None]
            state = jnp.exp(step * A[:, None, k]) * state + step * x[..., None] * B[:, :, None]
            return state, jnp.sum(state * C[:, :, None], -1) + D[:, None, k] * x

        # Inside shard_map, zeros computed from x and A vary over the mesh as the state does.
        start = jnp.zeros_like(x[:, :, 0, 0, :, None] * A[:, None, k])
        pixels = tuple(map(read, (x, dt[..., k, :], B[..., k, :], C[..., k, :])))
        _, out = jax.lax.scan(advance, start, pixels, reverse=reverse)
        shape = (x.shape[3], x.shape[2]) if column else x.shape[2:4]
        out = jnp.moveaxis(out, 0, 2).reshape(*x.shape[:2], *shape, -1)
        y = y + (jnp.swapaxes(out, 2, 3) if column else out)
    return y.astype(arrays[0].dtype)
