"""Instructions that Triton does not choose by itself.

Tests that interpret the kernels on a CPU replace these functions.
"""

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton
from jaxtyping import Array, Float


def exp2(v: Float[Array, "*x"]) -> Float[Array, "*x"]:
    """Returns 2**v, accurate to two units in the last place, or 0 below 2**-126.

    `jnp.exp2` also computes smaller results, which takes four instructions.
    """
    return _run("ex2.approx.ftz.f32 $0, $1;", v)


def multiply_add(
    a: Float[Array, "*x"], b: Float[Array, "*#x"], c: Float[Array, "*#x"]
) -> Float[Array, "*x"]:
    """Returns a * b + c, rounded once."""
    return _run("fma.rn.f32 $0, $1, $2, $3;", *jnp.broadcast_arrays(a, b, c))


def sync() -> None:
    """Makes a program's writes to memory visible to all its threads."""
    triton.debug_barrier()


def _run(instruction: str, *operands: Array) -> Array:
    (result,) = triton.elementwise_inline_asm(
        instruction,
        args=operands,
        constraints=",".join(["=f", *"f" * len(operands)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(operands[0].shape, jnp.float32)],
    )
    return result
