"""Everything the backends of SS2D share: names, reading orders, D's skip connection, softplus."""

import difflib
import functools
import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from mtmamba_jax.kernels.platform_check import require_platform

LOG2E = math.log2(math.e)
"""The kernels use exp2, so A is multiplied by this factor first."""
LN2 = math.log(2)

# log(1 + e) / e for e in [0, 1] with relative errors of 3e-7 and 6e-5: least-squares polynomials,
# reweighted towards the minimax fit (Lawson's algorithm).
_LOG1P_EXACT = (
    *(0.9999998, -0.49997407, 0.3327549, -0.24495512),
    *(0.1774534, -0.10768274, 0.044090144, -0.0085393),
)
_LOG1P = (0.99994326, -0.4969778, 0.30630094, -0.15742722, 0.041347306)


class Directions(NamedTuple):
    """The reading order of each direction. Hashable, so usable as a static argument.

    Attributes:
      columns: Whether each direction reads down columns rather than along rows.
      reverses: Whether each direction starts at the last pixel.
    """

    columns: tuple[bool, ...]
    reverses: tuple[bool, ...]


def parse_directions(names: Iterable[str]) -> Directions:
    """Returns the reading orders of directions such as "row" or "column_reversed"."""
    names = tuple(names)
    return Directions(
        tuple(name.startswith("column") for name in names),
        tuple(name.endswith("_reversed") for name in names),
    )


def any_of(index: Array, flags: Sequence[bool]) -> Bool[Array, ""]:
    """Returns whether the flag at a traced index is set."""
    if len(set(flags)) == 1:
        return index < len(flags) if flags[0] else index < 0
    return functools.reduce(jnp.logical_or, [index == i for i, flag in enumerate(flags) if flag])


def check_name(what: str, name: str, valid: Iterable[str]) -> None:
    """Checks that `name` is one of `valid`, as `mtmamba_jax.messages` does.

    It is repeated because the kernels import no other folder and can be used alone.

    Raises:
      ValueError: If the name is unknown; the message suggests the closest and lists all valid ones.
    """
    valid = list(valid)
    if name not in valid:
        close = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown {what} {name!r}.{hint} Valid: {', '.join(valid)}.")


def combine(left: Sequence[Array], right: Sequence[Array]) -> tuple[Array, Array]:
    """Composes h -> a*h + b over neighbouring spans, `left` first; for `lax.associative_scan`."""
    return left[0] * right[0], left[1] * right[0] + right[1]


def pad(v: Array, axis: int, size: int) -> Array:
    """Adds zeros to the end of an axis, up to a size."""
    padding = [(0, 0)] * v.ndim
    padding[axis] = (0, size - v.shape[axis])
    return jnp.pad(v, padding) if padding[axis][1] else v


def start_states(decay: Array, added: Array, *, axis: int, reverse: bool) -> Array:
    """Returns the state before each segment of a scan that starts at zero.

    Args:
      decay: Factor that each segment applies to the state, without the segment that is read last.
      added: State at the end of each of these segments if it started at zero.
      axis: Axis of the segments; the result has one more.
      reverse: Whether segments are read from the last to the first, as the adjoint's are.
    """
    ends = lax.associative_scan(combine, (decay, added), axis=axis, reverse=reverse)[1]
    zeros = jnp.zeros_like(lax.slice_in_dim(ends, 0, 1, axis=axis))
    return jnp.concatenate([ends, zeros] if reverse else [zeros, ends], axis)


