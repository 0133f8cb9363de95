"""What holds for all kernels around the scan: 64-bit mode, shard_map, and compiling for GPUs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtmamba_jax.kernels.platform_check import compiled_for
from mtmamba_jax.kernels.ss2d.analysis.ptxas import GPUS
from mtmamba_jax.kernels.ss2d.analysis.topology import GPU_OPTIONS, find_gpus
from mtmamba_jax.models import ops
from mtmamba_jax.models.blocks import CTM, STM, MambaSettings
from mtmamba_jax.models.ops import dispatch
from tests.kernels.kernel_suite import kernels_in, tpu_kernels_in, value_and_gradients
from tests.kernels.ss2d_suite import relative_error

NORM = functools.partial(ops.layer_norm, batch_axis=1, dtype=jnp.bfloat16)
MAP, PARAMETER = (3, 2, 5, 7, 128), (3, 1, 1, 1, 128)
# Shapes of arguments; those with five axes of which the second has two entries have the batch.
CASES = {
    "layer_norm": (NORM, (MAP, PARAMETER, PARAMETER)),
    "gated layer_norm": (NORM, (MAP, PARAMETER, PARAMETER, MAP)),
    "blend": (ops.blend, (MAP, (3, 128), (3, 128), (2, *MAP[1:]))),
    "convolve_silu": (ops.convolve_silu, (MAP, (3, 3, 3, 128), (3, 128))),
}
KERNELS = 2


def arguments(shapes):
    rng = np.random.default_rng(0)
    return [
        jnp.asarray(rng.standard_normal(shape), jnp.bfloat16 if has_batch(shape) else jnp.float32)
        for shape in shapes
    ]


def has_batch(shape):
    return len(shape) == 5 and shape[1] == 2


@pytest.fixture(params=CASES)
def case(request):
    op, shapes = CASES[request.param]
    return op, arguments(shapes)


def test_they_lower_in_64_bit_mode(case):
    op, arrays = case
    with jax.enable_x64(True):
        assert kernels_in(op, *arrays, arguments=range(len(arrays))) == [KERNELS, 0]
        assert tpu_kernels_in(op, *arrays, arguments=range(len(arrays))) == KERNELS


def test_they_lower_inside_shard_map(case):
    op, arrays = case
    specs = tuple(P(None, "data") if has_batch(v.shape) else P() for v in arrays)
    split = jax.shard_map(op, in_specs=specs, out_specs=P(None, "data"))
    assert kernels_in(split, *arrays, gpus=2, arguments=range(len(arrays))) == [KERNELS, 0]
    assert tpu_kernels_in(split, *arrays, arguments=range(len(arrays))) == KERNELS


@pytest.mark.usefixtures("tpu_interpreter")
@pytest.mark.parametrize("block", [STM, CTM])
def test_a_block_of_tpu_kernels_equals_plain_jax(monkeypatch, block):
    monkeypatch.setattr(dispatch, "require_platform", lambda x, *_: x)
    module = block(2, 64, MambaSettings(), rngs=nnx.Rngs(0))
    graph, parameters = nnx.split(module)
    rng = np.random.default_rng(0)
    dy, x = (jnp.asarray(rng.standard_normal((2, 1, 2, 3, 64)), jnp.float32) for _ in range(2))

    def run(parameters, x):
        return nnx.merge(graph, parameters)(x)

    found = []
    for platform in ("tpu", "cpu"):
        with compiled_for(platform):
            text = str(jax.make_jaxpr(run)(parameters, x))
            assert ("convolve_forward" in text) == (platform == "tpu")
            found.append(jax.tree.leaves(value_and_gradients(run, dy, parameters, x)))
    for one, other in zip(*found, strict=True):
        assert relative_error(one, other) < 1e-5


@pytest.mark.parametrize("capability", ["8.0", "9.0"])
def test_they_compile_without_a_gpu(case, capability):
    pytest.importorskip("jax_cuda13_plugin", reason="the compiler for GPUs")
    op, arrays = case
    mesh = Mesh(find_gpus(GPUS[capability], capability), ("data",))
    run = functools.partial(value_and_gradients, op)
    with jax.set_mesh(mesh):
        shapes = [jax.ShapeDtypeStruct(v.shape, v.dtype) for v in arrays]
        shapes.insert(0, jax.eval_shape(op, *shapes))  # the gradient of the result
        lowered = jax.jit(run, in_shardings=NamedSharding(mesh, P())).lower(*shapes)
        text = lowered.compile(GPU_OPTIONS).as_text()
    assert text.count('custom_call_target="__gpu$xla.gpu.triton"') == KERNELS
