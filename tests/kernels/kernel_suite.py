"""What the tests of the kernels around the scan share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from tests.kernels.ss2d_suite import an_abstract_gpu


def value_and_gradients(op: Callable, cotangent, *arrays) -> tuple:
    """Returns op's value and the gradients of all arrays."""

    def run(*arrays):
        y, pull = jax.vjp(op, *arrays)
        return y, *pull(cotangent.astype(y.dtype))

    return jax.jit(run)(*arrays)


def kernels_in(op: Callable, *arrays, gpus: int = 1, arguments: Sequence[int] = (0, 1)) -> list:
    """Returns how many kernels a program and its gradients have for CUDA and for CPUs."""

    def loss(*arrays):
        return jnp.sum(jnp.sin(op(*arrays).astype(jnp.float32)))

    with an_abstract_gpu(gpus):
        traced = jax.jit(jax.grad(loss, tuple(arguments))).trace(*arrays)
        return [
            traced.lower(lowering_platforms=(name,)).as_text().count("xla.gpu.triton")
            for name in ("cuda", "cpu")
        ]
