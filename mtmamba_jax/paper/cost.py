"""Counts a model's cost as the paper does: its columns #Param and FLOPs.

The paper's FLOPs are multiply-adds as counted by fvcore 0.1.5
(github.com/facebookresearch/fvcore):

- convolutions, linear maps and matrix products, without their biases
- 5 per number that a LayerNorm normalises
- 4 per number of the tasks' maps, for resizing them to the image's size, even if they have it
- an einsum as `numpy.einsum_path` prints its cost: with four digits
- 9 n + 1 for each of the l * d numbers of a scan direction; fvcore itself does not know scans

Everything else is free: softmax, activations, gates, sums. The count is read off the model's jaxpr,
so nothing is allocated or compiled. Products of weights alone are not counted: the heads here
multiply some weights with each other to avoid larger products with features.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from mtmamba_jax.config import Config
from mtmamba_jax.devices.flops import of_convolution, of_product
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_build
from mtmamba_jax.tasks import Task

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a model costs.

    Attributes:
      parameters: Number of parameters in millions.
      flops: Multiply-adds for one image in 10^9.
    """

    parameters: float
    flops: float


def count_cost(config: Config) -> Cost:
    """Returns the cost of a configuration's model for an image of `data.size`.

    Raises:
      NotImplementedError: If the model has an operation that the paper's counting has no rule for.
    """
    # The jaxpr of the implementation "xla" has a single call per scan.
    settings = dataclasses.replace(config.model, scan_implementation="xla")
    return _count_model(settings, config.tasks.selected, tuple(config.data.size))


@functools.cache  # most runs in a table share their model
def _count_model(settings: ModelSettings, tasks: tuple[Task, ...], size: tuple[int, ...]) -> Cost:
    graph, weights = abstract_build(settings, tasks)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    program = jax.make_jaxpr(lambda weights, x: nnx.merge(graph, weights)(x))(weights, images).jaxpr
    resized = 4 * math.prod(size) * sum(task.channels for task in tasks)
    parameters = sum(leaf.size for leaf in jax.tree.leaves(weights))
    return Cost(parameters / 1e6, (_count(program, program.invars[-1:]) + resized) / 1e9)


def _count(program: core.Jaxpr, inputs: Sequence[core.Var]) -> float:
    """Counts the operations of a program that depend on some of its inputs."""
    reached, total = set(inputs), 0
    for equation in program.eqns:
        if any(isinstance(v, core.Var) and v in reached for v in equation.invars):
            reached.update(equation.outvars)
            total += _count_equation(equation)
    return total


def _count_equation(equation: core.JaxprEqn) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return of_product(equation) / 2
    if name == "conv_general_dilated":
        return of_convolution(equation) / 2
    if name == "custom_vjp_call":
        function = params["call_jaxpr"].jaxpr.debug_info.func_name
        if function in OWN_RULES:
            return OWN_RULES[function](*(v.aval.shape for v in equation.invars))
        if function not in BY_CONTENT:
            raise NotImplementedError(
                f"The paper's counting has no rule for {function}: add one to OWN_RULES or name it "
                "in BY_CONTENT, in mtmamba_jax/paper/cost.py."
            )
    if name == "jit" and params["name"] == "_resize":
        return 0  # counted at the model's end
    inner = [_count(program, program.invars) for program in core.jaxprs_in_params(params)]
    if name in ("scan", "while") and any(inner):
        raise NotImplementedError(f"The paper's counting has no rule for a {name} with products.")
    return max(inner, default=0) if name == "cond" else sum(inner)


def _layer_norm(x: Shape, *_: Shape) -> int:
    return 5 * math.prod(x)


def _convolve(x: Shape, *_: Shape) -> int:
    return 9 * math.prod(x)


def _inverse_deviation(x: Shape, kernel: Shape) -> int:
    """The product that makes a fine map of a coarse one, and its LayerNorm."""
    return math.prod(x[:-1]) * math.prod(kernel[1:]) * (x[-1] + 5)


def _ss2d(x: Shape, dt: Shape, weight: Shape, bias: Shape, a: Shape, b: Shape, *_: Shape) -> float:
    """A stack of t scans: each an einsum for the step sizes, then the recurrence.

    What the einsum before it, which selects, has too many or too few for its four digits is
    counted here as well.
    """
    del weight, bias, a
    t, pixels, d = x[0], math.prod(x[1:4]), x[4]
    (k, r), n = dt[4:], b[5]
    each = k * pixels * d
    selecting = each * (r + 2 * n)
    steps = _four_digits(each * r)
    return t * (each * (9 * n + 1) + steps + _four_digits(selecting) - selecting)


def _four_digits(multiply_adds: int) -> float:
    return float(f"{2 * multiply_adds:.3e}") / 2


OWN_RULES: Mapping[str, Callable[..., float]] = {
    "_layer_norm": _layer_norm,
    "_convolve": _convolve,
    "_inverse_deviation": _inverse_deviation,
    "_ss2d": _ss2d,
}
"""Functions of the model that count by their arguments' shapes, whatever is inside."""

BY_CONTENT = ("_attention", "_gelu", "_product")
"""Functions of the model that count as what is inside."""
