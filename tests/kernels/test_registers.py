"""What ptxas reports of the GPU kernels, and that they compile for every generation of GPUs."""

import pytest

from mtmamba_jax.kernels.ss2d.analysis import registers

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


def test_kernels_of_the_scan_are_read_from_the_messages_of_ptxas():
    assert list(registers.read_log(LOG)) == [
        registers.Kernel("summaries", 128, 0, 0),
        registers.Kernel("backward", 255, 280, 1),
    ]


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
            )
        ),
    ],
)
def test_the_kernels_compile_without_a_gpu(capability, implementation):
    pytest.importorskip("jax_cuda13_plugin", reason="the compiler for GPUs")
    found = registers.kernels(capability, "stage2_t1_b8", implementation, "bfloat16")
    assert {"forward", "backward"} <= {kernel.name for kernel in found}
    assert max(kernel.registers for kernel in found) <= 255
    assert max(kernel.spills for kernel in found) < 1024
