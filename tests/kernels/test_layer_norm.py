"""LayerNorm's kernels: results interpreted and on a GPU, on several devices, and lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.devices.sharding import create_mesh
from mtmamba_jax.kernels.layer_norm import pallas_triton
from mtmamba_jax.models import ops
from tests.kernels.ss2d_suite import an_abstract_gpu, pretend_gpus, relative_error

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


def value_and_gradients(norm, dy, *arrays):
    def run(*arrays):
        y, pull = jax.vjp(norm, *arrays)
        return y, *pull(dy)

    return jax.jit(run)(*arrays)


def fused(x, *others):
    return ops.layer_norm(x, *others, batch_axis=1, dtype=x.dtype)


def plain(x, *others):
    return ops._plain_layer_norm((-1,), x.dtype, x, *others)


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


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernels on this machine's default device."""
    interpret = functools.partial(pallas_triton.pl.pallas_call, interpret=True)
    monkeypatch.setattr(pallas_triton.pl, "pallas_call", interpret)
    monkeypatch.setattr(jax.lax, "platform_dependent", lambda *v, cuda, default: cuda(*v))
    pretend_gpus(monkeypatch, 8.0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_interpreted_kernels_equal_plain_jax(interpreted, monkeypatch, shape, groups, dtype, gated):
    monkeypatch.setattr(pallas_triton, "PROGRAMS", 3)
    check(shape, groups, dtype, gated=gated)


@pytest.mark.parametrize("gated", [False, True])
def test_a_sharded_batch_equals_one_device(interpreted, monkeypatch, gated):
    # Pallas does not interpret kernels inside shard_map, so plain JAX takes their place.
    def layer_norm(x, scale, bias, gate, epsilon, dtype):
        return plain(x, scale[:, None], bias[:, None], gate)

    monkeypatch.setattr(pallas_triton, "layer_norm", layer_norm)
    arrays = arguments((2, 4, 3, 4, 64), 2, "float32", gated=gated)
    wanted = value_and_gradients(plain, *arrays)
    with jax.set_mesh(create_mesh(4, data=2, fsdp=2, devices=jax.devices()[:4])):
        got = value_and_gradients(fused, *arrays)
    for one, other in zip(got, wanted, strict=True):
        assert relative_error(one, other) < TOLERANCES["float32"]


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
    _, x, scale, bias = arguments(shape, groups, dtype)

    def loss(*arrays):
        y = ops.layer_norm(*arrays, axes=axes, batch_axis=1, dtype=jnp.dtype(dtype))
        return jnp.sum(jnp.sin(y.astype(jnp.float32)))

    with an_abstract_gpu():
        traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(x, scale, bias)
        found = [
            traced.lower(lowering_platforms=(name,)).as_text().count("xla.gpu.triton")
            for name in ("cuda", "cpu")
        ]
    assert found == [2 if fused else 0, 0]


@pytest.mark.gpu
@pytest.mark.skipif(jax.default_backend() != "gpu", reason="needs a GPU of compute capability 8.0")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("shape", "groups"), [*SHAPES, ((4, 8, 28, 36, 768), 4)])
@pytest.mark.parametrize("gated", [False, True])
def test_kernels_equal_plain_jax_on_a_gpu(shape, groups, dtype, gated):
    check(shape, groups, dtype, gated=gated)
