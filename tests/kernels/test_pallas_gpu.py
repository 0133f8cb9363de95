"""The Mosaic backend: results on a GPU that runs it, and lowering for CUDA on any machine."""

import functools
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtmamba_jax.kernels.platform_check import compute_capabilities
from mtmamba_jax.kernels.ss2d import api, pallas_gpu, ss2d
from mtmamba_jax.kernels.ss2d.api import SHAPES
from mtmamba_jax.kernels.ss2d.arg_specs import ODD, SPECS, ArgSpec
from tests.kernels.ss2d_suite import (
    TOLERANCES,
    GPUSuite,
    cast,
    lowered_for_cuda,
    mark_slow,
    over_tasks,
    pretend_gpus,
    recomputed,
    record_log,
    relative_error,
    value_and_gradients,
)


def supported() -> bool:
    return jax.default_backend() == "gpu" and set(compute_capabilities()) <= set(
        pallas_gpu.CAPABILITIES
    )


@pytest.mark.gpu
@pytest.mark.skipif(not supported(), reason="needs a GPU of compute capability 9.0, 10.0 or 10.3")
class TestPallasGPU(GPUSuite):
    implementation = "pallas_gpu"

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("programs", [1, 10**6])
    def test_one_segment_and_many_give_the_same_result(self, monkeypatch, programs, dtype):
        for name in ("MIN_PROGRAMS_FORWARD", "MIN_PROGRAMS_BACKWARD", "TARGET_PROGRAMS"):
            monkeypatch.setattr(pallas_gpu, name, programs)
        monkeypatch.setattr(pallas_gpu, "MIN_WIDE_PROGRAMS", programs)  # programs of 128 channels
        self.check_segments(dtype)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("segments", [2, 7])
    def test_chained_segments_compute_the_same_as_one(self, monkeypatch, segments, dtype):
        for name in ("MIN_PROGRAMS_FORWARD", "MIN_PROGRAMS_BACKWARD", "MIN_WIDE_PROGRAMS"):
            monkeypatch.setattr(pallas_gpu, name, 1)
        arguments = cast(ArgSpec(40, 52, d=200, b=2, t=2, r=4).arguments(), dtype)
        found = []
        for most in (1, segments):
            jax.clear_caches()  # programs divided with other limits
            for name in ("RESIDENT_FORWARD", "RESIDENT_BACKWARD", "MIN_CHAINED_TILES"):
                monkeypatch.setattr(pallas_gpu, name, 1)
            monkeypatch.setattr(pallas_gpu, "MAX_CHAINED_SEGMENTS", most)
            found.append(value_and_gradients(arguments, self.implementation))
        for name, one, other in zip(("y", *SHAPES), *found, strict=True):
            if name == "A":  # a sum per segment, added in another order
                assert relative_error(one, other) < 1e-5
            else:
                np.testing.assert_array_equal(one, other, err_msg=name)

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("width", [24, 32])  # with partial tiles and without
    def test_half_the_channels_per_program_in_the_forward_pass_only(self, width, dtype):
        arguments = ArgSpec(16, width, d=384, b=8, r=4).arguments()  # 96 programs of 128 channels
        self.check(cast(arguments, dtype), tolerance=TOLERANCES[dtype])

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    def test_full_tiles_in_one_segment_equal_the_definition(self, dtype):
        arguments = ArgSpec(16, 32, d=384, b=8, t=2, r=4).arguments()  # 192 programs
        self.check(cast(arguments, dtype), tolerance=TOLERANCES[dtype])

    def test_the_kernels_are_the_default_on_a_gpu(self):
        assert "mosaic_gpu" in lowered_for_cuda(ODD["prime"], jnp.float32, implementation=None)


# Full and partial tiles, one segment, several and chained ones, long runs, half the channels per
# program.
SAMPLE = ("stage1_t1_b1", "stage2_t1_b8", "stage2_t4_b8", "stage3_t1_b8", "stage3_t4_b8", "prime")


@pytest.mark.parametrize("name", mark_slow(SPECS, SAMPLE))
def test_every_named_shape_lowers_for_cuda(name):
    assert "mosaic_gpu" in lowered_for_cuda(SPECS[name], jnp.bfloat16)


def test_any_directions_and_many_states_lower_for_cuda():
    for direction, spec in (
        ("row_reversed", ArgSpec(1, 21, d=5, k=1)),
        ("column", ArgSpec(21, 1, d=5, k=1)),
        ("row", ArgSpec(9, 20, d=5, k=1)),  # neither size is a multiple of 8, as tiles are
        ("column_reversed", ArgSpec(6, 20, d=12, k=1, n=33)),
    ):
        op = functools.partial(ss2d, directions=(direction,))
        assert "mosaic_gpu" in lowered_for_cuda(spec, jnp.float32, op)


@pytest.mark.parametrize("name", mark_slow(("stage1_t1_b1", "stage3_t4_b8", "row"), ("row",)))
def test_float32_lowers_for_cuda(name):
    assert "mosaic_gpu" in lowered_for_cuda(SPECS[name], jnp.float32)


def test_lowering_for_cuda_uses_the_kernels_and_for_a_cpu_xla():
    assert "mosaic_gpu" in lowered_for_cuda(ODD["prime"], jnp.float32, implementation=None)
    on_cpu = jax.jit(ss2d).trace(*ODD["prime"].shapes(jnp.float32))
    assert "mosaic_gpu" not in on_cpu.lower(lowering_platforms=("cpu",)).as_text()


@pytest.mark.parametrize("op", [over_tasks, recomputed])
def test_transformations_lower_for_cuda(op):
    assert "mosaic_gpu" in lowered_for_cuda(ArgSpec(5, 20, d=8, t=2), jnp.float32, op)


def test_a_sharded_batch_lowers_for_cuda_without_gathering():
    mesh = jax.make_mesh((2,), ("data",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split = functools.partial(ss2d, batch_axes=("data",))
    with jax.set_mesh(mesh):
        text = lowered_for_cuda(ArgSpec(5, 20, d=8, b=4), jnp.float32, split)
    assert "mosaic_gpu" in text
    assert "all_gather" not in text


@pytest.mark.parametrize("capability", [pytest.param(8.0, marks=pytest.mark.slow), 12.0])
def test_another_gpu_runs_triton_and_logs_this_once(monkeypatch, capability):
    pretend_gpus(monkeypatch, capability)
    monkeypatch.setattr(api, "local_platform", lambda: "cuda")
    records = record_log(monkeypatch)
    for size in (5, 6):
        text = lowered_for_cuda(ArgSpec(4, size, d=3), jnp.float32, implementation=None)
        assert "mosaic_gpu" not in text
        assert "xla.gpu.triton" in text
    message = "The selective scan on cuda runs pallas_triton (not pallas_gpu: needs GPUs"
    assert sum(level == logging.INFO and text.startswith(message) for level, text in records) == 1
    with pytest.raises(NotImplementedError, match=rf"9.0, 10.0, 10.3 .* has {capability}"):
        lowered_for_cuda(ArgSpec(4, 7, d=3), jnp.float32)


def test_step_sizes_of_too_high_a_rank_run_triton():
    spec = ArgSpec(4, 5, d=128, r=200)
    assert "mosaic_gpu" not in lowered_for_cuda(spec, jnp.float32, implementation=None)
    with pytest.raises(NotImplementedError, match="rank 200 need too much shared memory"):
        lowered_for_cuda(spec, jnp.float32)


def test_the_kernels_hold_no_states_of_a_whole_image():
    TestPallasGPU().test_no_array_holds_the_states_of_a_whole_image()
