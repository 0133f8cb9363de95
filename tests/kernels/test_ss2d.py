"""The XLA backend, and the dispatch and argument checks of `ss2d`."""

import functools
import logging

import jax
import numpy as np
import pytest

from mtmamba_jax.kernels.ss2d import (
    DIRECTIONS,
    IMPLEMENTATIONS,
    api,
    common,
    selective_scan,
    selective_ss2d,
    ss2d,
    xla,
    xla_gpu,
)
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, ArgSpec
from tests.kernels.ss2d_suite import SS2DSuite, intermediates, mark_slow, record_log

SMALL = ArgSpec(3, 4, d=2, n=2)


class TestXla(SS2DSuite):
    implementation = "xla"

    def test_chunk_length_does_not_change_the_result(self, monkeypatch):
        monkeypatch.setattr(xla, "CHUNK", 5)
        self.check(ArgSpec(4, 9, d=4, n=3).arguments())


@pytest.fixture
def gpu_schedule(monkeypatch):
    """Makes "xla_gpu" an implementation: the schedule that `xla` has on GPUs, on any device."""

    def run(*arrays, directions):
        return xla_gpu.ss2d_op(common.parse_directions(directions), *arrays)

    monkeypatch.setitem(api.IMPLEMENTATIONS, "xla_gpu", run)


@pytest.mark.slow
@pytest.mark.usefixtures("gpu_schedule")
class TestXlaOnGPU(SS2DSuite):
    implementation = "xla_gpu"


@pytest.mark.parametrize(("target", "segments"), [(1, 1), (2**16, 3)])
def test_the_schedule_of_gpus_equals_the_definition(monkeypatch, gpu_schedule, target, segments):
    monkeypatch.setattr(xla_gpu, "TARGET_STATES", target)
    spec = ArgSpec(10, 24, d=20, b=2, t=2, n=4, r=3)
    x, *_ = arguments = spec.arguments()
    plan = xla_gpu._choose_plan(common.parse_directions(DIRECTIONS), x, spec.n)
    assert plan.segments == segments
    TestXlaOnGPU().check(arguments)
    jax.clear_caches()


def test_xla_has_its_gpu_schedule_in_programs_for_gpus():
    op = functools.partial(ss2d, implementation="xla")
    on_gpu, on_cpu = (
        jax.jit(op).trace(*ArgSpec(16, 16, d=4).arguments()).lower(lowering_platforms=(platform,))
        for platform in ("rocm", "cpu")
    )
    assert "optimization_barrier" in on_gpu.as_text()
    assert "optimization_barrier" not in on_cpu.as_text()


def test_the_reference_runs_in_shard_map():
    suite = SS2DSuite()
    suite.implementation = "reference"
    suite.test_shard_map_over_the_batch_equals_one_device()


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (("rows",), "mesh in context has no axis rows; it has data"),
        (("data",), "batch_axes: a batch of 3 is not divisible by the 2 devices of mesh axes data"),
    ],
)
def test_a_batch_that_cannot_be_sharded_is_rejected(axes, message):
    auto = (jax.sharding.AxisType.Auto,)
    mesh = jax.make_mesh((2,), ("data",), auto, devices=jax.devices()[:2])
    with jax.set_mesh(mesh), pytest.raises(ValueError, match=message):
        ss2d(*ArgSpec(2, 2, d=1, b=3, n=1).arguments(), batch_axes=axes)


def test_the_xla_backend_uses_associative_scan(monkeypatch):
    calls = []
    scan = jax.lax.associative_scan
    monkeypatch.setattr(
        jax.lax, "associative_scan", lambda *a, **k: calls.append(1) or scan(*a, **k)
    )
    ss2d(*SMALL.arguments(), implementation="xla")
    assert calls


def _mock(monkeypatch, **backends):
    """Replaces backends and records in the returned list which of them ran."""
    ran = []

    def record(name, function):
        def backend(*arrays, directions):
            ran.append(name)
            return function(*arrays, directions=directions)

        return backend

    for name, function in {**IMPLEMENTATIONS, **backends}.items():
        monkeypatch.setitem(api.IMPLEMENTATIONS, name, record(name, function))
    return ran


