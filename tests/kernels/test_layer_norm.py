"""LayerNorm's kernels: results interpreted and on a GPU, on several devices, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.kernels.layer_norm import pallas_tpu, pallas_triton
from mtmamba_jax.kernels.platform_check import portable
from mtmamba_jax.models import ops
from mtmamba_jax.models.ops import norm
from tests.kernels.kernel_suite import check_sharded, kernels_in, value_and_gradients
from tests.kernels.ss2d_suite import ampere, an_abstract_gpu, relative_error

# Both sides take the same numbers and sum in float32 in different orders; the kernels round
# bfloat16 results by at most half of 2**-8.
TOLERANCES = {"float32": 2e-6, "bfloat16": 4e-3}


def arguments(shape, groups, dtype, *, gated=False):
    rng = np.random.default_rng(0)
    lead = (groups, *(1,) * (len(shape) - 2))
    dy, x, *gate = (jnp.asarray(rng.standard_normal(shape), dtype) for _ in range(2 + gated))
    scale, bias = (
        jnp.asarray(rng.standard_normal((*lead, shape[-1])), jnp.float32) for _ in range(2)
    )
    return dy, x, scale, bias, *gate


def fused(x, *others):
    return ops.layer_norm(x, *others, batch_axis=1, dtype=x.dtype)


def plain(x, *others):
    return norm._plain_layer_norm((-1,), x.dtype, x, *others)


def check(shape, groups, dtype, *, gated):
    """Compares the kernels' value and gradients with those of plain JAX in float32."""
    arrays = arguments(shape, groups, dtype, gated=gated)
    got = value_and_gradients(fused, *arrays)
    wanted = value_and_gradients(plain, *(v.astype(jnp.float32) for v in arrays))
    for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert relative_error(one, other) < TOLERANCES[dtype], i


SHAPES = [
    ((1, 2, 8, 16, 96), 1),
    ((3, 2, 6, 4, 64), 3),
    ((1, 1, 7, 5, 160), 1),  # rows that no power of two divides
    ((2, 1, 3, 3, 1536), 2),
]


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_interpreted_kernels_equal_plain_jax(interpreted, monkeypatch, shape, groups, dtype, gated):
    monkeypatch.setattr(pallas_triton, "PROGRAMS", 3)
    check(shape, groups, dtype, gated=gated)
    assert interpreted == ["_layer_norm_forward", "_layer_norm_backward"]


@pytest.mark.tpu
@pytest.mark.usefixtures("tpu_interpreter")
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((2, 5, 2, 9, 128), 2), ((1, 1, 3, 7, 200), 1)],  # blocks of 4 rows, the last one partial
)
def test_interpreted_tpu_kernels_equal_plain_jax(monkeypatch, shape, groups, dtype, gated):
    monkeypatch.setattr(pallas_tpu, "ELEMENTS", 4 * 16 * 128)
    arrays = arguments(shape, groups, dtype, gated=gated)

    def kernels(x, scale, bias, gate=None):
        x, gate = jax.tree.map(lambda v: v.reshape(groups, -1, *shape[-2:]), (x, gate))
        scale, bias = (v.reshape(groups, -1) for v in (scale, bias))
        y = pallas_tpu.layer_norm(x, scale, bias, gate, norm.EPSILON, x.dtype)
        return y.reshape(shape)

    got = value_and_gradients(kernels, *arrays)
    wanted = value_and_gradients(plain, *(v.astype(jnp.float32) for v in arrays))
    for i, (one, other) in enumerate(zip(got, wanted, strict=True)):
        assert relative_error(one, other) < TOLERANCES[dtype], i


@pytest.mark.parametrize("gated", [False, True])
def test_a_sharded_batch_equals_one_device(interpreted, monkeypatch, gated):
    # Pallas does not interpret kernels inside shard_map, so plain JAX takes their place.
    def layer_norm(x, scale, bias, gate, epsilon, dtype):
        return plain(x, scale[:, None], bias[:, None], gate)

    monkeypatch.setattr(pallas_triton, "layer_norm", layer_norm)
    arrays = arguments((2, 4, 3, 4, 64), 2, "float32", gated=gated)
    check_sharded(fused, plain, arrays, TOLERANCES["float32"])


@pytest.mark.parametrize(
    ("shape", "groups", "axes", "dtype", "fused"),
    [
        ((1, 2, 4, 4, 96), 1, (-1,), "bfloat16", True),
        ((3, 2, 4, 4, 96), 3, (-1,), "float32", True),
        ((3, 2, 4, 4, 96), 3, (0, -1), "float32", False),
        ((1, 2, 4, 4, 20), 1, (-1,), "float32", False),
    ],
)
def test_programs_for_cuda_have_the_kernels_where_they_can(shape, groups, axes, dtype, fused):
    _, *arrays = arguments(shape, groups, dtype)
    op = functools.partial(ops.layer_norm, axes=axes, batch_axis=1, dtype=jnp.dtype(dtype))
    found = kernels_in(op, *arrays, arguments=(0, 1, 2))
    assert found == [2 if fused else 0, 0]


def test_programs_for_several_platforms_need_portable():
    _, *arrays = arguments((1, 2, 4, 4, 96), 1, "bfloat16")
    platforms = ("cpu", "cuda")
    with an_abstract_gpu():
        with pytest.raises(NotImplementedError, match=r"several platforms .*mtmamba_jax.portable"):
            jax.jit(fused).trace(*arrays).lower(lowering_platforms=platforms)
        with portable():
            assert jax.jit(fused).trace(*arrays).lower(lowering_platforms=platforms)


def test_sizes_that_are_not_known_have_no_kernels():
    sizes = jax.export.symbolic_shape("1, b, 4, 4, 96")
    assert not pallas_triton.supports(jax.ShapeDtypeStruct(sizes, jnp.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not ampere(), reason="needs a GPU of compute capability 8.0")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "groups"), [*SHAPES, ((4, 8, 28, 36, 768), 4)])
@pytest.mark.parametrize("gated", [False, True])
def test_kernels_equal_plain_jax_on_a_gpu(shape, groups, dtype, gated):
    check(shape, groups, dtype, gated=gated)
