"""Softmax attention within windows on CUDA GPUs, in Triton kernels.

    scores = query key^T / sqrt(c) + bias + mask        out = softmax(scores) value

The weights stay in registers: the backward pass computes them again from one number per query.

    dvalue = weights^T dout                              dweights = dout value^T
    dscores = weights (dweights - mean)                  mean = sum_c out dout
    dquery = dscores key / sqrt(c)                       dkey = dscores^T query / sqrt(c)

A program takes some queries or keys of one head and goes through several windows, so that it reads
its part of the bias once. Sizes are powers of two: past a window's end, tokens are zeros, and the
bias of the columns is -inf, so that their weights are exactly 0.

Letters: m windows, l tokens of a window, c channels of a head, g groups of windows, n windows of an
image.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jaxtyping import Array, Float, Int

from mtmamba_jax.kernels import triton_instructions as instructions
from mtmamba_jax.kernels.manual_axes import shape_like
from mtmamba_jax.kernels.platform_check import has_fixed_size, triton_refusal

LOG2E = math.log2(math.e)
MASKED = -100.0
"""Added to scores between regions, not -inf: released weights were trained with this value."""
MAX_LENGTH = 144
"""Tokens of a window of 12 x 12 pixels: the bias of larger ones does not fit in registers."""
WIDTHS = (16, 32)
"""Channels of a head: more would need more shared memory than some GPUs have."""


class Part(NamedTuple):
    """Neighbouring tokens of a window.

    Attributes:
      start: Position of the first token.
      size: Number of tokens, a power of two.
      length: Tokens of the window, or None if the whole part lies inside it.
    """

    start: int | Array
    size: int
    length: int | None

    def inside(self, shape: tuple[int, ...], axis: int) -> Array | None:
        """Returns which elements of an array are within the window, or None if all are."""
        if self.length is None:
            return None
        return lax.broadcasted_iota(jnp.int32, shape, axis) < self.length - self.start


class Launch(NamedTuple):
    """How a kernel divides its work.

    Attributes:
      rows: Maximum number of queries or keys of a program.
      columns: Most keys or queries that they meet at a time.
      warps, stages: Options of Triton.
      programs: Number of programs above which each takes several windows.
    """

    rows: int
    columns: int
    warps: int
    stages: int
    programs: int

    def groups(self, qkv: Array) -> int:
        """Returns how many programs share the windows of a head."""
        m, length, _, heads, _ = qkv.shape
        return min(m, pl.cdiv(self.programs, heads * pl.cdiv(length, self.rows)))

    def choose_rows(self, length: int, program: int | Array) -> Part:
        """Returns the rows of a program."""
        size = min(self.rows, _next_size(length))
        return Part(program * size, size, length if length % size else None)

    def parts(self, length: int) -> list[Part]:
        """Returns all columns in parts."""
        found = []
        for start in range(0, length, self.columns):
            rest = min(self.columns, length - start)
            size = _next_size(rest)
            found.append(Part(start, size, length if rest < size else None))
        return found


def _next_size(tokens: int) -> int:
    """Returns the number of tokens that a kernel computes with: a power of two, at least 16."""
    return max(16, pl.next_power_of_2(tokens))


# Timed on an H200 with the windows of Swin-Large: (32, 32, 2, 2, 2048) takes up to 10 % longer,
# (64, 32, 4, 2, 1024) up to 40 %.
FORWARD = QUERIES = KEYS = Launch(16, 32, 1, 2, 4096)


def supports(qkv: Array | jax.ShapeDtypeStruct) -> bool:
    """Returns whether programs that are traced here can use the kernels for windows like these."""
    _, length, _, _, width = qkv.shape
    sizes = has_fixed_size(qkv) and length <= MAX_LENGTH and width in WIDTHS
    return sizes and qkv.dtype == jnp.bfloat16 and triton_refusal() is None


@jax.custom_vjp
def attention(
    qkv: Float[Array, "m l 3 heads c"],
    bias: Float[Array, "heads l l"],
    regions: Int[Array, "n l"] | None = None,
) -> Float[Array, "m l heads c"]:
    """Returns attention; the backward pass keeps the arguments, the result and a number per query.

    Args:
      qkv: Queries (not yet scaled), keys and values of whole images.
      bias: Added to the scores, float32.
      regions: Tokens with different numbers are masked from each other.
    """
    return _forward(qkv, bias, regions)[0]


def _keep(qkv, bias, regions=None):
    out, log_sum = _forward(qkv, bias, regions)
    return out, (qkv, bias, regions, out, log_sum)


attention.defvjp(_keep, lambda kept, dout: (*_backward(*kept, dout), None))


@jax.jit  # traced once per shape
@jax.enable_x64(False)
def _forward(qkv, bias, regions):
    """Returns the result, and log2 of each query's sum of exp(scores) [m heads l]."""
    m, length, _, heads, c = qkv.shape
    out = shape_like(qkv, (m, length, heads, c), qkv.dtype)
    log_sum = shape_like(qkv, (m, heads, length), jnp.float32)
    kinds = "qkv bias -> out number"
    return _launch(_attention_forward, FORWARD, kinds, [qkv, bias], regions, [out, log_sum])


