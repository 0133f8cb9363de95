"""What accelerators can do at most, each as the device that jax shows of it."""

from __future__ import annotations

import dataclasses

from mtmamba_jax.messages import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one device.

    Attributes:
      hbm: bytes of its memory that programs may have.
      flops: bfloat16 a second, of its matrix units, without sparsity.
      bytes: a second, to and from its memory.
      multiprocessors: of a GPU.
      clock: of a GPU, its highest, in Hz.
    """

    hbm: float
    flops: float
    bytes: float
    multiprocessors: int | None = None
    clock: float | None = None

    @property
    def exponentials(self) -> float | None:
        """A second, of the special-function units; None where it is not published."""
        # Results a clock and multiprocessor: 16 (CUDA C++ Programming Guide, throughput of native
        # arithmetic instructions, capabilities 8.0 and 9.0).
        return self.multiprocessors and 16 * self.multiprocessors * self.clock


# GPUs: flops and bytes are of NVIDIA's data sheets (PCIe and NVL cards are slower), memory what
# nvidia-smi gives as the total. Clocks: 1.98 GHz is what nvidia-smi gives as the H100's and H200's,
# 1.41 GHz NVIDIA's A100 white paper.
#
# TPUs: flops and bytes are of the Cloud TPU system architecture pages, divided by the devices that
# jax shows of a chip: two of a TPU7x, one of the others (a v4's two cores together). Memory: what
# the compiler lets programs have, by the message that refuses more (libtpu 0.0.42).
CHIPS = {
    "NVIDIA H100 80GB HBM3": Chip(79.6 * GIB, 989e12, 3.35e12, 132, 1.98e9),
    "NVIDIA H200": Chip(140.4 * GIB, 989e12, 4.8e12, 132, 1.98e9),
    "NVIDIA A100-SXM4-80GB": Chip(80 * GIB, 312e12, 2.039e12, 108, 1.41e9),
    "NVIDIA A100-SXM4-40GB": Chip(40 * GIB, 312e12, 1.555e12, 108, 1.41e9),
    "TPU v4": Chip(30.75 * GIB, 275e12, 1.228e12),
    "TPU v5 lite": Chip(15.75 * GIB, 197e12, 0.819e12),
    "TPU v5": Chip(95.74 * GIB, 459e12, 2.765e12),
    "TPU v6 lite": Chip(31.25 * GIB, 918e12, 1.638e12),
    "TPU7x": Chip(94.75 * GIB, 2307e12 / 2, 7.38e12 / 2),
}
"""By jax's `device_kind`; any other has no limits to compare with."""
