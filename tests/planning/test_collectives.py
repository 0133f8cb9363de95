"""Collectives and loops are counted in the text of a compiled program."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from mtmamba_jax.devices import sharding
from mtmamba_jax.planning.collectives import count_collectives, count_loops


def test_collectives_of_a_compiled_program_are_counted_with_their_bytes():
    mesh = sharding.create_mesh(8)

    def exchange(x):  # [4 16] on each device
        total = jax.lax.psum(x, "data")
        everywhere = jax.lax.all_gather(x, "data").sum(0)
        part = jax.lax.psum_scatter(x, "data", scatter_dimension=1, tiled=True)
        turned = jax.lax.all_to_all(x, "data", split_axis=1, concat_axis=0, tiled=True)
        next_one = jax.lax.ppermute(x, "data", [(i, (i + 1) % 8) for i in range(8)])
        return total, everywhere + next_one, part, turned

    split = P("data")
    run = jax.shard_map(exchange, mesh=mesh, in_specs=split, out_specs=(P(), split, split, split))
    text = jax.jit(run).lower(jnp.ones((32, 16))).compile().as_text()
    found = count_collectives(text)
    whole = 4 * 16 * 4
    assert found["all-reduce"] == {"count": 1, "bytes": whole}
    assert found["all-gather"] == {"count": 1, "bytes": 8 * whole}
    assert found["reduce-scatter"] == {"count": 1, "bytes": whole // 8}
    assert found["all-to-all"] == {"count": 1, "bytes": whole}
    assert found["collective-permute"] == {"count": 1, "bytes": whole}


ASYNCHRONOUS = """
  %g = (bf16[2,8]{1,0:T(8,128)(2,1)}, bf16[16,8]{1,0}) all-gather-start(%a), dimensions={0}
  %g.1 = bf16[16,8]{1,0} all-gather-done(%g)
  %p = (f32[4]{0}, f32[4]{0:S(1)}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%b)
  %p.1 = f32[4]{0} collective-permute-done(%p)
  %r = (f32[4]{0}, /*index=1*/pred[3]{0}) all-reduce-start(%b, %c), to_apply=%add
  %r.1 = (f32[4]{0}, pred[3]{0}) all-reduce-done(%r)
  %w = (s32[]{:T(128)}, f32[4]{0}) while(%t), condition=%less, body=%more
  ROOT %f = f32[4]{0} fusion(%all-reduce.3), metadata={op_name="all-reduce(x)"}
"""


def test_asynchronous_collectives_count_once_with_the_size_of_their_results():
    assert count_collectives(ASYNCHRONOUS) == {
        "all-gather": {"count": 1, "bytes": 16 * 8 * 2},
        "collective-permute": {"count": 1, "bytes": 16},
        "all-reduce": {"count": 1, "bytes": 16 + 3},
    }
    assert count_loops(ASYNCHRONOUS) == 1
