"""Prints registers, spills and shared memory of the GPU kernels, as ptxas reports them.

    python -m mtmamba_jax.kernels.ss2d.analysis.ptxas [--capability 8.0,8.9] [--spec NAME,NAME]

No GPU is needed, but JAX's CUDA plugin is. The largest figures of all specs are shown: registers
per thread, bytes that a thread spills (stores and loads in the program's text), and bytes of shared
memory of a program, which XLA knows of Triton's kernels only.
"""

import argparse
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import NamedTuple

from jax.sharding import Mesh

from mtmamba_jax.kernels.ss2d.analysis.compiled_scan import create_scan, lower_scan
from mtmamba_jax.kernels.ss2d.analysis.topology import GPU_OPTIONS, find_gpus, stay_on_cpu
from mtmamba_jax.kernels.ss2d.arg_specs import SPECS
from mtmamba_jax.kernels.ss2d.common import check_name

GPUS = {
    "8.0": "NVIDIA A100",
    "8.6": "NVIDIA A10",
    "8.9": "NVIDIA L4",
    "9.0": "NVIDIA H200",
    "10.0": "NVIDIA B200",
    "10.3": "NVIDIA B300",
    "12.0": "NVIDIA RTX PRO 6000",
    "12.1": "NVIDIA GB10",
}
"""A GPU of each compute capability, under the name that JAX knows."""
MOSAIC = ("9.0", "10.0", "10.3")
"""Compute capabilities of GPUs that also run the Mosaic kernels."""
KERNELS = ("forward", "backward", "summaries")

# XLA and Mosaic show what ptxas prints only if told to.
_VERBOSE = {
    "TF_CPP_MIN_LOG_LEVEL": "0",
    "TF_CPP_VMODULE": "subprocess_compilation=3",
    "MOSAIC_GPU_DUMP_PTXAS": "1",
}
_KERNEL = re.compile(
    r"Compiling entry function '_?ss2d_(\w+?)(?:__\d+)?(?:_mosaic_gpu_kernel)?' for .*?"
    r"(\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers",
    re.DOTALL,
)
_LAUNCH = re.compile(r"\b_?ss2d_([a-z]+)(?:__\d+)? grid: .*shared_memory: (\d+) bytes")


class Kernel(NamedTuple):
    """Resources of a kernel.

    Attributes:
      registers: Registers per thread.
      spills: Bytes that a thread writes to memory and reads back, as it has too few registers.
      shared: Bytes of shared memory of a program, 0 where XLA does not know them.
    """

    registers: int
    spills: int
    shared: int


def read_log(text: str, launches: str) -> dict[str, Kernel]:
    """Returns the largest figures of each of the scan's kernels.

    Args:
      text: Messages of ptxas.
      launches: XLA's lists of launches (`thunk_sequence.txt`).
    """
    found: dict[str, Kernel] = {}

    def add(name: str, kernel: Kernel) -> None:
        found[name] = Kernel(*map(max, kernel, found.get(name, kernel)))

    for name, stores, loads, registers in _KERNEL.findall(text):
        add(name, Kernel(int(registers), int(stores) + int(loads), 0))
    for name, size in _LAUNCH.findall(launches):
        add(name, Kernel(0, 0, int(size)))
    return found


def compile_scans(capability: str, implementation: str, dtype: str, *specs: str) -> None:
    """Compiles the op with its gradients for a GPU; ptxas reports to standard error."""
    stay_on_cpu()
    mesh = Mesh(find_gpus(GPUS[capability], capability), ("data",))
    for name in specs:
        spec = SPECS[name]
        lowered = lower_scan(mesh, spec, dtype, create_scan(spec, implementation))
        lowered.compile(GPU_OPTIONS)


def kernels(
    capability: str, implementation: str, dtype: str, specs: Sequence[str]
) -> dict[str, Kernel]:
    """Returns the largest figures of each kernel; compiles in a process of its own.

    Raises:
      RuntimeError: If a program does not compile, or ptxas reports nothing.
    """
    module = "mtmamba_jax.kernels.ss2d.analysis.ptxas"
    arguments = ("--worker", capability, implementation, dtype, *specs)
    with tempfile.TemporaryDirectory() as folder:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_dump_to={folder}"
        ran = subprocess.run(
            [sys.executable, "-m", module, *arguments],
            env=os.environ | _VERBOSE | {"XLA_FLAGS": flags},
            capture_output=True,
            text=True,
        )
        if ran.returncode:
            raise RuntimeError(f"{implementation} on {capability}: {ran.stderr.strip()[-2000:]}")
        launches = [path.read_text() for path in pathlib.Path(folder).glob("*thunk_sequence.txt")]
    found = read_log(ran.stderr, "\n".join(launches))
    if not found:
        raise RuntimeError(f"{implementation} on {capability}: ptxas reported nothing.")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints a table with a row per compute capability, backend and dtype."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--worker"]:
        compile_scans(*arguments[1:])
        return 0
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--capability", default=",".join(GPUS), help="separated by commas")
    parser.add_argument("--spec", default=",".join(SPECS), help="names, separated by commas")
    options = parser.parse_args(arguments)
    capabilities, specs = (text.split(",") for text in (options.capability, options.spec))
    for what, names, valid in (("capability", capabilities, GPUS), ("spec", specs, SPECS)):
        for name in names:
            check_name(what, name, valid)
    print(f"| capability | backend | activations | {' | '.join(KERNELS)} |")
    print("|---|---|---|---|---|---|")
    for capability in capabilities:
        mosaic = ("pallas_gpu",) if capability in MOSAIC else ()
        for implementation in ("pallas_triton", *mosaic):
            for dtype in ("bfloat16", "float32"):
                found = kernels(capability, implementation, dtype, specs)
                cells = (", ".join(map(str, found.get(name, "-"))) for name in KERNELS)
                row = (capability, implementation, dtype, *cells)
                print(f"| {' | '.join(row)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
