"""LayerNorm of tasks' maps and a shared one, then their blend, on CUDA GPUs (Eqs. 24 and 13).

    y_i = share_i normal_shared + (1 - share_i) normal_i        share_i = sigmoid(gate_i)

where normal is LayerNorm over the channels. One Triton kernel forward and one backward. A program
of the first takes the same rows of all maps, so that it reads the shared one once; a program of the
second computes the gradients of one map. Letters: t tasks, s = t + 1 maps, of which the shared one
is the last, m rows, c channels.
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

WARP_CHANNELS = 384
"""Channels of a row per warp in the forward pass. With fewer, most of the time would go into adding
over warps."""
PROGRAMS = 844
"""Programs of the backward pass per map, which add up the gradients of scale and bias of their
rows."""


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


def _divide(rows: int, channels: int) -> tuple[Block, triton.CompilerParams]:
    """Returns the block that a program holds of each map at once, and its number of warps."""
    warps = 1 << (max(1, channels // WARP_CHANNELS).bit_length() - 1)
    block = layer_norm.choose_block(rows, channels, warps * WARP_CHANNELS)
    return block, triton.CompilerParams(num_warps=warps, num_stages=1)


@functools.partial(jax.jit, static_argnums=4)  # traced once per shape
@jax.enable_x64(False)
def _forward(x, scale, bias, gate, epsilon):
    t, m, c = gate.shape
    block, options = _divide(m, c)
    parameters = pl.BlockSpec(scale.shape, lambda i: (0, 0))
    maps, tasks = (pl.BlockSpec((n, block.rows, c), lambda i: (0, i, 0)) for n in (t + 1, t))
    return pl.pallas_call(
        functools.partial(_blend_forward, block, epsilon),
        out_shape=shape_like(x, gate.shape, x.dtype),
        grid=(m // block.rows,),
        in_specs=[maps, parameters, parameters, tasks],
        out_specs=tasks,
        compiler_params=options,
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
    block = layer_norm.choose_block(m, c)
    blocks = m // block.rows
    each = pl.cdiv(blocks, PROGRAMS)
    programs = pl.cdiv(blocks, each)
    whole = [pl.BlockSpec(v.shape, lambda i, j, n=v.ndim: (0,) * n) for v in (x, scale, gate)]
    partial = pl.BlockSpec((None, None, 2, c), lambda i, j: (t - i, j, 0, 0))
    sums = shape_like(x, (t + 1, programs, 2, c), jnp.float32)
    sums, dx, dgate = pl.pallas_call(
        functools.partial(_blend_backward, block, blocks, each, epsilon),
        out_shape=[sums, *(shape_like(v, v.shape, v.dtype) for v in (x, gate))],
        grid=(t + 1, programs),
        in_specs=[whole[0], whole[1], whole[1], whole[2], whole[2]],
        out_specs=[partial, whole[0], whole[2]],
        compiler_params=triton.CompilerParams(num_warps=layer_norm.WARPS, num_stages=1),
    )(x, scale, bias, gate, dy)
    sums = jnp.sum(sums, 1)
    return dx, sums[:, 0], sums[:, 1], dgate


def _blend_backward(block: Block, blocks: int, each: int, epsilon: float, *refs):
    x, scale, bias, gate, dy, totals, dx, dgate = refs
    slices, (tasks, *_) = block.slices(), gate.shape
    # The shared map's programs have most to do, so they start first.
    i, first = tasks - pl.program_id(0), pl.program_id(1) * each

    def read(ref, index, rows):
        return [ref[index, rows, part].astype(jnp.float32) for part in slices]

    def normal(index, rows):
        """Returns a map's normal values, their inverse deviations and the LayerNorm."""
        normals, _, inverse = normalize(block, epsilon, read(x, index, rows))
        pairs = zip(slices, normals, strict=True)
        values = [v * scale[index, part][None] + bias[index, part][None] for part, v in pairs]
        return normals, inverse[:, None], values

    def pull_own(rows):
        """Writes the gradient of a task's gate; returns normal values and LayerNorm's gradient."""
        *_, shared = normal(tasks, rows)
        normals, inverse, own = normal(i, rows)
        gradients, shares = read(dy, i, rows), map(jax.nn.sigmoid, read(gate, i, rows))
        found = []
        for part, g, share, v, w in zip(slices, gradients, shares, own, shared, strict=True):
            dgate[i, rows, part] = (g * share * (1 - share) * (w - v)).astype(dgate.dtype)
            found.append(g * (1 - share))
        return normals, inverse, found

    def pull_shared(rows):
        normals, inverse, _ = normal(tasks, rows)
        terms = (
            [
                g * jax.nn.sigmoid(v)
                for g, v in zip(read(dy, k, rows), read(gate, k, rows), strict=True)
            ]
            for k in range(tasks)
        )
        return normals, inverse, [sum(parts) for parts in zip(*terms, strict=True)]

    def add_up(pull):
        def add_rows(step, sums):
            rows = pl.ds((first + step) * block.rows, block.rows)
            normals, inverse, gradients = pull(rows)
            scaled = [v * scale[i, part][None] for part, v in zip(slices, gradients, strict=True)]
            found = normalize_gradient(block, scaled, normals, inverse)
            for part, v in zip(slices, found, strict=True):
                dx[i, rows, part] = v.astype(dx.dtype)
            terms = [v * n for v, n in zip(gradients, normals, strict=True)]
            return jax.tree.map(jnp.add, sums, (terms, gradients))

        zeros = [jnp.zeros((block.rows, block.width), jnp.float32)] * block.parts
        count = jnp.minimum(each, blocks - first)
        found = lax.fori_loop(0, count, add_rows, (zeros, zeros))
        for row, sums in enumerate(found):
            for part, v in zip(slices, sums, strict=True):
                totals[row, part] = jnp.sum(v, 0)

    pl.when(i < tasks)(lambda: add_up(pull_own))
    pl.when(i == tasks)(lambda: add_up(pull_shared))