def _attention_forward(launch: Launch, length: int, groups: int, qkv, bias, *refs):
    *regions, out, log_sum = refs
    rows, tiles = _with_bias(launch, length, bias)

    def attend(w, _):
        query, score = _load(qkv, w, rows, 0), _scoring(regions, w, rows)
        scores = [score(query, _load(qkv, w, part, 1), part, b) for part, b in tiles]
        largest = functools.reduce(jnp.maximum, [jnp.max(v, 1) for v in scores])
        weights = [instructions.exp2(v - largest[:, None]) for v in scores]
        sums = functools.reduce(jnp.add, [jnp.sum(v, 1) for v in weights])
        products = map(_multiply, weights, [_load(qkv, w, part, 2) for part, _ in tiles])
        _store(sum(products) / sums[:, None], out, w, rows)
        _store(largest + jnp.log2(sums), log_sum, w, rows)

    _visit_windows(groups, qkv.shape[0], attend)


@jax.jit
@jax.enable_x64(False)
def _backward(qkv, bias, regions, out, log_sum, dout):
    """Returns the gradients of qkv and bias."""
    dqkv, mean = (shape_like(v, v.shape, v.dtype) for v in (qkv, log_sum))
    partial = shape_like(qkv, (QUERIES.groups(qkv), *bias.shape), jnp.float32)
    kinds = "qkv bias out number out -> qkv number partial"
    arrays, outputs = [qkv, bias, dout, log_sum, out], [dqkv, mean, partial]
    dquery, mean, partial = _launch(_attention_queries, QUERIES, kinds, arrays, regions, outputs)
    kinds = "qkv bias out number number qkv -> qkv"
    arrays = [qkv, bias.mT, dout, log_sum, mean, dquery]
    (found,) = _launch(_attention_keys, KEYS, kinds, arrays, regions, [dqkv], aliases={5: 0})
    return found, jnp.sum(partial, 0)


def _attention_queries(
    launch: Launch, length: int, groups: int, qkv, bias, dout, log_sum, out, *refs
):
    """Writes the queries' part of dqkv, the mean of dweights, and dbias of a group of windows."""
    *regions, dqkv, mean, dbias = refs
    rows, tiles = _with_bias(launch, length, bias)

    def add(w, sums):
        query, gradient = _load(qkv, w, rows, 0), _load(dout, w, rows)
        score = _scoring(regions, w, rows)
        products = gradient.astype(jnp.float32) * _load(out, w, rows).astype(jnp.float32)
        average, log_sums = jnp.sum(products, 1), _load(log_sum, w, rows)
        _store(average, mean, w, rows)
        found: list[Array] = []
        dquery: Any = 0.0
        for (part, b), before in zip(tiles, sums, strict=True):
            key, value = _load(qkv, w, part, 1), _load(qkv, w, part, 2)
            weights = instructions.exp2(score(query, key, part, b) - log_sums[:, None])
            dscores = weights * (_multiply(gradient, value.T) - average[:, None])
            dquery += _multiply(dscores, key)
            found.append(before + dscores)
        _store(dquery * _scale(query), dqkv, w, rows, 0)
        return found

    zeros = [jnp.zeros_like(b) for _, b in tiles]
    found = _visit_windows(groups, qkv.shape[0], add, zeros)
    for (part, _), v in zip(tiles, found, strict=True):
        _store(v, dbias, rows, part)


def _attention_keys(
    launch: Launch, length: int, groups: int, qkv, bias, dout, log_sum, mean, _, *refs
):
    """Writes the keys' and values' parts of dqkv; the bias and all weights are transposed."""
    *regions, dqkv = refs
    rows, tiles = _with_bias(launch, length, bias)

    def write(w, _):
        key, value = _load(qkv, w, rows, 1), _load(qkv, w, rows, 2)
        score = _scoring(regions, w, rows)
        dkey: Any = 0.0
        dvalue: Any = 0.0
        for part, b in tiles:
            query, gradient = _load(qkv, w, part, 0), _load(dout, w, part)
            weights = instructions.exp2(score(key, query, part, b) - _load(log_sum, w, part)[None])
            dscores = weights * (_multiply(value, gradient.T) - _load(mean, w, part)[None])
            dvalue += _multiply(weights, gradient)
            dkey += _multiply(dscores, query)
        _store(dkey * _scale(key), dqkv, w, rows, 1)
        _store(dvalue, dqkv, w, rows, 2)

    _visit_windows(groups, qkv.shape[0], write)


