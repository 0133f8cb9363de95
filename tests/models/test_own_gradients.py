"""Hand-written gradients agree with JAX's gradients of the plain formulas."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from mtmamba_jax.models import ops, windows
from mtmamba_jax.models.heads import ExpandHeads
from mtmamba_jax.models.layers import DepthwiseConvSiLU
from mtmamba_jax.models.norm import TaskLayerNorm
from mtmamba_jax.models.ops import EPSILON
from mtmamba_jax.models.patches import depth_to_space
from mtmamba_jax.tasks.table import NYUDV2

# Rounding errors of 1e-16 and 6e-8, in sums of at most some thousand terms.
FLOAT64, FLOAT32 = 1e-12, 2e-6


def plain_layer_norm(x, scale, bias, axes):
    mean = x.mean(axes, keepdims=True)
    variance = jnp.square(x - mean).mean(axes, keepdims=True)
    shape = (x.shape[0],) + (1,) * (x.ndim - 2) + (x.shape[-1],)
    normal = (x - mean) / jnp.sqrt(variance + EPSILON)
    return normal * scale.reshape(shape) + bias.reshape(shape)


def plain_convolution(x, kernel, bias):
    def one(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[:, :, None],
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=x.shape[-1],
        )

    return jax.vmap(one)(x, kernel) + bias[:, None, None, None]


def plain_heads(module, x):
    """Expands, rearranges, normalises and projects: the heads as the paper describes them."""
    fine = depth_to_space(module.expand(x), module.factor)
    fine = plain_layer_norm(fine, module.norm.scale[...], module.norm.bias[...], (-1,))
    return {
        name: module.projections[name](feature)
        for name, feature in zip(module.names, fine, strict=True)
    }


def assert_same(module, plain, x, tolerance=FLOAT64):
    """Compares value and gradients of `module(x)` with `plain(module, x)`, for random weights."""
    graph, state = nnx.split(module)
    rng = np.random.default_rng(0)
    state = jax.tree.map(lambda v: jnp.asarray(rng.standard_normal(v.shape)), state)

    def both(function):
        def loss(state, x):
            outputs = jax.tree.leaves(function(nnx.merge(graph, state), x))
            return sum(jnp.sum(jnp.sin(v)) for v in outputs)

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(state, x)

    got, wanted = both(lambda module, x: module(x)), both(plain)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert one.dtype == jnp.float64
        largest = np.abs(other).max()
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("joint", [False, True])
def test_layer_norm_has_the_gradient_of_its_formula(joint):
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).standard_normal((3, 2, 4, 5, 8)))
        module = nnx.eval_shape(lambda: TaskLayerNorm(3, 8, joint=joint, dtype=jnp.float64))
        assert_same(
            module,
            lambda m, x: plain_layer_norm(x, m.scale[...], m.bias[...], (0, -1) if joint else -1),
            x,
        )


def test_depthwise_convolution_has_the_gradient_of_its_formula():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 2, 4, 5, 3)))
        module = nnx.eval_shape(
            lambda: DepthwiseConvSiLU(2, 3, dtype=jnp.float64, rngs=nnx.Rngs(0))
        )
        assert_same(
            module,
            lambda m, x: jax.nn.silu(plain_convolution(x, m.kernel[...], m.bias[...])),
            x,
            FLOAT32,  # it sums in float32
        )


def plain_attention(qkv, bias, allowed):
    query, key, value = jnp.moveaxis(qkv, 2, 0)
    scores = jnp.einsum("mqhc,mkhc->mhqk", query, key) / np.sqrt(qkv.shape[-1]) + bias
    scores += jnp.where(np.tile(allowed, (2, 1, 1)), 0.0, -100.0)[:, None]
    return jnp.einsum("mhqk,mkhc->mqhc", jax.nn.softmax(scores, -1), value)


@pytest.mark.parametrize("shifted", [False, True])
def test_attention_has_the_gradient_of_its_formula(shifted):
    height, width, window = 4, 8, 4  # two images of two windows
    rng = np.random.default_rng(0)
    qkv = rng.standard_normal((4, window**2, 3, 2, 5), np.float32)
    bias = rng.standard_normal((2, window**2, window**2), np.float32)
    allowed = np.ones((2, window**2, window**2), bool)
    if shifted:
        allowed = windows.shift_mask(height, width, window)
        assert not allowed.all()

    def both(function):
        return jax.value_and_grad(lambda *args: jnp.sum(jnp.sin(function(*args))), (0, 1))(
            qkv, bias
        )

    got = both(lambda *args: ops.attention(*args, (height, width, window) if shifted else None))
    wanted = both(lambda *args: plain_attention(*args, allowed))
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=FLOAT32, atol=FLOAT32 * np.abs(other).max())


def test_layer_norm_has_the_dtype_that_is_asked_for():
    x, scale, bias = jnp.ones((2, 32)), jnp.ones(32), jnp.zeros(32)
    for given, wanted in (("bfloat16", "float32"), ("float32", "bfloat16")):
        y = ops.layer_norm(x.astype(given), scale, bias, x.astype("float32"), dtype=wanted)
        assert y.dtype == wanted
    assert ops.layer_norm(x[0], scale, bias, dtype="float32").shape == (32,)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", FLOAT32), ("bfloat16", 2**-8)])
def test_gelu_has_the_precision_of_its_dtype(dtype, tolerance):
    x = jnp.linspace(-6, 6, 4001).astype(dtype)
    y, pull = jax.vjp(ops.gelu, x)
    wide = [float(v) for v in x]
    cdf = np.array([math.erfc(-v / math.sqrt(2)) / 2 for v in wide])
    density = np.exp(-np.square(wide) / 2) / math.sqrt(2 * math.pi)
    (gradient,) = pull(jnp.ones_like(x))
    for got, wanted in ((y, wide * cdf), (gradient, cdf + wide * density)):
        assert got.dtype == x.dtype
        np.testing.assert_allclose(got.astype(jnp.float32), wanted, rtol=tolerance, atol=1e-6)


def test_heads_have_the_gradient_of_their_formula():
    with jax.enable_x64(True):
        x = jnp.asarray(np.random.default_rng(1).standard_normal((len(NYUDV2), 2, 3, 4, 8)))
        module = nnx.eval_shape(lambda: ExpandHeads(NYUDV2, 8, dtype=jnp.float64, rngs=nnx.Rngs(0)))
        assert_same(module, plain_heads, x)


def norm_with_gate(x, scale, bias):
    return ops.layer_norm(x, scale, bias, jnp.cos(x), dtype=jnp.float32)


def blend_images(x, scale, bias):
    maps = jnp.moveaxis(x, 0, 1)
    return jnp.moveaxis(ops.blend(maps, scale, bias, jnp.cos(maps[:-1])), 1, 0)


@pytest.mark.parametrize(
    ("op", "shapes"),
    [
        (lambda x, *v: ops.layer_norm(x, *v, dtype=jnp.float32), ((4, 3, 8), (8,), (8,))),
        (
            lambda x, *v: ops.layer_norm(x, *v, jnp.cos(x), dtype=jnp.float32),
            ((4, 3, 8), (8,), (8,)),
        ),
        (blend_images, ((4, 3, 2, 2, 8), (3, 8), (3, 8))),
        (lambda x, kernel: ops.depthwise_convolve(x[None], kernel), ((4, 5, 6, 8), (1, 3, 3, 8))),
        (lambda x, *v: ops.convolve_silu(x[None], *v), ((4, 5, 6, 8), (1, 3, 3, 8), (1, 8))),
        (lambda qkv, bias: ops.attention(qkv, bias, None), ((4, 9, 3, 2, 8), (2, 9, 9))),
        (ops.inverse_deviation, ((4, 3, 2, 8), (8, 4, 8))),
        (lambda x, w: ops.wide_einsum("bc,cd->bd", x, w), ((4, 8), (8, 5))),
    ],
    ids=[
        "layer_norm",
        "gated layer_norm",
        "blend",
        "depthwise_convolve",
        "convolve_silu",
        "attention",
        "inverse_deviation",
        "wide_einsum",
    ],
)
def test_gradients_of_replicated_parameters_are_summed_inside_shard_map(op, shapes):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in shapes]
    mesh = jax.make_mesh((2,), ("data",), (AxisType.Auto,), devices=jax.devices()[:2])
    specs = (P("data"), *(P() for _ in arrays[1:]))
    batch = P(None, "data") if op(*arrays).shape[0] == 1 else P("data")
    sharded = jax.shard_map(op, mesh=mesh, in_specs=specs, out_specs=batch)

    def gradients(function):
        indices = tuple(range(len(arrays)))
        return jax.jit(jax.grad(lambda *v: jnp.sum(jnp.sin(function(*v))), indices))(*arrays)

    for got, wanted in zip(gradients(sharded), gradients(op), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)
