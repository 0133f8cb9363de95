"""The blend's kernels: results interpreted and on a GPU, on several devices, and lowering."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.kernels.blend import pallas_tpu, pallas_triton
from mtmamba_jax.models import ops
from tests.kernels.kernel_suite import check_sharded, kernels_in, value_and_gradients
from tests.kernels.ss2d_suite import ampere, relative_error

# Float32 sums in another order; in bfloat16 the kernels round their results by half of 2**-8.
TOLERANCES = {"float32": 2e-6, "bfloat16": 4e-3}


def arguments(shape, dtype):
    """Returns the cotangent and the arguments for maps [s b h w c] of some shape."""
    rng = np.random.default_rng(0)
    s, *rest = shape
    dy, x, gate = (jnp.asarray(rng.standard_normal((n, *rest)), dtype) for n in (s - 1, s, s - 1))
    scale, bias = (jnp.asarray(rng.standard_normal((s, rest[-1])), jnp.float32) for _ in range(2))
    return dy, x, scale, bias, gate


def plain(x, scale, bias, gate):
    mean, variance = (f(x, -1, keepdims=True) for f in (jnp.mean, jnp.var))
    normal = (x - mean) / jnp.sqrt(variance + ops.EPSILON)
    values = normal * scale[:, None, None, None] + bias[:, None, None, None]
    share = jax.nn.sigmoid(gate)
    return share * values[-1:] + (1 - share) * values[:-1]


def check(shape, dtype, op=ops.blend):
    """Compares value and gradients with those of the formula in float32."""
    arrays = arguments(shape, dtype)
    got = value_and_gradients(op, *arrays)
    wanted = value_and_gradients(plain, *(v.astype(jnp.float32) for v in arrays))
    for name, one, other in zip(("y", "x", "scale", "bias", "gate"), got, wanted, strict=True):
        assert relative_error(one, other) < TOLERANCES[dtype], name


SHAPES = [(2, 1, 4, 8, 32), (5, 2, 3, 5, 96), (3, 1, 1, 7, 1536)]


@pytest.mark.parametrize("shape", SHAPES)
def test_plain_jax_equals_the_formula(shape):
    check(shape, "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_interpreted_kernels_equal_the_formula(interpreted, monkeypatch, shape, dtype):
    monkeypatch.setattr(pallas_triton, "PROGRAMS", 3)
    check(shape, dtype)
    assert interpreted == ["_blend_forward", "_blend_backward"]


@pytest.mark.tpu
@pytest.mark.usefixtures("tpu_interpreter")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(5, 2, 3, 5, 128), (3, 1, 1, 7, 200)])
def test_interpreted_tpu_kernels_equal_the_formula(monkeypatch, shape, dtype):
    monkeypatch.setattr(pallas_tpu, "ELEMENTS", 4 * 8 * 128)  # the last block is partial

    def blend(x, scale, bias, gate):
        rows, gates = (v.reshape(len(v), -1, *shape[-2:]) for v in (x, gate))
        return pallas_tpu.blend(rows, scale, bias, gates, ops.EPSILON).reshape(gate.shape)

    check(shape, dtype, blend)


def test_a_sharded_batch_equals_one_device(interpreted, monkeypatch):
    # Pallas does not interpret kernels inside shard_map, so plain JAX takes their place.
    def blend(x, scale, bias, gate, epsilon):
        assert x.shape[1] == 2 * 3  # one image a device
        return plain(x[:, None, None], scale, bias, gate[:, None, None])[:, 0, 0]

    monkeypatch.setattr(pallas_triton, "blend", blend)
    arrays = arguments((3, 4, 2, 3, 32), "float32")
    check_sharded(ops.blend, plain, arrays, TOLERANCES["float32"])


@pytest.mark.parametrize(("channels", "kernels"), [(96, 2), (20, 0)])
def test_programs_for_cuda_have_the_kernels_where_they_can(channels, kernels):
    _, *arrays = arguments((3, 2, 4, 4, channels), "bfloat16")
    assert kernels_in(ops.blend, *arrays, arguments=(0, 1, 2, 3)) == [kernels, 0]


@pytest.mark.gpu
@pytest.mark.skipif(not ampere(), reason="needs a GPU of compute capability 8.0")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [*SHAPES, (5, 2, 28, 36, 1536), (5, 2, 112, 144, 384)])
def test_kernels_equal_the_formula_on_a_gpu(shape, dtype):
    check(shape, dtype)