def _refuses(*arrays, directions):
    raise NotImplementedError("needs another device")


def _runs(*arrays, directions):
    return arrays[0]


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_a_forced_implementation_is_the_one_that_runs(monkeypatch, name):
    ran = _mock(monkeypatch, pallas_gpu=_runs, pallas_triton=_runs, pallas_tpu=_runs)
    ss2d(*SMALL.arguments(), implementation=name)
    assert ran == [name]


def test_an_unsupported_forced_implementation_raises_and_nothing_else_runs(monkeypatch):
    ran = _mock(monkeypatch, picky=_refuses)
    with pytest.raises(NotImplementedError, match="needs another device"):
        ss2d(*SMALL.arguments(), implementation="picky")
    assert ran == ["picky"]


def test_an_unsupported_backend_is_followed_by_the_next(monkeypatch):
    ran = _mock(monkeypatch, picky=_refuses)
    monkeypatch.setattr(api, "PLATFORMS", {"default": ("picky", "xla")})
    ss2d(*SMALL.arguments())
    assert ran == ["picky", "xla"]


def test_if_no_backend_supports_a_call_the_error_names_every_reason(monkeypatch):
    _mock(monkeypatch, picky=_refuses)
    monkeypatch.setattr(api, "PLATFORMS", {"default": ("picky",)})
    with pytest.raises(NotImplementedError, match="picky: needs another device"):
        ss2d(*SMALL.arguments())


def test_the_platform_that_is_lowered_for_chooses_the_backend(monkeypatch):
    monkeypatch.setitem(api.PLATFORMS, "tpu", ("other",))
    monkeypatch.setitem(api.IMPLEMENTATIONS, "other", _runs)
    arguments = SMALL.arguments()
    for platform, loops in (("cpu", True), ("tpu", False)):
        traced = jax.jit(lambda *arrays: ss2d(*arrays)).trace(*arguments)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.while" in text) == loops


def test_an_amd_gpu_runs_xla_and_the_log_says_why(monkeypatch):
    monkeypatch.setattr(api, "local_platform", lambda: "rocm")
    records = record_log(monkeypatch)
    for _ in range(2):
        ss2d(*SMALL.arguments())
    reason = "The selective scan on rocm runs xla (not fused kernels: there are none for rocm)."
    assert [record for record in records if record[0] > logging.DEBUG] == [
        (logging.WARNING, reason)
    ]


def test_a_cpu_runs_the_chunked_scan():
    def loops(name):
        traced = jax.jit(functools.partial(ss2d, implementation=name)).trace(*SMALL.arguments())
        return traced.lower(lowering_platforms=("cpu",)).as_text().count("stablehlo.while")

    # One loop over the chunks of all directions; the definition has one for each direction.
    assert (loops(None), loops("xla"), loops("reference")) == (1, 1, 4)


def test_the_memory_check_would_reject_the_reference():
    spec = ArgSpec(32, 48, d=16, n=8)

    def loss(*arrays):
        return ss2d(*arrays, implementation="reference").sum()

    jaxpr = jax.make_jaxpr(jax.grad(loss))(*spec.arguments()).jaxpr
    assert max(np.prod(v.shape) for v in intermediates(jaxpr)) >= spec.h * spec.w * spec.d * spec.n