def split_projected(v: Array, rank: int) -> list[Array]:
    """Splits the last axis into dt, B and C, of `rank`, n and n numbers."""
    return jnp.split(v, (rank, (v.shape[-1] + rank) // 2), -1)


def projection_gradients(
    dz: Float[Array, "t k b l d"], dt: Float[Array, "t k b l r"], dt_weight: Float[Array, "t k r d"]
) -> tuple[Float[Array, "t k b l r"], Float[Array, "t k r d"], Float[Array, "t k d"]]:
    """Returns the gradients of dt, dt_weight and dt_bias from that of z = dt dt_weight + dt_bias.

    The factors of the products have dz's dtype, the sums are float32, and ddt is rounded to dt's.
    """
    einsum = functools.partial(
        jnp.einsum, precision=lax.Precision.HIGHEST, preferred_element_type=jnp.float32
    )
    # Rounded here, the product is never stored in float32.
    ddt = einsum("tkbld,tkrd->tkblr", dz, dt_weight.astype(dz.dtype)).astype(dt.dtype)
    ones = jnp.ones((*dt.shape[:-1], 1), dz.dtype)  # for the bias: one product reads dz once
    dprojection = einsum("tkblr,tkbld->tkrd", jnp.concatenate([dt.astype(dz.dtype), ones], -1), dz)
    return ddt, dprojection[:, :, :-1], dprojection[:, :, -1]


def require_backend(x: Array, backend: str, platforms: tuple[str, ...]) -> Array:
    """Returns x; lowering it for a platform that a backend does not run on is an error.

    Raises:
      NotImplementedError: See `require_platform`.
    """
    remedy = (
        "Use implementation='xla' (for a model, scan_implementation='xla' and `with "
        "mtmamba_jax.portable():`), which runs everywhere"
    )
    return require_platform(x, f"ss2d: backend {backend}", platforms, remedy)


def opaque_one(*arrays: Array) -> Array:
    """Returns a float32 1 that the compiler cannot fold, for loop carries and `xla._materialize`.

    Inside `jax.shard_map` it varies over every mesh axis that the arrays vary over, as the initial
    carry of a loop must if its result does.
    """
    firsts = [v[(0,) * v.ndim].astype(jnp.float32) for v in arrays]
    bits = functools.reduce(
        jnp.bitwise_or, [lax.bitcast_convert_type(v, jnp.int32) for v in firsts]
    )
    return ((bits | 1) != 0).astype(jnp.float32)


def create_op(
    scan: Callable, gradients: Callable, *, separate_sums: bool = False
) -> Callable[..., Array]:
    """Returns `op(static, x, ..., D)`, differentiable in all arrays.

    D's skip connection, its gradient and the casts to the arguments' dtypes are added here; a
    backend provides the rest.

    Args:
      scan: `scan(static, x, ..., save=)`, without D, returns y without D * x, [t b h w d] float32,
        and the residuals for the backward pass, which are needed only if `save`.
      gradients: `gradients(static, x, ..., residuals, dy)` returns the gradients of all arrays but
        D; that of x without D * dy, in float32.
      separate_sums: Whether to read x and dy again for the gradient of D. On GPUs a pass that also
        computes the gradient of x takes longer than two.
    """

    # The kernels are written in 32 bits: with jax_enable_x64 their indices would be int64, which
    # Mosaic does not have.
    @jax.enable_x64(False)
    def run(static: Hashable, *arrays: Array, save: bool):
        *inputs, D = arrays
        y, saved = scan(static, *inputs, save=save)
        y += inputs[0] * _sum_skips(D)
        return y.astype(inputs[0].dtype), saved

    @functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
    def ss2d_op(static, *arrays):
        return run(static, *arrays, save=False)[0]

    def forward(static, *arrays):
        y, saved = run(static, *arrays, save=True)
        return y, (arrays, saved)

    @jax.enable_x64(False)
    def backward(static, residuals, dy):
        arrays, saved = residuals
        *inputs, D = arrays
        dx, *others = gradients(static, *inputs, saved, dy)
        dx += dy * _sum_skips(D)
        pair = (inputs[0], dy)
        x, dy = lax.optimization_barrier(pair) if separate_sums else pair
        dD = jnp.sum(dy.astype(jnp.float32) * x, (1, 2, 3))[:, None]
        found = (dx, *others, jnp.broadcast_to(dD, D.shape))
        return tuple(g.astype(v.dtype) for g, v in zip(found, arrays, strict=True))

    ss2d_op.defvjp(forward, backward)
    return cast(Callable[..., Array], ss2d_op)


def _sum_skips(D: Float[Array, "t k d"]) -> Float[Array, "t 1 1 1 d"]:
    return jnp.sum(D, 1)[:, None, None, None]


def softplus(z: Array, *, exact: bool) -> Array:
    """Returns log(1 + exp(z)) in a few multiplications, accurate also where it is tiny.

    The result is accurate to float32 if `exact`, else only beyond bfloat16.
    """
    e = jnp.exp(-jnp.abs(z))
    *coefficients, series = _LOG1P_EXACT if exact else _LOG1P
    for coefficient in reversed(coefficients):
        series = series * e + coefficient
    return jnp.maximum(z, 0.0) + e * series


def softplus_gradient(step: Array) -> Array:
    """Returns the derivative of softplus where its value is `step`: 1 - exp(-step).

    The relative error is at most 1.4e-6.
    """
    series = step * (
        1 - step * (1 / 2) * (1 - step * (1 / 3) * (1 - step * (1 / 4) * (1 - step * (1 / 5))))
    )
    return jnp.where(step < 0.25, series, 1 - jnp.exp(-step))