def _multiply(a, b):
    """Returns the product of matrices in float32; the first is rounded to the second's dtype."""
    return triton.dot(a.astype(b.dtype), b)


def _scale(query) -> float:
    return query.shape[-1] ** -0.5


def _scoring(regions, window, rows) -> Callable:
    """Returns a function that computes scores of a window's rows, times log2(e)."""
    if regions:
        (ref,) = regions
        place = lax.rem(window, ref.shape[0])
        near = _load(ref, place, rows)[:, None]

    def score(a, b, columns, bias):
        scores = _multiply(a, b.T) * (_scale(a) * LOG2E) + bias
        if not regions:
            return scores
        return jnp.where(near == _load(ref, place, columns)[None], scores, scores + MASKED * LOG2E)

    return score


def _with_bias(launch: Launch, length: int, bias) -> tuple[Part, list[tuple[Part, Array]]]:
    """Returns the rows of this program, and all columns in parts with their bias."""
    rows = launch.choose_rows(length, pl.program_id(0))

    def read(part):
        tile = _load(bias, rows, part) * LOG2E
        inside = part.inside(tile.shape, 1)
        return tile if inside is None else jnp.where(inside, tile, -jnp.inf)

    return rows, [(part, read(part)) for part in launch.parts(length)]


def _load(ref, *index) -> Array:
    """Returns elements of a block; those past the window's end are zeros."""
    view, inside = _view(ref, index)
    other = None if inside is None else jnp.zeros(view.shape, ref.dtype)
    return triton.load(view, mask=inside, other=other)


def _store(value: Array, ref, *index) -> None:
    """Writes elements of a block, except those past the window's end."""
    view, inside = _view(ref, index)
    triton.store(view, value.astype(ref.dtype), mask=inside)


def _view(ref, index) -> tuple:
    """Returns a reference to elements of a block, and which are within the window: None for all.

    The index may have parts of windows; they are the first axes of the result.
    """

    def place(v):
        # Pallas's interpreter takes no Python numbers here.
        return pl.ds(v.start, v.size) if isinstance(v, Part) else jnp.int32(v)

    view = ref.at[tuple(map(place, index))]
    parts = [v for v in index if isinstance(v, Part)]
    masks = [part.inside(view.shape, axis) for axis, part in enumerate(parts)]
    masks = [mask for mask in masks if mask is not None]
    return view, functools.reduce(jnp.logical_and, masks) if masks else None


def _visit_windows(groups: int, windows: int, visit: Callable, carry=None):
    """Calls `visit(window, carry)` with the windows of this program's group: every `groups`-th."""
    first = pl.program_id(2)
    count = pl.cdiv(windows, groups)
    if windows % groups:
        count -= (first >= windows % groups).astype(jnp.int32)
    return lax.fori_loop(0, count, lambda i, carry: visit(first + i * groups, carry), carry)


def _launch(body: Callable, launch: Launch, kinds: str, arrays, regions, outputs, aliases=None):
    """Runs a kernel on arrays, of which the first is qkv; `kinds` names their blocks of a head."""
    m, length, _, heads, c = arrays[0].shape
    rows = launch.choose_rows(length, 0).size
    groups, blocks = launch.groups(arrays[0]), pl.cdiv(length, rows)
    size = blocks * rows  # may go past the arrays' end, which the kernels do not
    specs = {
        "qkv": pl.BlockSpec((m, size, 3, None, c), lambda i, h, g: (0, 0, 0, h, 0)),
        "out": pl.BlockSpec((m, size, None, c), lambda i, h, g: (0, 0, h, 0)),
        "number": pl.BlockSpec((m, None, size), lambda i, h, g: (0, h, 0)),
        "bias": pl.BlockSpec((None, size, size), lambda i, h, g: (h, 0, 0)),
        "partial": pl.BlockSpec((None, None, size, size), lambda i, h, g: (g, h, 0, 0)),
    }
    read, written = ([specs[name] for name in part.split()] for part in kinds.split("->"))
    if regions is not None:
        arrays = [*arrays, regions]
        read.append(pl.BlockSpec((len(regions), size), lambda i, h, g: (0, 0)))
    return pl.pallas_call(
        functools.partial(body, launch, length, groups),
        out_shape=outputs,
        grid=(blocks, heads, groups),
        in_specs=read,
        out_specs=written,
        input_output_aliases=aliases or {},
        compiler_params=triton.CompilerParams(num_warps=launch.warps, num_stages=launch.stages),
    )(*arrays)
