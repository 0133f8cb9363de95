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

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from mtmamba_jax.config import Config
from mtmamba_jax.devices.flops import convolution_flops, product_flops
from mtmamba_jax.kernels.platform_check import portable
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_build
from mtmamba_jax.models.ops import PAPER_FLOPS
from mtmamba_jax.tasks.table import Task


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
    # The rules are those of plain JAX: no kernel is traced.
    settings = dataclasses.replace(config.model, scan_implementation="xla")
    return _count_model(settings, config.tasks.selected, tuple(config.data.size))


@functools.cache  # most runs in a table share their model
def _count_model(settings: ModelSettings, tasks: tuple[Task, ...], size: tuple[int, ...]) -> Cost:
    graph, weights = abstract_build(settings, tasks)
    images = jax.ShapeDtypeStruct((1, *size, 3), jnp.float32)
    with portable():
        traced = jax.make_jaxpr(lambda weights, x: nnx.merge(graph, weights)(x))(weights, images)
    program = traced.jaxpr
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
        return product_flops(equation) / 2
    if name == "conv_general_dilated":
        return convolution_flops(equation) / 2
    if name == "custom_vjp_call":
        function = params["call_jaxpr"].jaxpr.debug_info.func_name
        if function not in PAPER_FLOPS:
            raise NotImplementedError(
                f"The paper's counting has no rule for {function}. Decorate it with `with_flops` "
                "from mtmamba_jax/models/ops/dispatch.py."
            )
        rule = PAPER_FLOPS[function]
        if rule:
            arguments: list[Any] = equation.invars
            return rule(*(v.aval.shape for v in arguments))
    if name == "jit" and params["name"] == "_resize":
        return 0  # counted at the model's end
    inner = [_count(program, program.invars) for program in core.jaxprs_in_params(params)]
    if name in ("scan", "while") and any(inner):
        raise NotImplementedError(f"The paper's counting has no rule for a {name} with products.")
    return max(inner, default=0) if name == "cond" else sum(inner)
