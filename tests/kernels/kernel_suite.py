"""What the tests of the kernels around the scan share."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mtmamba_jax.devices.sharding import create_mesh
from tests.kernels.ss2d_suite import an_abstract_gpu, relative_error


def value_and_gradients(op: Callable, cotangent, *arrays) -> tuple:
    """Returns op's value and the gradients of all arrays."""

    def run(*arrays):
        y, pull = jax.vjp(op, *arrays)
        return y, *pull(cotangent.astype(y.dtype))

    return jax.jit(run)(*arrays)


def check_sharded(op: Callable, plain: Callable, arrays: Sequence, tolerance: float) -> None:
    """Compares `op` on four devices, which share the batch, with `plain` on one.

    Args:
      op: Function of the arrays.
      plain: The same.
      arrays: Gradient of the result, then the arguments.
      tolerance: Largest relative error of the result and of each gradient.
    """
    wanted = value_and_gradients(plain, *arrays)
    with jax.set_mesh(create_mesh(4, data=2, fsdp=2, devices=jax.devices()[:4])):
        got = value_and_gradients(op, *arrays)
    for one, other in zip(got, wanted, strict=True):
        assert relative_error(one, other) < tolerance


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


def tpu_kernels_in(op: Callable, *arrays, arguments: Sequence[int] = (0, 1)) -> int:
    """Returns how many kernels a program and its gradients have for TPUs."""

    def loss(*arrays):
        return jnp.sum(jnp.sin(op(*arrays).astype(jnp.float32)))

    traced = jax.jit(jax.grad(loss, tuple(arguments))).trace(*arrays)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call")
