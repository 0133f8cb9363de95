"""The table of a program's kernels, from a trace such as JAX's profiler writes on a GPU."""

import types

import pytest

from mtmamba_jax.benchmarks import kernel_times
from mtmamba_jax.cli import main


def plane(name, line, *events):
    found = [
        types.SimpleNamespace(name=kernel, start_ns=start, duration_ns=duration)
        for kernel, start, duration in events
    ]
    return types.SimpleNamespace(name=name, lines=[types.SimpleNamespace(name=line, events=found)])


PLANES = [
    plane("/host:CPU", "python", ("call", 0, 9_000_000)),
    plane(
        *("/device:GPU:0", "Stream #16(Compute)"),
        ("ss2d_backward_mosaic_gpu_kernel", 1_000_000, 4_000_000),
        ("nvjet_hsh_128x256", 6_000_000, 1_000_000),
        ("nvjet_hsh_128x256", 7_000_000, 500_000),
        ("loop_multiply_fusion", 10_000_000, 1_000_000),
    ),
    plane("/device:GPU:1", "Stream #16(Compute)", ("nvjet_hsh_128x256", 0, 5_000_000)),
]


def test_kernels_of_the_first_device_are_added_up():
    found = kernel_times.read_planes(PLANES)
    assert [kernel.name for kernel in found.kernels][:2] == [
        "ss2d_backward_mosaic_gpu_kernel",
        "nvjet_hsh_128x256",
    ]
    assert found.kernels[1] == ("nvjet_hsh_128x256", pytest.approx(1.5e-3), 2)
    assert found.span == pytest.approx(10e-3)


def test_the_table_has_a_row_for_each_kind_and_the_time_between_kernels():
    lines = kernel_times.profile_table(kernel_times.read_planes(PLANES)).splitlines()[2:]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    assert [row[:4] for row in rows] == [
        ["scan, backward", "4.000", "40%", "1"],
        ["matrix products", "1.500", "15%", "2"],
        ["other elementwise", "1.000", "10%", "1"],
        ["between kernels", "3.500", "35%", ""],
        ["from first to last", "10.00", "100%", "4"],
    ]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ss2d_summaries_mosaic_gpu_kernel", "scan, starts of segments"),
        ("_layer_norm_backward__3", "LayerNorm"),
        ("_convolve_backward", "convolution and SiLU"),
        ("_attention_keys__2", "attention"),
        ("all-gather.2", "collectives"),
        ("ncclDevKernel_AllReduce_Sum_f32_RING_LL", "collectives"),
        ("gemm_fusion_dot_12", "matrix products"),
        ("triton_softmax_4", "normalization fusions"),
        ("input_add_reduce_fusion", "reductions"),
        ("MemcpyD2D", "copies and transposes"),
        ("loop_select_fusion", "other elementwise"),
    ],
)
def test_kernels_have_a_kind(name, kind):
    assert kernel_times.kind_of(name) == kind


def test_a_cpu_has_no_profile(tmp_path, capsys):
    flags = ["--what=inference", "--config=synthetic", "--repeats=1", "--profile"]
    assert main.main(["benchmark", *flags, f"--output={tmp_path / 'out.json'}"]) == 2
    assert "--profile needs a GPU" in capsys.readouterr().err
