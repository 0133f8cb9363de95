"""What the GPU backend does in plain JAX before and after its kernels; runs on any machine."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.kernels.ss2d import common, pallas_gpu
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, ArgSpec
from mtmamba_jax.kernels.ss2d.mosaic_gpu import step_sizes
from tests.kernels.ss2d_suite import relative_error

ALL = common.Directions((False, True, False, True), (False, False, True, True))


def choose_scan(spec: ArgSpec, dtype=jnp.bfloat16, backward_pass=True):
    x = jax.ShapeDtypeStruct((spec.t, spec.b, spec.h, spec.w, spec.d), dtype)
    return pallas_gpu._choose_scan(ALL, x, spec.n, spec.r, backward_pass=backward_pass)


@pytest.mark.parametrize(
    ("name", "forward", "backward"),
    [
        ("stage2_t4_b8", (4, 18, 4), (4, 18, 4)),  # 768 programs of 128 channels: chained segments
        ("stage3_t4_b8", (4, 1, 8), (4, 32, 4)),  # 384: enough registers for runs of 8 pixels
        ("stage1_t4_b8", (4, 5, 4), (4, 5, 4)),  # lines are not divisible into runs of 8
        ("stage2_t1_b8", (2, 1, 8), (2, 1, 4)),  # 192: programs of 64 channels
        ("stage3_t1_b8", (2, 1, 16), (4, 11, 4)),  # 96: segments in the backward pass
        ("stage1_t1_b1", (4, 15, 4), (4, 15, 4)),  # 48: segments have four tiles on average
    ],
)
def test_programs_are_divided_further(name, forward, backward):
    for wanted, backward_pass in ((forward, False), (backward, True)):
        scan = choose_scan(DECODER[name], backward_pass=backward_pass)
        assert (scan.group_channels, scan.segments, scan.run) == wanted
        assert scan.chained == (name[6:] == "_t4_b8" and scan.segments > 1)


def test_both_passes_pad_channels_to_the_same_number():
    for d in (16, 64, 96, 192, 384, 400):
        spec = ArgSpec(112, 144, d=d, b=8)
        blocks = (choose_scan(spec, backward_pass=p).channels for p in (False, True))
        padded = {-(-d // c) * c for c in blocks}
        assert len(padded) == 1, d


def test_a_high_rank_halves_the_channels_and_a_higher_one_is_rejected():
    assert choose_scan(ArgSpec(56, 72, d=2048, b=8, r=48), jnp.float32).group_channels == 4
    assert choose_scan(ArgSpec(56, 72, d=2048, b=8, r=64), jnp.float32).group_channels == 2
    with pytest.raises(NotImplementedError, match="rank 200 need too much shared memory"):
        choose_scan(ArgSpec(56, 72, d=2048, b=8, r=200), jnp.float32)


@pytest.mark.parametrize(("d", "n"), [(128, 16), (200, 16), (40, 3), (12, 33)])
def test_reordering_states_for_threads_is_undone(d, n):
    scan = choose_scan(ArgSpec(8, 8, d=d, n=n, t=2))
    A = np.random.default_rng(0).standard_normal((2, 4, d, n), np.float32)
    states = pallas_gpu._to_stored_states(scan, jnp.asarray(A))
    restored = pallas_gpu._from_stored_states(scan, states, A) / common.LOG2E
    np.testing.assert_allclose(restored, A, rtol=1e-6)


@pytest.mark.parametrize(
    # float32: three bfloat16 parts per factor. bfloat16: the weight is rounded by at most 2**-9.
    ("dtype", "tolerance"),
    [("float32", 1e-6), ("bfloat16", 2**-8)],
)
def test_one_bfloat16_product_is_the_projection_with_its_bias(dtype, tolerance):
    _, dt, weight, bias, *_ = ArgSpec(3, 5, d=24, t=2, b=2, r=7).arguments()
    dt = jnp.asarray(dt, dtype)
    left, right = step_sizes.operands(dt, weight, bias)
    assert left.dtype == right.dtype == jnp.bfloat16
    assert left.shape[-1] == right.shape[-1] == step_sizes.operand_columns(7, dtype)
    left = left.reshape(2, 4, 2, 3, 5, -1).astype(jnp.float32)
    right = right.reshape(2, 4, 24, -1).astype(jnp.float32)
    exact = jax.lax.Precision.HIGHEST
    got = jnp.einsum("tkbhwc,tkdc->tbhwkd", left, right, precision=exact)
    wanted = jnp.einsum("tbhwkr,tkrd->tbhwkd", dt.astype(jnp.float32), weight, precision=exact)
    assert relative_error(got, wanted + bias[:, None, None, None]) < tolerance


def test_softplus_and_its_gradient_are_accurate_for_tiny_values():
    z = np.linspace(-20, 30, 10001, dtype=np.float32).astype(np.float64)
    wanted = np.log1p(np.exp(z))
    # The polynomials' errors are 3e-7 and 6e-5.
    for exact, tolerance in ((True, 1e-6), (False, 1e-4)):
        got = common.softplus(jnp.asarray(z, jnp.float32), exact=exact)
        np.testing.assert_allclose(got, wanted, rtol=tolerance)
    slope = common.softplus_gradient(jnp.asarray(wanted, jnp.float32))
    np.testing.assert_allclose(slope, 1 / (1 + np.exp(-z)), rtol=3e-6)


@pytest.mark.parametrize("reverse", [False, True])
def test_segments_start_with_the_states_that_others_end_with(reverse):
    # One direction of one image, in 3 segments with known decays and final states.
    scan = pallas_gpu._choose_scan(
        common.Directions((False,), (False,)),
        jax.ShapeDtypeStruct((1, 1, 12, 16, 64), jnp.float32),
        16,
        1,
        backward_pass=True,
    )
    assert scan.segments == 3
    rng = np.random.default_rng(0)
    A = -rng.uniform(0.5, 1.5, (1, *scan.stored_shape)).astype(np.float32)
    ends = rng.standard_normal((2, *A.shape[1:])).astype(np.float32)
    time = rng.uniform(0.1, 1.0, (2, scan.channels)).astype(np.float32)
    got = pallas_gpu._start_states(scan, *map(jnp.asarray, (ends, time, A)), reverse=reverse)
    by_channel = time.reshape(2, 2, 1, 8, 1, 4).repeat(4, 4).reshape(2, 2, 1, -1)
    decay = np.exp2(by_channel * A)
    none = np.zeros_like(ends[0])
    if reverse:
        wanted = [ends[0] + decay[0] * ends[1], ends[1], none]
    else:
        wanted = [none, ends[0], ends[1] + decay[1] * ends[0]]
    np.testing.assert_allclose(got, np.stack(wanted), rtol=1e-5, atol=1e-6)
