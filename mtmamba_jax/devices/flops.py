"""Floating-point operations of a function: those of its matrix products and convolutions."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

from mtmamba_jax.kernels.platform_check import portable


def count_flops(function: Callable, *arguments) -> int:
    """Returns the floating-point operations of a function's matrix products and convolutions.

    A multiplication and an addition count as two. Nothing is compiled or run: the arguments may be
    shapes. Kernels, which would hide their products, are left out.

    Raises:
      NotImplementedError: If the function has a loop of unknown length.
    """
    with portable():
        return _jaxpr_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _jaxpr_flops(jaxpr: core.Jaxpr) -> int:
    return sum(map(_equation_flops, jaxpr.eqns))


def _equation_flops(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return product_flops(equation)
    if name == "conv_general_dilated":
        return convolution_flops(equation)
    inner = [_jaxpr_flops(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if not any(inner):
        return 0
    if name == "cond":  # runs one of its branches
        # Of branches for platforms, the last: it is for those that are not named.
        return inner[-1] if params.get("branches_platforms") else max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "while":
        raise NotImplementedError("count_flops: a while loop, whose length is unknown.")
    return sum(inner)


def product_flops(equation: core.JaxprEqn) -> int:
    """Returns the operations of a `dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left: Any = equation.invars[0].aval
    out: Any = equation.outvars[0].aval
    return 2 * out.size * math.prod(left.shape[axis] for axis in contracted)


def convolution_flops(equation: core.JaxprEqn) -> int:
    """Returns the operations of a `conv_general_dilated`."""
    kernel: Any = equation.invars[1].aval
    out: Any = equation.outvars[0].aval
    outputs = kernel.shape[equation.params["dimension_numbers"].rhs_spec[0]]
    # Each output is a sum over the kernel's window and the input channels of its group.
    return 2 * out.size * kernel.size // outputs
