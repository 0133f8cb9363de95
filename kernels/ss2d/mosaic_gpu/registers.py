"""What a thread does with the states it holds (`program.Threads`): sums of products, keeping them.

A thread multiplies and adds its own numbers. Over the four lanes of a group the tensor cores add:
their instruction of a warp multiplies [16 8] by [8 8] numbers, and lane 4 group + part gives rows
group and group + 8, columns part and part + 4 of the left matrix. So the group's numbers are a row
as they are, a right matrix of ones and zeros adds them, and one instruction serves four channels in
place of eight exchanges between lanes and eight additions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.mosaic import gpu as mosaic
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith, llvm, vector
from jaxlib.mlir.dialects import math as mlir_math

from mtmamba_jax.kernels.ss2d.mosaic_gpu.program import ROW, SHARERS, WIDE

Array = jax.Array

MULTIPLY = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
READ = -(2**13)  # mask of the bits of a float32 that the instruction reads: TF32, 11 digits


def over_states(threads, left: Array, right: Array, *, exact: bool) -> Array:
    """Sums left * right over the states, by channel.

    Args:
      threads: `program.Threads`.
      left: by channel and state.
      right: by channel and state.
      exact: to float32; otherwise each thread's sum is cut to 11 binary digits, three more than a
        bfloat16 result shows.
    """
    own = threads.row[-1]

    @plgpu.inline_mgpu(
        arg_types=(threads.block, threads.block),
        return_type=plgpu.ShapeDtypeStruct(threads.row, jnp.float32, layout=threads.by_channel),
    )
    def run(_, left, right):
        products = _chain(left.registers.flat, right.registers.flat)
        sums = _add_lanes([_at(products, i) for i in range(own)], exact)
        return _fragments([_vector(sums)], threads.row, threads.by_channel)

    return run(left, right)


def over_own(threads, left: Array, right: Array) -> Array:
    """Sums left * right over the channels of a thread, by state: [warps 16 groups]."""
    shape, own = threads.shape[:-1], threads.row[-1]

    @plgpu.inline_mgpu(
        arg_types=(threads.block, threads.block),
        return_type=plgpu.ShapeDtypeStruct(shape, jnp.float32, layout=threads.by_group),
    )
    def run(_, left, right):
        sums = (
            _chain(*([_at(v, i) for i in range(own)] for v in (x, y)))
            for x, y in zip(left.registers.flat, right.registers.flat, strict=True)
        )
        return _fragments([_vector([s]) for s in sums], shape, threads.by_group)

    return run(left, right)


def keep(threads, ref, states: Array) -> None:
    """Stores a block's states in shared memory `Scan.stored`, in its dtype."""
    states = states.astype(ref.dtype)

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), threads.block))
    def run(_, ref, states):
        for i, v in enumerate(states.registers.flat):
            vector.store(v, ref, _place(i, threads))

    run(ref, states)


def kept(threads, ref) -> Array:
    """A block's states from shared memory `Scan.stored`, float32."""

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(),),
        return_type=plgpu.ShapeDtypeStruct(threads.shape, ref.dtype, layout=threads.block),
    )
    def run(_, ref):
        kind = ir.MemRefType(ref.type)
        vectors = ir.VectorType.get((threads.row[-1],), kind.element_type)
        found = [vector.load(vectors, ref, _place(i, threads)) for i in range(kind.shape[1])]
        return _fragments(found, threads.shape, threads.block)

    return run(ref).astype(jnp.float32)


def _place(i: int, threads) -> list[ir.Value]:
    """Of the i-th state of the calling thread's channels: row, state, place in the row."""
    index, thread = ir.IndexType.get(), mosaic.utils.thread_idx()
    channel = arith.muli(arith.divui(thread, _integer(SHARERS)), _integer(threads.row[-1]))
    row, channel = (f(channel, _integer(ROW)) for f in (arith.divui, arith.remui))
    group, channel = (f(channel, _integer(WIDE)) for f in (arith.divui, arith.remui))
    sharer = arith.addi(
        arith.muli(group, _integer(SHARERS)), arith.remui(thread, _integer(SHARERS))
    )
    place = arith.addi(arith.muli(sharer, _integer(WIDE)), channel)
    row, place = (arith.index_cast(index, v) for v in (row, place))
    return [row, arith.constant(index, i), place]


def _chain(left, right) -> ir.Value:
    """The sum of products, each added to the one before: Pallas' own sums do not fuse them."""
    total = None
    for x, y in zip(left, right, strict=True):
        total = arith.mulf(x, y) if total is None else mlir_math.fma(x, y, total)
    return total


def _add_lanes(values: list[ir.Value], exact: bool) -> list[ir.Value]:
    """Sums each of up to four values over the four lanes of a group.

    The first two are in columns 0 to 3 of the left matrix and are added in the even columns of the
    result, the other two in columns 4 to 7 and in the odd ones. A lane gets one of either.
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
        sums = _multiply([_bits(v) for v in rest], right, sums)
    sums = _multiply([_bits(v) for v in values], right, sums)
    return [sums[i] for i in (0, 2, 1, 3)[:count]]


def _multiply(left, right, sums) -> list[ir.Value]:
    """left @ right + sums on the tensor cores."""
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
    return [llvm.extractvalue(f32, found, [i]) for i in range(4)]


def _bits(v: ir.Value) -> ir.Value:
    return arith.bitcast(ir.IntegerType.get_signless(32), v)


def _integer(value: int) -> ir.Value:
    return arith.constant(ir.IntegerType.get_signless(32), value)


def _at(v: ir.Value, i: int) -> ir.Value:
    at = ir.DenseI64ArrayAttr.get([i])
    return vector.extract(v, dynamic_position=[], static_position=at)


def _vector(values: list[ir.Value]) -> ir.Value:
    return vector.from_elements(ir.VectorType.get((len(values),), ir.F32Type.get()), values)


def _fragments(registers: list[ir.Value], shape, layout):
    """An array of what a thread holds, in the layout's order."""
    layout = layout.to_mgpu()
    array = np.empty(layout.registers_shape(shape), dtype=object)
    array.flat[:] = registers
    return mosaic.FragmentedArray(_registers=array, _layout=layout, _is_signed=None)
