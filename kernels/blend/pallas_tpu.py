"""LayerNorm of tasks' maps and a shared one, then their blend, on TPUs (Eqs. 24 and 13).

    y_i = share_i normal_shared + (1 - share_i) normal_i        share_i = sigmoid(gate_i)

where normal is LayerNorm over the channels. One kernel forward and one backward: a program has the
same rows of all maps, so that the shared one is read once. Letters: t tasks, s = t + 1 maps, of
which the shared one is the last, m rows, w pixels of a row, c channels.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float

from mtmamba_jax.kernels.layer_norm import pallas_tpu as layer_norm
from mtmamba_jax.kernels.layer_norm.pallas_tpu import normalize, normalize_gradient
from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.platform_check import COMPILER_RESERVE, padded_size, vmem_capacity

ELEMENTS = 2**16
"""Elements of a program's block of a map, at most; at least one row of pixels."""


def supports(x: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether the kernels can be used for maps like x, [s ... w c]."""
    return layer_norm.supports(x) and _vmem_bytes(x.shape, x.dtype.itemsize) <= vmem_capacity()


def _vmem_bytes(shape: tuple[int, ...], itemsize: int) -> int:
    """Returns the VMEM of a backward program: double-buffered blocks, and values in float32."""
    s, *_, w, c = shape
    pixels = _rows(w, c) * padded_size(w, c)
    return 2 * (5 * s - 3) * pixels * itemsize + 16 * pixels * 4 + COMPILER_RESERVE


def _rows(w: int, c: int) -> int:
    return max(1, ELEMENTS // padded_size(w, c))


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def blend(
    x: Float[Array, "s m w c"],
    scale: Float[Array, "s c"],
    bias: Float[Array, "s c"],
    gate: Float[Array, "t m w c"],
    epsilon: float,
) -> Float[Array, "t m w c"]:
    """Returns y in x's dtype; the backward pass keeps the arguments alone."""
    return _forward(x, scale, bias, gate, epsilon)


blend.defvjp(
    lambda x, scale, bias, gate, epsilon: (
        _forward(x, scale, bias, gate, epsilon),
        (x, scale, bias, gate),
    ),
    lambda epsilon, kept, dy: _backward(*kept, dy, epsilon),
)


def _launch(body, name, semantics, arrays, outputs):
    """Runs a kernel on blocks of rows; arrays [s c], [2 s c] are whole."""
    _, m, w, c = arrays[0].shape
    rows = min(m, _rows(w, c))

    def block(v):
        if len(v.shape) == 4:
            return pl.BlockSpec((v.shape[0], rows, w, c), lambda i: (0, i, 0, 0))
        return pl.BlockSpec(v.shape, lambda i: (0,) * len(v.shape))

    return pl.pallas_call(
        body,
        name=name,
        out_shape=outputs,
        grid=(pl.cdiv(m, rows),),
        in_specs=[block(v) for v in arrays],
        out_specs=[block(v) for v in outputs],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=(semantics,),
            vmem_limit_bytes=_vmem_bytes(arrays[0].shape, arrays[0].dtype.itemsize),
        ),
    )(*arrays)


@functools.partial(jax.jit, static_argnums=4)  # traced once per shape
@jax.enable_x64(False)
def _forward(x, scale, bias, gate, epsilon):
    body = functools.partial(_blend_forward, epsilon)
    outputs = [shape_like(x, gate.shape, x.dtype)]
    return _launch(body, "blend_forward", "parallel", [x, gate, scale, bias], outputs)[0]


def _blend_forward(epsilon: float, x, gate, scale, bias, y):
    tasks = len(gate)

    def value(i):
        normal, _ = normalize(x[i].astype(jnp.float32), epsilon)
        return normal * scale[pl.ds(i, 1)] + bias[pl.ds(i, 1)]

    shared = value(tasks)
    for i in range(tasks):
        share = jax.nn.sigmoid(gate[i].astype(jnp.float32))
        y[i] = (share * shared + (1 - share) * value(i)).astype(y.dtype)


@functools.partial(jax.jit, static_argnums=5)
@jax.enable_x64(False)
def _backward(x, scale, bias, gate, dy, epsilon):
    """Returns the gradients of x, scale, bias and gate."""
    s, m, _, c = x.shape
    body = functools.partial(_blend_backward, epsilon, m)
    outputs = [shape_like(v, v.shape, v.dtype) for v in (x, gate)]
    outputs.append(shape_like(x, (2, s, c), jnp.float32))
    arrays = [x, gate, dy, scale, bias]
    dx, dgate, sums = _launch(body, "blend_backward", "arbitrary", arrays, outputs)
    return dx, sums[0], sums[1], dgate


def _blend_backward(epsilon: float, m: int, x, gate, dy, scale, bias, dx, dgate, sums):
    tasks = len(gate)
    # The last block may go past the maps, where it holds anything.
    first = pl.program_id(0) * x.shape[1]
    inside = first + lax.broadcasted_iota(jnp.int32, x.shape[1:], 0) < m

    @pl.when(pl.program_id(0) == 0)
    def _():
        sums[...] = jnp.zeros_like(sums)

    def value(i):
        normal, inverse = normalize(x[i].astype(jnp.float32), epsilon)
        return normal, inverse, normal * scale[pl.ds(i, 1)] + bias[pl.ds(i, 1)]

    def pull(i, normal, inverse, gradient):
        """Writes the gradient of a map's block, and adds those of its scale and bias."""
        found = normalize_gradient(gradient * scale[pl.ds(i, 1)], normal, inverse)
        dx[i] = found.astype(dx.dtype)
        for n, v in enumerate((gradient * normal, gradient)):
            sums[n, pl.ds(i, 1)] += jnp.sum(jnp.where(inside, v, 0.0), (0, 1))[None]

    shared_normal, shared_inverse, shared = value(tasks)
    dshared = jnp.zeros(shared.shape, jnp.float32)
    for i in range(tasks):
        normal, inverse, own = value(i)
        gradient, share = dy[i].astype(jnp.float32), jax.nn.sigmoid(gate[i].astype(jnp.float32))
        dgate[i] = (gradient * share * (1 - share) * (shared - own)).astype(dgate.dtype)
        dshared += gradient * share
        pull(i, normal, inverse, gradient * (1 - share))
    pull(tasks, shared_normal, shared_inverse, dshared)
