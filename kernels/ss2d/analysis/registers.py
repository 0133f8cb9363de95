"""Prints what the GPU kernels need of a multiprocessor, according to ptxas.

    python -m mtmamba_jax.kernels.ss2d.analysis.registers [--capability 8.0,8.9] [--spec NAME]

No GPU is needed, but JAX's CUDA plugin is. For each kernel: registers per thread, bytes that a
thread spills (stores and loads in the program's text), and bytes of static shared memory of a
program. Mosaic's kernels are those of compute capability 9.0 and 10.0, Triton's run on all.
"""

import argparse
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import create_scan, lower_scan
from mtmamba_jax.kernels.ss2d.analysis.topology import find_gpus, stay_on_cpu
from mtmamba_jax.kernels.ss2d.arg_specs import DECODER, SPECS
from mtmamba_jax.kernels.ss2d.common import check_name

GPUS = {
    "8.0": "NVIDIA A100",
    "8.6": "NVIDIA A10",
    "8.9": "NVIDIA L4",
    "9.0": "NVIDIA H200",
    "10.0": "NVIDIA B200",
    "12.0": "NVIDIA RTX PRO 6000",
}
"""A GPU of each compute capability, under the name that JAX knows."""
MOSAIC = ("9.0", "10.0")

# XLA and Mosaic show what ptxas prints only if told to.
_VERBOSE = {
    "TF_CPP_MIN_LOG_LEVEL": "0",
    "TF_CPP_VMODULE": "subprocess_compilation=3",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
}
_KERNEL = re.compile(
    r"Compiling entry function '_?ss2d_(\w+?)(?:__\d+)?(?:_mosaic_gpu_kernel)?' for .*?"
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """Resources of a kernel.

    Attributes:
      name: "forward", "backward" or "summaries".
      registers: Registers per thread.
      spills: Bytes that a thread stores to and loads from memory for want of registers.
      shared: Bytes of static shared memory of a program.
    """

    name: str
    registers: int
    spills: int
    shared: int


def read_log(text: str) -> Iterator[Kernel]:
    """Yields the scan's kernels in the messages of ptxas."""
    for name, stores, loads, registers, rest in _KERNEL.findall(text):
        shared = re.search(r"(\d+) bytes smem", rest)
        spills = int(stores) + int(loads)
        yield Kernel(name, int(registers), spills, int(shared[1]) if shared else 0)


def compile_scan(capability: str, spec: str, implementation: str, dtype: str) -> None:
    """Compiles the op with its gradients for a GPU; ptxas reports to standard error."""
    stay_on_cpu()
    mesh = Mesh(find_gpus(GPUS[capability], capability), ("data",))
    lowered = lower_scan(mesh, SPECS[spec], dtype, create_scan(SPECS[spec], implementation))
    # Autotuning would run candidates on the GPU.
    lowered.compile({"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False})


def kernels(capability: str, spec: str, implementation: str, dtype: str) -> list[Kernel]:
    """Returns the kernels of a program that is compiled in a process of its own.

    Raises:
      RuntimeError: If it does not compile.
    """
    arguments = ("--worker", capability, spec, implementation, dtype)
    ran = subprocess.run(
        [sys.executable, "-m", __spec__.name if __name__ == "__main__" else __name__, *arguments],
        env=os.environ | _VERBOSE,
        capture_output=True,
        text=True,
    )
    if ran.returncode:
        raise RuntimeError(f"{implementation} on {capability}: {ran.stderr.strip()[-2000:]}")
    return list(dict.fromkeys(read_log(ran.stderr)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table with a row per compute capability, backend, spec and dtype."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--worker"]:
        compile_scan(*arguments[1:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capability", default=",".join(GPUS), help="separated by commas")
    parser.add_argument("--spec", default=",".join(DECODER), help="names, separated by commas")
    parser.add_argument("--dtype", default="bfloat16,float32", help="separated by commas")
    options = parser.parse_args(arguments)
    print("| capability | backend | spec | dtype | kernel: registers, spills, shared memory |")
    print("|---|---|---|---|---|")
    for capability in options.capability.split(","):
        check_name("compute capability", capability, GPUS)
        for implementation in ("pallas_triton", "pallas_gpu"):
            if implementation == "pallas_gpu" and capability not in MOSAIC:
                continue
            for spec in options.spec.split(","):
                check_name("spec", spec, SPECS)
                for dtype in options.dtype.split(","):
                    found = kernels(capability, spec, implementation, dtype)
                    text = "; ".join(
                        f"{k.name}: {k.registers}, {k.spills}, {k.shared}" for k in found
                    )
                    row = (capability, implementation, spec, dtype, text)
                    print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
