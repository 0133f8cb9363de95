"""The Triton backend: results on a GPU and in the interpreter, and lowering on any machine."""

import functools

import jax
import jax.numpy as jnp
import pytest

from mtmamba_jax.kernels import platform_check
from mtmamba_jax.kernels import triton_instructions as instructions
from mtmamba_jax.kernels.ss2d import (
    DIRECTIONS,
    api,
    common,
    pallas_triton,
    ss2d,
)
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, ODD, SPECS, ArgSpec
from mtmamba_jax.kernels.ss2d.triton import program
from tests.kernels.ss2d_suite import (
    TOLERANCES,
    GPUSuite,
    SS2DSuite,
    ampere,
    an_abstract_gpu,
    cast,
    lowered_for_cuda,
    mark_slow,
    over_tasks,
    pretend_gpus,
    recomputed,
)

KERNEL = "xla.gpu.triton"


@pytest.mark.gpu
@pytest.mark.skipif(not ampere(), reason="needs a GPU of compute capability 8.0")
class TestPallasTriton(GPUSuite):
    implementation = "pallas_triton"

    @pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
    @pytest.mark.parametrize("programs", [1, 10**6])
    def test_one_segment_and_many_give_the_same_result(self, monkeypatch, programs, dtype):
        for name in ("MIN_PROGRAMS", "TARGET_PROGRAMS"):
            monkeypatch.setattr(pallas_triton, name, programs)
        self.check_segments(dtype)

    def test_a_high_rank_of_the_step_sizes_equals_the_definition(self):
        self.check(ArgSpec(6, 20, d=12, n=3, r=70).arguments())


@pytest.fixture
def interpreted(monkeypatch):
    """Runs the kernels on this machine's default device, without Triton's own instructions."""
    interpret = functools.partial(program.pl.pallas_call, interpret=True)
    monkeypatch.setattr(program.pl, "pallas_call", interpret)
    monkeypatch.setattr(instructions, "sync", lambda: None)
    monkeypatch.setattr(instructions, "exp2", jnp.exp2)
    monkeypatch.setattr(instructions, "multiply_add", lambda a, b, c: a * b + c)
    monkeypatch.setattr(pallas_triton, "require_backend", lambda x, *_: x)
    pretend_gpus(monkeypatch, 8.0)
    jax.clear_caches()
    yield
    jax.clear_caches()


@pytest.mark.parametrize(
    ("spec", "segments", "directions", "dtype"),
    [
        (ArgSpec(8, 18, d=40, t=2, b=2, n=3, r=2), 2, DIRECTIONS, "bfloat16"),
        pytest.param(ODD["prime"], 1, DIRECTIONS, "float32", marks=pytest.mark.slow),
        pytest.param(
            *(ArgSpec(12, 16, d=8, n=20, r=17, k=2), 3, DIRECTIONS[1::2], "float32"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *(ArgSpec(1, 77, d=33, n=16, k=1), 1, DIRECTIONS[2:3], "float32"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_interpreted_kernels_equal_the_definition(
    interpreted, monkeypatch, spec, segments, directions, dtype
):
    suite = SS2DSuite()
    suite.implementation = "pallas_triton"
    x, *_ = spec.shapes(dtype)
    programs = spec.t * spec.b * len(directions) * -(-spec.n // 16) * -(-spec.d // 32)
    monkeypatch.setattr(pallas_triton, "MIN_PROGRAMS", programs + 1)
    monkeypatch.setattr(pallas_triton, "TARGET_PROGRAMS", programs * segments)
    orders = common.parse_directions(directions)
    assert pallas_triton._choose_scan(orders, x, spec.n).segments == segments
    suite.check(cast(spec.arguments(), dtype), directions, TOLERANCES[dtype])


@pytest.mark.parametrize(
    ("name", "segments"),
    [
        ("stage1_t1_b8", 1),  # 1536 programs
        ("stage2_t1_b8", 4),  # 768
        ("stage3_t1_b8", 8),  # 384
        ("stage3_t4_b8", 1),  # 1536
        ("stage1_t1_b1", 13),  # 192, whose segments have at least four tiles
        ("pixel", 1),
    ],
)
def test_few_programs_are_cut_into_segments(name, segments):
    x, *_ = SPECS[name].shapes(jnp.bfloat16)
    orders = common.parse_directions(DIRECTIONS)
    scan = pallas_triton._choose_scan(orders, x, SPECS[name].n)
    assert scan.segments == segments
    assert scan.pixels <= scan.length < scan.pixels + scan.segments * program.TILE


@pytest.mark.parametrize("name", mark_slow(DECODER, ("stage3_t4_b8",)))
def test_every_stage_lowers_for_cuda(name):
    assert KERNEL in lowered_for_cuda(SPECS[name], jnp.bfloat16, implementation="pallas_triton")


@pytest.mark.parametrize("op", [over_tasks, recomputed])
def test_transformations_lower_for_cuda(op):
    text = lowered_for_cuda(ArgSpec(5, 20, d=8, t=2), jnp.float32, op, "pallas_triton")
    assert KERNEL in text


def test_a_sharded_batch_lowers_for_cuda_without_gathering():
    platform_check._try_to_lower.cache_clear()  # so that it is tried inside shard_map
    split = functools.partial(ss2d, batch_axes=("data",))
    with an_abstract_gpu(2):
        text = lowered_for_cuda(ArgSpec(5, 20, d=8, b=4), jnp.float32, split, "pallas_triton")
    assert KERNEL in text
    assert "all_gather" not in text


def test_a_gpu_before_ampere_runs_xla_and_says_why(monkeypatch):
    pretend_gpus(monkeypatch, 7.5, 8.9)
    arrays = ODD["prime"].shapes(jnp.float32)
    name, refusals = api.choose_implementation("cuda", arrays)
    assert name == "xla"
    assert refusals["pallas_triton"] == (
        "needs GPUs of compute capability 8.0 or later; this machine has 7.5"
    )


def test_without_a_gpu_a_rank_too_high_for_mosaic_runs_xla_and_says_why(monkeypatch):
    pretend_gpus(monkeypatch)
    name, refusals = api.choose_implementation("cuda", ArgSpec(4, 4, d=8, r=200).shapes("float32"))
    assert name == "xla"
    assert refusals == {
        "pallas_gpu": "step sizes of rank 200 need too much shared memory",
        "pallas_triton": "Pallas cannot lower Triton kernels here: there is no GPU",
    }


@pytest.mark.parametrize("kind", ["cpu", "Orin", "GRID A100-10C"])
def test_a_gpu_that_pallas_does_not_know_runs_xla(monkeypatch, kind):
    if jax.__version_info__ < (0, 11):
        pytest.skip("before jax 0.11 Pallas does not look for the GPU")
    monkeypatch.setattr(platform_check, "compute_capabilities", lambda: (8.7,))
    with an_abstract_gpu(kind=kind, platform="cpu" if kind == "cpu" else "gpu"):
        name, refusals = api.choose_implementation("cuda", ODD["prime"].shapes(jnp.float32))
    assert name == "xla"
    assert "Pallas cannot lower Triton kernels here: " in refusals["pallas_triton"]


def test_the_kernels_hold_no_states_of_a_whole_image():
    with an_abstract_gpu():
        TestPallasTriton().test_no_array_holds_the_states_of_a_whole_image()
