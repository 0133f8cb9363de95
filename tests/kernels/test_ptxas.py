"""What ptxas reports of the GPU kernels, and that they compile for every generation of GPUs."""

import pytest

from mtmamba_jax.kernels.ss2d.analysis import ptxas

LOG = """
I1130 subprocess_compilation.cc:356] ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'loop_fusion' for 'sm_80'
ptxas info    : Function properties for loop_fusion
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 18 registers, used 0 barriers
ptxas info    : Compiling entry function '_ss2d_summaries__1' for 'sm_80'
ptxas info    : Function properties for _ss2d_summaries__1
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 128 registers, used 1 barriers, 432 bytes cmem[0]
ptxas info    : Compiling entry function 'ss2d_backward_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for ss2d_backward_mosaic_gpu_kernel
    136 bytes stack frame, 152 bytes spill stores, 128 bytes spill loads
ptxas info    : Used 255 registers, used 2 barriers, 1 bytes smem
"""


LAUNCHES = """
011: kCustomKernel [prev=010 (1)] _ss2d_summaries__1 grid: [32, 4, 24] threads: [32, 1, 1]  shared_memory: 2048 bytes
012: kCustomKernel [prev=011 (1)] loop_fusion grid: [6, 1, 1] threads: [128, 1, 1]  shared_memory: 64 bytes
"""  # noqa: E501


def test_kernels_of_the_scan_are_read_from_the_messages_of_ptxas():
    assert ptxas.read_log(LOG + LOG.replace("128", "96"), LAUNCHES) == {
        "summaries": ptxas.Kernel(128, 0, 2048),
        "backward": ptxas.Kernel(255, 280, 0),
    }


@pytest.mark.parametrize(
    ("capability", "implementation"),
    [
        ("8.0", "pallas_triton"),
        *(
            pytest.param(*row, marks=pytest.mark.slow)
            for row in (
                ("8.6", "pallas_triton"),
                ("8.9", "pallas_triton"),
                ("9.0", "pallas_triton"),
                ("10.0", "pallas_triton"),
                ("12.0", "pallas_triton"),
                ("9.0", "pallas_gpu"),
                ("10.0", "pallas_gpu"),
                ("10.3", "pallas_gpu"),
            )
        ),
    ],
)
def test_the_kernels_compile_without_a_gpu(capability, implementation):
    pytest.importorskip("jax_cuda13_plugin", reason="the compiler for GPUs")
    found = ptxas.kernels(capability, implementation, "bfloat16", ["stage3_t1_b8"])
    assert found.keys() == set(ptxas.KERNELS)
    assert max(kernel.registers for kernel in found.values()) <= 255
    assert max(kernel.spills for kernel in found.values()) < 1024
    assert max(kernel.shared for kernel in found.values()) <= 48 * 1024
