"""Softplus and its derivative as the kernels compute them, in a few multiplications."""

from __future__ import annotations

import jax
import jax.numpy as jnp

Array = jax.Array

# log(1 + e) / e for e in 0..1, relative error 3e-7 and 6e-5: least squares with Lawson's weights.
_LOG1P_EXACT = (
    *(0.9999998, -0.49997407, 0.3327549, -0.24495512),
    *(0.1774534, -0.10768274, 0.044090144, -0.0085393),
)
_LOG1P = (0.99994326, -0.4969778, 0.30630094, -0.15742722, 0.041347306)


def softplus(z: Array, *, exact: bool) -> Array:
    """log(1 + exp(z)), accurate also where it is tiny: to float32, or to more than bfloat16."""
    e = jnp.exp(-jnp.abs(z))
    *coefficients, series = _LOG1P_EXACT if exact else _LOG1P
    for coefficient in reversed(coefficients):
        series = series * e + coefficient
    return jnp.maximum(z, 0.0) + e * series


def softplus_gradient(step: Array) -> Array:
    """The derivative of softplus where it is `step`: 1 - exp(-step), relative error 1.4e-6."""
    series = step * (1 - step / 2 * (1 - step / 3 * (1 - step / 4 * (1 - step / 5))))
    return jnp.where(step < 0.25, series, 1 - jnp.exp(-step))