def _with(name, value, spec=SMALL):
    arguments = dict(zip(api.SHAPES, spec.arguments(), strict=True))
    return {**arguments, name: value(arguments[name])}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "x",
            lambda v: v[0],
            r"x must have shape \[t b h w d\] = \[t b h w d\] .* got \[1 3 4 2\]",
        ),
        ("dt", lambda v: v[..., :3, :], r"dt must .* = \[1 1 3 4 4 r\] .* got \[1 1 3 4 3 1\]"),
        ("dt_weight", lambda v: v[..., :1], r"dt_weight must .* = \[1 4 1 2\] .* got \[1 4 1 1\]"),
        ("dt_bias", lambda v: v[:, :1], r"dt_bias must .* \[t k d\] = \[1 4 2\] .* got \[1 1 2\]"),
        ("A", lambda v: v[0], r"A must .* \[t k d n\] = \[1 4 2 n\] .* got \[4 2 2\]"),
        ("B", lambda v: v[:, :, :2], r"B must .* = \[1 1 3 4 4 2\] .* got \[1 1 2 4 4 2\]"),
        ("C", lambda v: v[..., :1], r"C must .* = \[1 1 3 4 4 2\] .* got \[1 1 3 4 4 1\]"),
        ("D", lambda v: v[..., :1], r"D must .* \[t k d\] = \[1 4 2\] .* got \[1 4 1\]"),
        ("x", lambda v: v[:, :0], r"x must .* at least 1, got \[1 0 3 4 2\]"),
        ("x", lambda v: v.astype(np.int32), "x must be float32 or bfloat16, got int32"),
        ("A", lambda v: v.astype(np.float16), "A must be float32, got float16"),
    ],
)
def test_the_error_about_an_array_states_its_name_and_both_shapes(name, value, message):
    with pytest.raises(ValueError, match=message):
        ss2d(**_with(name, value))


def test_errors_of_selective_scan_use_its_own_letters():
    x = np.zeros((1, 1, 5, 2), np.float32)
    with pytest.raises(ValueError, match=r"dt must have shape \[t b l r\] = \[1 1 5 r\]"):
        selective_scan(x, x[0], *[x] * 6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"implementation": "xlb"},
            r"Unknown implementation 'xlb'. Did you mean 'xla'\? Valid: .*xla",
        ),
        ({"directions": ("rows",)}, r"Unknown direction 'rows'. Did you mean 'row'\? Valid: row, "),
        ({"directions": "row"}, "directions must be a sequence of at least one name, got 'row'"),
        ({"directions": ()}, "directions must be a sequence of at least one name"),
        ({"batch_axes": "data"}, "batch_axes must be a sequence of names, got 'data'"),
        ({"directions": ("row", "row")}, "directions must differ from one another, got row, row"),
    ],
)
def test_errors_about_names_list_the_valid_ones(options, message):
    with pytest.raises(ValueError, match=message):
        ss2d(*SMALL.arguments(), **options)


@pytest.mark.parametrize("name", mark_slow(DECODER, ("stage1_t5_b1", "stage3_t1_b8")))
def test_decoder_shapes_trace_without_being_allocated(name):
    spec = DECODER[name]
    x, *others = spec.shapes(np.float32)
    assert spec.k == len(DIRECTIONS)
    assert (
        jax.eval_shape(ss2d, x, *others).shape
        == x.shape
        == (spec.t, spec.b, spec.h, spec.w, spec.d)
    )


def selective_arguments(width=8):
    x, _, weight, bias, A, *_, D = ArgSpec(3, 5, d=6, t=2, n=3, r=2).arguments()
    rng = np.random.default_rng(0)
    source = rng.standard_normal(x.shape, np.float32)
    projection = rng.standard_normal((*bias.shape, width), np.float32)
    return [x, source, projection, weight, bias, A, D]


def test_selective_ss2d_scans_the_parts_of_a_product():
    x, source, projection, weight, bias, A, D = arrays = selective_arguments()
    projected = np.einsum("tbhwd,tkde->tbhwke", source, projection)
    dt, B, C = projected[..., :2], projected[..., 2:5], projected[..., 5:]
    wanted = ss2d(x, dt, weight, bias, A, B, C, D)
    np.testing.assert_allclose(selective_ss2d(*arrays), wanted, rtol=1e-4, atol=1e-5)


def test_selective_ss2d_refuses_a_projection_that_does_not_fit():
    with pytest.raises(ValueError, match=r"projection must have 8 = r \+ 2 n columns, got 7"):
        selective_ss2d(*selective_arguments(width=7))
    arrays = selective_arguments()
    arrays[2] = jax.numpy.asarray(arrays[2], "bfloat16")
    with pytest.raises(ValueError, match="must have one dtype, got float32 and bfloat16"):
        selective_ss2d(*arrays)
