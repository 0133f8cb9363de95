"""The convolution's kernels: results interpreted and on a GPU, on several devices, and lowering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.kernels.convolution import pallas_tpu, pallas_triton
from mtmamba_jax.models import ops
from tests.kernels.kernel_suite import check_sharded, kernels_in, value_and_gradients
from tests.kernels.ss2d_suite import ampere, relative_error

# Both sides get the same inputs. Float32 sums in another order; in bfloat16 the kernels round their
# results and the gradient before SiLU, each by at most half of 2**-8.
TOLERANCES = {"float32": 2e-6, "bfloat16": 8e-3}


def arguments(shape, dtype):
    rng = np.random.default_rng(0)
    t, d = shape[0], shape[-1]
    x, dy = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    kernel, bias = (
        jnp.asarray(rng.standard_normal(size), jnp.float32) for size in ((t, 3, 3, d), (t, d))
    )
    return dy, x, kernel, bias


def plain(x, kernel, bias):
    z = ops.depthwise_convolve(x, kernel) + bias[:, None, None, None]
    return jax.nn.silu(z.astype(x.dtype))


def check(shape, dtype, op=ops.convolve_silu):
    arrays = arguments(shape, dtype)
    got = value_and_gradients(op, *arrays)
    wanted = value_and_gradients(plain, *(v.astype(jnp.float32) for v in arrays))
    for name, one, other in zip(("y", "x", "kernel", "bias"), got, wanted, strict=True):
        assert relative_error(one, other) < TOLERANCES[dtype], name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "strips"),
    [((1, 1, 1, 1, 128), 1), ((1, 1, 9, 6, 128), 1), ((2, 2, 17, 7, 256), 2)],
)
def test_interpreted_kernels_equal_plain_jax(interpreted, monkeypatch, shape, strips, dtype):
    t, b, _, w, d = shape
    programs = t * b * -(-w // pallas_triton.COLUMNS) * d // pallas_triton.CHANNELS
    monkeypatch.setattr(pallas_triton, "MIN_PROGRAMS", strips * programs)
    assert pallas_triton.choose_strips(shape).count == strips
    check(shape, dtype)
    assert interpreted == ["_convolve_forward", "_convolve_backward"]


@pytest.mark.tpu
@pytest.mark.usefixtures("tpu_interpreter")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 128), (2, 1, 5, 9, 128), (1, 2, 4, 16, 256)])
def test_interpreted_tpu_kernels_equal_plain_jax(shape, dtype):
    check(shape, dtype, pallas_tpu.convolve_silu)


def test_maps_larger_than_vmem_have_no_tpu_kernels(monkeypatch):
    x = jax.ShapeDtypeStruct((1, 1, 112, 144, 128), jnp.bfloat16)
    for mebibytes, fits in ((128, True), (16, False)):
        monkeypatch.setattr(pallas_tpu, "vmem_capacity", lambda size=mebibytes: size * 2**20)
        assert pallas_tpu.supports(x) == fits


def test_a_sharded_batch_equals_one_device(interpreted, monkeypatch):
    # Pallas does not interpret kernels inside shard_map, so plain JAX takes their place.
    def convolve_silu(x, kernel, bias):
        assert x.shape[1] == 1  # one image a device
        return plain(x, kernel, bias)

    monkeypatch.setattr(pallas_triton, "convolve_silu", convolve_silu)
    arrays = arguments((2, 4, 3, 4, 128), "float32")
    check_sharded(ops.convolve_silu, plain, arrays, TOLERANCES["float32"])


@pytest.mark.parametrize(("channels", "kernels"), [(128, 2), (96, 0)])
def test_programs_for_cuda_have_the_kernels_where_they_can(channels, kernels):
    _, *arrays = arguments((1, 2, 5, 7, channels), "bfloat16")
    assert kernels_in(ops.convolve_silu, *arrays, arguments=(0, 1, 2)) == [kernels, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not ampere(), reason="needs a GPU of compute capability 8.0")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1, 128), (2, 2, 17, 7, 256), (4, 2, 28, 36, 1536)])
def test_kernels_equal_plain_jax_on_a_gpu(shape, dtype):
    check(shape, dtype)
