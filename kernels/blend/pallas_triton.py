"""LayerNorm of tasks' maps and a shared one, then their blend, on CUDA GPUs (Eqs. 24 and 13).

    y_i = share_i normal_shared + (1 - share_i) normal_i        share_i = sigmoid(gate_i)

where normal is LayerNorm over the channels. One Triton kernel forward and one backward: a program
takes the same rows of all maps, so that the shared one is read once. Letters: t tasks, s = t + 1
maps, of which the shared one is the last, m rows, c channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float

from mtmamba_jax.kernels.layer_norm import pallas_triton as layer_norm
from mtmamba_jax.kernels.layer_norm.pallas_triton import Block, normalize, normalize_gradient
from mtmamba_jax.kernels.manual_axes import shape_like

ELEMENTS = 1024
"""Upper limit of the elements of a map that a program holds at once; at least one row."""
PROGRAMS = 528
"""Programs of the backward pass, which add up the gradients of scale and bias of their rows."""
WIDE = 1024
"""Programs with more channels have twice the warps: else their sums do not fit in registers."""

MAX_TASKS = 8
"""More tasks would need more registers for the sums of the backward pass."""


def supports(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether programs that are traced here can use the kernels for maps like x."""
    return layer_norm.supports(x) and len(x) <= MAX_TASKS + 1 and x.shape[-1] <= 2 * WIDE


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blend(
    x: Float[Array, "s m c"],
    scale: Float[Array, "s c"],
    bias: Float[Array, "s c"],
    gate: Float[Array, "t m c"],
    epsilon: float,
) -> Float[Array, "t m c"]:
    """Returns y in x's dtype; the backward pass keeps the arguments alone."""
    return _forward(x, scale, bias, gate, epsilon)


blend.defvjp(
    lambda x, scale, bias, gate, epsilon: (
        _forward(x, scale, bias, gate, epsilon),
        (x, scale, bias, gate),
    ),
    lambda epsilon, kept, dy: _backward(*kept, dy, epsilon),
)


def _options(channels: int) -> triton.CompilerParams:
    return triton.CompilerParams(num_warps=8 if channels > WIDE else 4, num_stages=1)


@functools.partial(jax.jit, static_argnums=4)  # traced once per shape
@jax.enable_x64(False)
def _forward(x, scale, bias, gate, epsilon):
    t, m, c = gate.shape
    block = layer_norm.choose_block(m, c, ELEMENTS)
    parameters = pl.BlockSpec(scale.shape, lambda i: (0, 0))
    maps, tasks = (pl.BlockSpec((n, block.rows, c), lambda i: (0, i, 0)) for n in (t + 1, t))
    return pl.pallas_call(
        functools.partial(_blend_forward, block, epsilon),
        out_shape=shape_like(x, gate.shape, x.dtype),
        grid=(m // block.rows,),
        in_specs=[maps, parameters, parameters, tasks],
        out_specs=tasks,
        compiler_params=_options(c),
    )(x, scale, bias, gate)


def _blend_forward(block: Block, epsilon: float, x, scale, bias, gate, y):
    slices, (tasks, *_) = block.slices(), gate.shape

    def values(i):
        parts = [x[i, :, part].astype(jnp.float32) for part in slices]
        normals, *_ = normalize(block, epsilon, parts)
        pairs = zip(slices, normals, strict=True)
        return [v * scale[i, part][None] + bias[i, part][None] for part, v in pairs]

    shared = values(tasks)
    for i in range(tasks):
        for part, own, other in zip(slices, values(i), shared, strict=True):
            share = jax.nn.sigmoid(gate[i, :, part].astype(jnp.float32))
            y[i, :, part] = (share * other + (1 - share) * own).astype(y.dtype)


@functools.partial(jax.jit, static_argnums=5)
@jax.enable_x64(False)
def _backward(x, scale, bias, gate, dy, epsilon):
    """Returns the gradients of x, scale, bias and gate."""
    t, m, c = gate.shape
    block = layer_norm.choose_block(m, c, ELEMENTS)
    blocks = m // block.rows
    each = pl.cdiv(blocks, PROGRAMS)
    programs = pl.cdiv(blocks, each)
    parameters = pl.BlockSpec(scale.shape, lambda i: (0, 0))
    maps, tasks = (pl.BlockSpec((n, m, c), lambda i: (0, 0, 0)) for n in (t + 1, t))
    partial = pl.BlockSpec((None, t + 1, c), lambda i: (i, 0, 0))
    sums = shape_like(x, (programs, t + 1, c), jnp.float32)
    dscale, dbias, dx, dgate = pl.pallas_call(
        functools.partial(_blend_backward, block, blocks, each, epsilon),
        out_shape=[sums, sums, *(shape_like(v, v.shape, v.dtype) for v in (x, gate))],
        grid=(programs,),
        in_specs=[maps, parameters, parameters, tasks, tasks],
        out_specs=[partial, partial, maps, tasks],
        compiler_params=_options(c),
    )(x, scale, bias, gate, dy)
    return dx, jnp.sum(dscale, 0), jnp.sum(dbias, 0), dgate


def _blend_backward(block: Block, blocks: int, each: int, epsilon: float, *refs):
    x, scale, bias, gate, dy, dscale, dbias, dx, dgate = refs
    slices, (tasks, *_) = block.slices(), gate.shape
    first = pl.program_id(0) * each

    def add_rows(step, sums):
        rows = pl.ds((first + step) * block.rows, block.rows)

        def read(ref, i):
            return [ref[i, rows, part].astype(jnp.float32) for part in slices]

        def normal(i):
            normals, _, inverse = normalize(block, epsilon, read(x, i))
            pairs = zip(slices, normals, strict=True)
            values = [v * scale[i, part][None] + bias[i, part][None] for part, v in pairs]
            return normals, inverse[:, None], values

        def pull(i, normals, inverse, gradients):
            """Writes the gradient of a map's rows; returns the terms of scale's and bias's."""
            scaled = [v * scale[i, part][None] for part, v in zip(slices, gradients, strict=True)]
            found = normalize_gradient(block, scaled, normals, inverse)
            for part, v in zip(slices, found, strict=True):
                dx[i, rows, part] = v.astype(dx.dtype)
            return [v * n for v, n in zip(gradients, normals, strict=True)], gradients

        shared_normal, shared_inverse, shared = normal(tasks)
        dshared, terms = [jnp.zeros_like(v) for v in shared], []
        for i in range(tasks):
            own_normal, inverse, own = normal(i)
            gradients = read(dy, i)
            shares = [jax.nn.sigmoid(v) for v in read(gate, i)]
            for p, part in enumerate(slices):
                slope = shares[p] * (1 - shares[p]) * (shared[p] - own[p])
                dgate[i, rows, part] = (gradients[p] * slope).astype(dgate.dtype)
                dshared[p] += gradients[p] * shares[p]
            gradients = [v * (1 - share) for v, share in zip(gradients, shares, strict=True)]
            terms.append(pull(i, own_normal, inverse, gradients))
        terms.append(pull(tasks, shared_normal, shared_inverse, dshared))
        return jax.tree.map(jnp.add, sums, terms)

    zeros = [jnp.zeros((block.rows, block.width), jnp.float32)] * block.parts
    count = jnp.minimum(each, blocks - first)
    found = lax.fori_loop(0, count, add_rows, [(zeros, zeros)] * (tasks + 1))
    for i, pair in enumerate(found):
        for out, sums in zip((dscale, dbias), pair, strict=True):
            for part, v in zip(slices, sums, strict=True):
                out[i, part] = jnp.sum(v, 0)
