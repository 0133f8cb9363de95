"""Attention's kernels: results interpreted and on a GPU, on several devices, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtmamba_jax.kernels.attention import pallas_triton
from mtmamba_jax.kernels.ss2d.analysis.ptxas import GPUS
from mtmamba_jax.kernels.ss2d.analysis.topology import GPU_OPTIONS, find_gpus
from mtmamba_jax.models import ops
from mtmamba_jax.models.ops.attention import _attention
from tests.kernels.kernel_suite import check_sharded, kernels_in, value_and_gradients
from tests.kernels.ss2d_suite import ampere, relative_error

# Both sides get the same inputs, and the wanted results are those of float32. The kernels round
# their results, weights and gradients of scores to bfloat16, each by at most half of 2**-8.
TOLERANCE = 8e-3
KERNELS = ("FORWARD", "QUERIES", "KEYS")


def arguments(windows, length, heads, width):
    rng = np.random.default_rng(0)
    qkv, dout = (
        jnp.asarray(rng.standard_normal((windows, length, *more)), jnp.bfloat16)
        for more in ((3, heads, width), (heads, width))
    )
    return dout, qkv, jnp.asarray(rng.standard_normal((heads, length, length)), jnp.float32)


def fused(shifted):
    return lambda *arrays: ops.attention(*arrays, shifted)


def plain(shifted):
    return lambda qkv, bias: _attention(qkv.astype(jnp.float32), bias, shifted)


def check(shape, shifted):
    """Compares the kernels' value and gradients with those of plain JAX in float32."""
    arrays = arguments(*shape)
    got = value_and_gradients(fused(shifted), *arrays)
    wanted = value_and_gradients(plain(shifted), *arrays)
    for name, one, other in zip(("out", "qkv", "bias"), got, wanted, strict=True):
        assert np.isfinite(np.asarray(one, np.float32)).all(), name
        assert relative_error(one, other) < TOLERANCE, name


# Windows, pixels of a window, heads and channels; height and width of an image, and the window.
SHAPES = [
    ((6, 144, 2, 32), None),
    ((12, 144, 1, 32), (24, 36, 12)),  # two images
    ((4, 64, 3, 16), (16, 16, 8)),
    ((6, 16, 2, 32), (8, 4, 4)),  # three images
    # Lengths that are not sums of the kernels' blocks.
    ((6, 49, 2, 32), None),
    ((8, 49, 3, 32), (14, 14, 7)),
    ((4, 100, 1, 16), (20, 20, 10)),
]


def set_programs(monkeypatch, count):
    for name in KERNELS:
        launch = getattr(pallas_triton, name)._replace(programs=count)
        monkeypatch.setattr(pallas_triton, name, launch)


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("shape", "shifted"), SHAPES)
def test_interpreted_kernels_equal_plain_jax(interpreted, monkeypatch, shape, shifted, groups):
    _, length, heads, _ = shape
    set_programs(monkeypatch, groups * heads * -(-length // pallas_triton.QUERIES.rows))
    assert pallas_triton.QUERIES.groups(arguments(*shape)[1]) == groups
    check(shape, shifted)
    assert interpreted == [f"_attention_{name}" for name in ("forward", "queries", "keys")]


def test_a_query_may_see_nothing_but_itself(interpreted):
    dout, qkv, bias = arguments(1, 16, 1, 16)
    bias += 1e4 * jnp.eye(16)
    out, dqkv, dbias = value_and_gradients(fused(None), dout, qkv, bias)
    np.testing.assert_array_equal(out, qkv[:, :, 2])
    np.testing.assert_array_equal(dqkv[:, :, 2], dout)
    assert np.abs(np.asarray(dbias)).max() < 1e-4  # the rounding error of two equal sums


@pytest.mark.parametrize("shifted", [None, (8, 8, 4)])
def test_a_sharded_batch_equals_one_device(interpreted, monkeypatch, shifted):
    # Pallas does not interpret kernels inside shard_map, so plain JAX takes their place.
    def attention(qkv, bias, regions=None):
        if regions is None:
            assert len(qkv) == 4  # one image a device
            return plain(None)(qkv, bias).astype(qkv.dtype)
        assert qkv.shape[0] == regions.shape[0]  # one image a device
        return plain(shifted)(qkv, bias).astype(qkv.dtype)

    monkeypatch.setattr(pallas_triton, "attention", attention)
    arrays = arguments(16, 16, 2, 16)
    check_sharded(fused(shifted), plain(shifted), arrays, TOLERANCE)


@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize(
    ("shape", "dtype", "kernels"),
    [
        ((4, 144, 2, 32), "bfloat16", 3),
        ((4, 16, 2, 16), "bfloat16", 3),
        ((4, 144, 2, 32), "float32", 0),  # exact products
        ((4, 49, 2, 32), "bfloat16", 3),
        ((4, 169, 2, 32), "bfloat16", 0),
        ((4, 144, 2, 24), "bfloat16", 0),
    ],
)
def test_programs_for_cuda_have_the_kernels_where_they_can(shape, dtype, kernels, x64):
    _, qkv, bias = arguments(*shape)
    side = int(shape[1] ** 0.5)
    with jax.enable_x64(x64):
        op = fused((2 * side, 2 * side, side))
        assert kernels_in(op, qkv.astype(dtype), bias) == [kernels, 0]


def test_kernels_lower_inside_shard_map():
    _, qkv, bias = arguments(8, 16, 2, 32)
    op = jax.shard_map(fused((8, 8, 4)), in_specs=(P("data"), P()), out_specs=P("data"))
    assert kernels_in(op, qkv, bias, gpus=2) == [3, 0]


@pytest.mark.parametrize("side", [7, 12])
@pytest.mark.parametrize("capability", ["8.6", "9.0"])  # with 99 and 227 KiB of shared memory
def test_the_kernels_compile_without_a_gpu(capability, side):
    pytest.importorskip("jax_cuda13_plugin", reason="the compiler for GPUs")
    arrays = arguments(8, side**2, 2, 32)
    mesh = Mesh(find_gpus(GPUS[capability], capability), ("data",))
    run = functools.partial(value_and_gradients, fused((2 * side, 2 * side, side)))
    with jax.set_mesh(mesh):
        lowered = jax.jit(run, in_shardings=NamedSharding(mesh, P())).lower(
            *(jax.ShapeDtypeStruct(v.shape, v.dtype) for v in arrays)
        )
        text = lowered.compile(GPU_OPTIONS).as_text()
    assert all(f"_attention_{name}" in text for name in ("forward", "queries", "keys"))


@pytest.mark.gpu
@pytest.mark.skipif(not ampere(), reason="needs a GPU of compute capability 8.0")
@pytest.mark.parametrize(
    ("shape", "shifted"),
    [
        *SHAPES,
        ((240, 144, 12, 32), (60, 72, 12)),
        ((31, 144, 5, 32), None),
        ((672, 49, 3, 32), (112, 147, 7)),
        ((193, 49, 12, 32), None),
    ],
)
def test_kernels_equal_plain_jax_on_a_gpu(shape, shifted):
    check(shape, shifted)


@pytest.mark.gpu
@pytest.mark.skipif(not ampere(), reason="needs a GPU of compute capability 8.0")
def test_gradients_are_the_same_in_each_run_on_a_gpu():
    arrays = arguments(72, 144, 24, 32)
    runs = [value_and_gradients(fused((36, 36, 12)), *arrays) for _ in range(3)]
    for first, *others in zip(*runs, strict=True):
        for other in others:
            np.testing.assert_array_equal(first, other)
