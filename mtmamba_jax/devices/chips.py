"""Peak rates and memory of accelerators, each as the device that JAX shows."""

import dataclasses

from mtmamba_jax.messages import GIB


@dataclasses.dataclass(frozen=True)
class Chip:
    """Limits of one device.

    Attributes:
      hbm: Bytes of memory available to programs.
      flops: bfloat16 operations per second of its matrix units, without sparsity.
      bytes: Bytes per second to and from its memory.
      multiprocessors: Number of multiprocessors, for GPUs.
      clock: Highest clock rate in Hz; None where it is not known.
    """

    hbm: float
    flops: float
    bytes: float
    multiprocessors: int | None = None
    clock: float | None = None

    @property
    def exponentials(self) -> float | None:
        """Exponentials per second of the special-function units; None where not published."""
        if self.multiprocessors is None or self.clock is None:
            return None
        # Results per clock and multiprocessor: 16 (CUDA C++ Programming Guide, throughput of native
        # arithmetic instructions, capabilities 8.0 and 9.0).
        return 16 * self.multiprocessors * self.clock


# GPUs: flops and bytes are from NVIDIA's data sheets (PCIe and NVL cards are slower), memory is the
# total that nvidia-smi reports. Clocks: nvidia-smi's 1.98 GHz for the H100 and H200, 1.41 GHz from
# NVIDIA's A100 white paper.
#
# TPUs: flops and bytes are from the Cloud TPU system architecture pages, divided by the number of
# devices that JAX shows per chip: two for a TPU7x, one for the others (a v4's two cores are one).
# Memory is what the compiler grants a program, from its message when a program needs more
# (libtpu 0.0.42). Clocks: the matrix units (eight of 128 x 128 on a v4 and a v5p, four on a v5e, a
# multiplication and an addition per clock) reach the published rates at these.
CHIPS = {
    "NVIDIA H100 80GB HBM3": Chip(79.6 * GIB, 989e12, 3.35e12, 132, 1.98e9),
    "NVIDIA H200": Chip(140.4 * GIB, 989e12, 4.8e12, 132, 1.98e9),
    "NVIDIA A100-SXM4-80GB": Chip(80 * GIB, 312e12, 2.039e12, 108, 1.41e9),
    "NVIDIA A100-SXM4-40GB": Chip(40 * GIB, 312e12, 1.555e12, 108, 1.41e9),
    "TPU v4": Chip(30.75 * GIB, 275e12, 1.228e12, clock=1.05e9),
    "TPU v5 lite": Chip(15.75 * GIB, 197e12, 0.819e12, clock=1.5e9),
    "TPU v5": Chip(95.74 * GIB, 459e12, 2.765e12, clock=1.75e9),
    "TPU v6 lite": Chip(31.25 * GIB, 918e12, 1.638e12),
    "TPU7x": Chip(94.75 * GIB, 2307e12 / 2, 7.38e12 / 2),
}
"""Chips by JAX's `device_kind`; other devices have no known limits."""
