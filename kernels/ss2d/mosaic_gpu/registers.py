"""Sums, stores and loads of the states that threads hold in registers (`program.Threads`).

A thread multiplies and adds its own values; the tensor cores add over the four lanes of a group.
Their warp instruction multiplies [16 8] by [8 8] values, and lane 4 x group + part provides rows
group and group + 8, columns part and part + 4 of the left matrix. A group's values are thus part of
a row, and a right matrix of ones and zeros adds them: one instruction for four channels instead of
eight exchanges between lanes and eight additions.
"""

from collections.abc import Sequence
from typing import cast

import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector
from jaxlib.mlir.dialects import math as mlir_math
from jaxtyping import Array, Float

from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import (
    GROUP_CHANNELS,
    GROUP_THREADS,
    ROW_CHANNELS,
    Channels,
    States,
    Threads,
    inline_mgpu,
)

MULTIPLY = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
_FLOAT32 = jnp.dtype(jnp.float32)
HIGH = -(2**16)  # mask of the second of two bfloat16
READ = -(2**13)  # mask of the bits that the instruction reads: TF32, 11 significant bits


def sum_over_states(threads: Threads, left: States, right: States, *, exact: bool) -> Channels:
    """Sums left * right over the states.

    Unless `exact`, each thread's sum is truncated to 11 bits, three more than a bfloat16 has.
    """
    count = threads.channel_shape[-1]

    @inline_mgpu(
        arg_types=(threads.by_channel_and_state, threads.by_channel_and_state),
        return_type=plgpu.ShapeDtypeStruct(
            threads.channel_shape, _FLOAT32, layout=threads.by_channel
        ),
    )
    def run(_, left, right):
        products = _dot(left.registers.flat, right.registers.flat)
        sums = _sum_lanes([_extract(products, i) for i in range(count)], exact)
        return _to_array([_vector(sums)], threads.channel_shape, threads.by_channel)

    return run(left, right)


def sum_over_channels(
    threads: Threads, left: States, right: States
) -> Float[Array, "warps 16 groups"]:
    """Sums left * right over the channels of each thread."""
    shape, count = threads.state_shape[:-1], threads.channel_shape[-1]

    @inline_mgpu(
        arg_types=(threads.by_channel_and_state, threads.by_channel_and_state),
        return_type=plgpu.ShapeDtypeStruct(shape, _FLOAT32, layout=threads.by_group),
    )
    def run(_, left, right):
        sums = (
            _dot(*([_extract(v, i) for i in range(count)] for v in (x, y)))
            for x, y in zip(left.registers.flat, right.registers.flat, strict=True)
        )
        return _to_array([_vector([s]) for s in sums], shape, threads.by_group)

    return run(left, right)


def store_states(threads: Threads, ref, states: States) -> None:
    """Stores a block's states in memory of `Scan.stored_shape`, in its dtype."""
    states = states.astype(ref.dtype)

    @inline_mgpu(arg_types=(plgpu.RefType(), threads.by_channel_and_state))
    def run(_, ref, states):
        for i, v in enumerate(states.registers.flat):
            vector.store(v, ref, _stored_position(i, threads))

    run(ref, states)


def load_channels(threads: Threads, ref) -> Channels:
    """Loads a pixel's values per channel, as float32."""
    return _widen(plgpu.layout_cast(ref[...], threads.by_channel), threads.by_channel)


def load_states(threads: Threads, ref) -> States:
    """Loads a block's states from memory of `Scan.stored_shape`, as float32."""

    @inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=plgpu.ShapeDtypeStruct(
            threads.state_shape, ref.dtype, layout=threads.by_channel_and_state
        ),
    )
    def run(_, ref):
        kind = ir.MemRefType(ref.type)
        vectors = ir.VectorType.get((threads.channel_shape[-1],), kind.element_type)
        positions = (_stored_position(i, threads) for i in range(kind.shape[1]))
        found = [vector.load(vectors, ref, position) for position in positions]
        return _to_array(found, threads.state_shape, threads.by_channel_and_state)

    return _widen(run(ref), threads.by_channel_and_state)


