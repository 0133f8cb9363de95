"""Golden arrays of the official model on small random cases, and helpers to run modules."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def group(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays under `prefix/`, without it."""
    return {k[len(prefix) + 1 :]: v for k, v in arrays.items() if k.startswith(prefix + "/")}


def randomized(construct: Callable[[nnx.Rngs], nnx.Module]) -> nnx.Module:
    """Returns a module with random normal weights, without compiling its initializers."""
    rng = np.random.default_rng(0)
    module = nnx.eval_shape(lambda: construct(nnx.Rngs(0)))
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda x: rng.standard_normal(x.shape, np.float32), state))
    return module


def value_and_gradients(module: nnx.Module, inputs, cotangent):
    """Returns module(inputs) and the gradients of sum(output * cotangent): weights, inputs."""
    graph, parameters = nnx.split(module, nnx.Param)

    @jax.jit
    def run(parameters, inputs, cotangent):
        output, backward = jax.vjp(lambda p, x: nnx.merge(graph, p)(x), parameters, inputs)
        return output, *backward(cotangent)

    return run(parameters, inputs, cotangent)


def run(module: nnx.Module, inputs, **options):
    """Returns module(inputs, **options), computed by one compiled program."""
    graph, state = nnx.split(module)
    return jax.jit(lambda state, x: nnx.merge(graph, state)(x, **options))(state, inputs)


def assert_states_close(found: nnx.State, wanted: nnx.State, *, rtol: float, atol: float) -> None:
    wanted = dict(nnx.to_flat_state(wanted))
    for path, value in nnx.to_flat_state(found):
        np.testing.assert_allclose(
            value[...], wanted[path][...], rtol=rtol, atol=atol, err_msg=".".join(map(str, path))
        )
