"""The TPU kernels at the sizes of the decoder, on a TPU: `-m tpu`, see CONTRIBUTING.md."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.kernels.convolution import pallas_tpu
from mtmamba_jax.kernels.platform_check import portable
from mtmamba_jax.kernels.ss2d import ss2d
from mtmamba_jax.kernels.ss2d.api import ACTIVATIONS, SHAPES
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS
from mtmamba_jax.models import ops
from tests.kernels.kernel_suite import tpu_kernels_in, value_and_gradients
from tests.kernels.ss2d_suite import relative_error

pytestmark = [
    pytest.mark.tpu,
    pytest.mark.skipif(jax.default_backend() != "tpu", reason="needs a TPU"),
]

# In bfloat16 both sides round their results, by half of 2**-8, and values on the way.
TOLERANCE = 2e-2
SIZES = [(112, 144, 384), (56, 72, 768), (28, 36, 1536)]


@pytest.mark.parametrize("name", ["stage1_t1_b8", "stage2_t4_b1", "stage3_t5_b1"])
def test_the_scan_equals_plain_jax(name):
    arrays = [
        jnp.asarray(v, jnp.bfloat16 if key in ACTIVATIONS else jnp.float32)
        for key, v in zip(SHAPES, SPECS[name].arguments(), strict=True)
    ]
    dy = jax.random.normal(jax.random.key(1), arrays[0].shape, jnp.bfloat16)
    got, wanted = (
        value_and_gradients(functools.partial(ss2d, implementation=backend), dy, *arrays)
        for backend in ("pallas_tpu", "xla")
    )
    for key, one, other in zip(("y", *SHAPES), got, wanted, strict=True):
        assert relative_error(one, other) < TOLERANCE, key


def check(op, *shapes):
    """Compares an operation by its kernels with the same in plain JAX; maps have five axes."""
    rng = np.random.default_rng(0)
    dy, *arrays = (
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16 if len(shape) == 5 else jnp.float32)
        for shape in shapes
    )
    assert tpu_kernels_in(op, *arrays, arguments=range(len(arrays))) == 2
    got = value_and_gradients(op, dy, *arrays)
    with portable():
        wanted = value_and_gradients(op, dy, *arrays)
    for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert relative_error(one, other) < TOLERANCE, i


@pytest.mark.parametrize("size", SIZES)
def test_the_convolution_equals_plain_jax(size):
    image, d = (4, 1, *size), size[-1]
    if not pallas_tpu.supports(jax.ShapeDtypeStruct(image, jnp.bfloat16)):
        pytest.skip("this TPU's VMEM is too small for the kernels")
    check(ops.convolve_silu, image, image, (4, 3, 3, d), (4, d))


@pytest.mark.parametrize("size", SIZES)
def test_layer_norm_with_a_gate_equals_plain_jax(size):
    image, d = (4, 1, *size), size[-1]

    def op(x, scale, bias, gate):
        scale, bias = (v[:, None, None, None] for v in (scale, bias))
        return ops.layer_norm(x, scale, bias, gate, batch_axis=1, dtype=x.dtype)

    check(op, image, image, (4, d), (4, d), image)


@pytest.mark.parametrize("size", SIZES)
def test_the_blend_equals_plain_jax(size):
    d = size[-1]
    check(ops.blend, (4, 1, *size), (5, 1, *size), (5, d), (5, d), (4, 1, *size))