def _widen(values: Array, layout) -> Array:
    """Returns float32 values, from bfloat16 in one instruction each: the compiler takes more."""
    if values.dtype == _FLOAT32:
        return values

    @inline_mgpu(
        arg_types=(layout,),
        return_type=plgpu.ShapeDtypeStruct(values.shape, _FLOAT32, layout=layout),
    )
    def run(_, values):
        i32 = ir.IntegerType.get_signless(32)
        found = []
        for v in values.registers.flat:
            count = ir.VectorType(v.type).shape[0]
            pairs = vector.bitcast(ir.VectorType.get((count // 2,), i32), v)
            pairs = [_extract(pairs, i) for i in range(count // 2)]
            parts = [
                f
                for v in pairs
                for f in (arith.shli(v, _integer(16)), arith.andi(v, _integer(HIGH)))
            ]
            found.append(_vector([arith.bitcast(ir.F32Type.get(), part) for part in parts]))
        return _to_array(found, values.shape, layout)

    return run(values)


def _stored_position(i: int, threads: Threads) -> list[ir.Value]:
    """Returns the row, state and position in the row of the thread's i-th state per channel."""
    index, thread = ir.IndexType.get(), mosaic.utils.thread_idx()
    count = threads.channel_shape[-1]
    channel = arith.muli(arith.divui(thread, _integer(GROUP_THREADS)), _integer(count))
    row, channel = (f(channel, _integer(ROW_CHANNELS)) for f in (arith.divui, arith.remui))
    group, channel = (f(channel, _integer(GROUP_CHANNELS)) for f in (arith.divui, arith.remui))
    sharer = arith.addi(
        arith.muli(group, _integer(GROUP_THREADS)), arith.remui(thread, _integer(GROUP_THREADS))
    )
    place = arith.addi(arith.muli(sharer, _integer(GROUP_CHANNELS)), channel)
    row, place = (arith.index_cast(index, v) for v in (row, place))
    return [row, arith.constant(index, i), place]


def _dot(left, right) -> ir.Value:
    """Returns the sum of products as a chain of fused multiply-adds, which Pallas does not form."""
    (x, y), *rest = zip(left, right, strict=True)
    total = arith.mulf(x, y)
    for x, y in rest:
        total = mlir_math.fma(x, y, total)
    return total


def _sum_lanes(values: list[ir.Value], exact: bool) -> Sequence[ir.Value]:
    """Sums each of up to four values over the four lanes of a group.

    The first two are in columns 0 to 3 of the left matrix and their sums in the even columns of the
    result, the other two in columns 4 to 7 and in the odd columns. A lane receives one column of
    each kind.
    """
    zero = arith.constant(ir.F32Type.get(), 0.0)
    count, values = len(values), values + [zero] * (4 - len(values))
    odd = arith.andi(arith.shrui(mosaic.utils.thread_idx(), _integer(2)), _integer(1))
    one = _integer(int(np.float32(1).view(np.int32)))
    right = [arith.muli(arith.xori(odd, _integer(1)), one), arith.muli(odd, one)]
    sums = [zero] * 4
    if exact:
        read = [arith.andi(_bits(v), _integer(READ)) for v in values]
        rest = [arith.subf(v, arith.bitcast(v.type, r)) for v, r in zip(values, read, strict=True)]
        sums = _mma([_bits(v) for v in rest], right, sums)
    sums = _mma([_bits(v) for v in values], right, sums)
    return [sums[i] for i in (0, 2, 1, 3)[:count]]


def _mma(left, right, sums) -> Sequence[ir.Value]:
    """Returns left @ right + sums, computed by the tensor cores."""
    f32 = ir.F32Type.get()
    names = iter(f"${i}" for i in range(14))
    operands = (f"{{{', '.join(next(names) for _ in range(n))}}}" for n in (4, 4, 2, 4))
    found = llvm.inline_asm(
        llvm.StructType.get_literal([f32] * 4),
        [*left, *right, *sums],
        f"{MULTIPLY} {', '.join(operands)};",
        ",".join(["=f"] * 4 + ["r"] * 6 + ["f"] * 4),
        has_side_effects=False,
    )
    return [llvm.extractvalue(f32, cast(ir.Value, found), [i]) for i in range(4)]


def _bits(v: ir.Value) -> ir.Value:
    return arith.bitcast(ir.IntegerType.get_signless(32), v)


def _integer(value: int) -> ir.Value:
    return arith.constant(ir.IntegerType.get_signless(32), value)


def _extract(v: ir.Value, i: int) -> ir.Value:
    at = ir.DenseI64ArrayAttr.get([i])
    return vector.extract(v, dynamic_position=[], static_position=at)


def _vector(values: Sequence[ir.Value]) -> ir.Value:
    return vector.from_elements(ir.VectorType.get((len(values),), ir.F32Type.get()), values)


def _to_array(registers: Sequence[ir.Value], shape, layout):
    """Returns the array of the values that a thread holds, in the layout's order."""
    layout = layout.to_mgpu()
    array = np.empty(layout.registers_shape(shape), dtype=object)
    array.flat[:] = registers
    return mosaic.FragmentedArray(_registers=array, _layout=layout, _is_signed=None)
