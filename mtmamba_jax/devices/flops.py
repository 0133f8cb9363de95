"""How much arithmetic a function is: the operations of its matrix products and convolutions."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
from jax.extend import core


def count_flops(function: Callable, *arguments) -> int:
    """Returns the floating-point operations of a function's matrix products and convolutions.

    A multiplication and an addition are two. Nothing is compiled or run.

    Args:
      function: of arrays, as `jax.jit` takes it.
      arguments: arrays or their shapes.

    Raises:
      NotImplementedError: it has a loop of unknown length.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: core.Jaxpr) -> int:
    return sum(_of_equation(equation) for equation in jaxpr.eqns)


def _of_equation(equation: core.JaxprEqn) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return of_product(equation)
    if name == "conv_general_dilated":
        return of_convolution(equation)
    inner = [_count(jaxpr) for jaxpr in core.jaxprs_in_params(params)]
    if not any(inner):
        return 0
    if name == "cond":  # one of the branches is taken
        return max(inner)
    if name == "scan":
        return params["length"] * sum(inner)
    if name == "while":
        raise NotImplementedError("count_flops: a while loop, whose length is not known.")
    return sum(inner)


def of_product(equation: core.JaxprEqn) -> int:
    """Returns the operations of a `dot_general`."""
    (contracted, _), _ = equation.params["dimension_numbers"]
    left = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(left[axis] for axis in contracted)


def of_convolution(equation: core.JaxprEqn) -> int:
    """Returns the operations of a `conv_general_dilated`."""
    kernel = equation.invars[1].aval.shape
    outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    # Each output is a sum over the kernel's window and the inputs of its group.
    return 2 * equation.outvars[0].aval.size * math.prod(kernel) // outputs
