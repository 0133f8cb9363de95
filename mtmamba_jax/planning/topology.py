"""Devices to compile for that this machine does not have, such as `v5e:4x4` or `h200:8`."""

import contextlib
import dataclasses
import os
import re
from collections.abc import Iterator, Mapping, Sequence

import jax

from mtmamba_jax.devices.chips import CHIPS, Chip
from mtmamba_jax.kernels.ss2d.analysis.topology import (
    GPU_OPTIONS,
    find_gpus,
    find_tpus,
    stay_on_cpu,
)
from mtmamba_jax.messages import check_name


@dataclasses.dataclass(frozen=True)
class Tpu:
    """A kind of TPU.

    Attributes:
      chip: Key of `CHIPS`.
      dimensions: Dimensions of a shape in chips.
      shapes: Shapes in chips that Cloud TPU offers; libtpu supports more.
    """

    chip: str
    dimensions: int
    shapes: str


_FLAT = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16 or 16x16"
_CUBES = "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8 and larger"

TPUS = {
    "v4": Tpu("TPU v4", 3, _CUBES),
    "v5e": Tpu("TPU v5 lite", 2, _FLAT),
    "v5p": Tpu("TPU v5", 3, _CUBES),
    "v6e": Tpu("TPU v6 lite", 2, _FLAT),
    "tpu7x": Tpu("TPU7x", 3, _CUBES),
}
GPUS = {"h100": "NVIDIA H100 80GB HBM3", "h200": "NVIDIA H200"}
"""Keys of `CHIPS`."""


@dataclasses.dataclass(frozen=True)
class Topology:
    """Devices to compile for.

    Attributes:
      name: Name that the user gave.
      devices: They cannot run programs or hold arrays.
      chip: Limits of each device.
      memory: Memory in bytes that a program may use on each device.
      compiler_options: XLA options in addition to those of every program on the platform.
    """

    name: str
    # JAX assigns the class to a variable, which a type checker does not take for a type.
    devices: Sequence[jax.Device]  # pyright: ignore[reportInvalidTypeForm]
    chip: Chip
    memory: float
    compiler_options: Mapping[str, str | bool] = dataclasses.field(default_factory=dict)


def find(name: str) -> Topology:
    """Returns the devices of a topology `KIND:SHAPE`. Must be called before JAX is used.

    Afterwards this process computes on the CPU and does not cache compiled programs.

    Args:
      name: One of `TPUS` and a shape in chips, or one of `GPUS` and a number of GPUs in one host.

    Raises:
      ValueError: If there is no such topology; the message lists kinds and shapes.
      RuntimeError: If the compiler for the topology is not installed.
    """
    kind, _, shape = name.partition(":")
    check_name("topology", kind, [*TPUS, *GPUS])
    dimensions = 1 if kind in GPUS else TPUS[kind].dimensions
    if not re.fullmatch("x".join([r"[1-9]\d*"] * dimensions), shape):
        raise _unknown_shape(name, kind)
    stay_on_cpu()
    return _find_gpu(name, kind, shape) if kind in GPUS else _find_tpu(name, kind)


@contextlib.contextmanager
def optimizing_less() -> Iterator[None]:
    """Makes the TPU compiler optimize less, which halves its time.

    On v5e:2x2 the training step of MTMamba with Swin-Large compiles in 86 s instead of 164 on two
    cores and needs 8.18 instead of 8.59 GiB (libtpu 0.0.42). It would take about twice as long to
    run.
    """
    before = jax.config.jax_optimization_level  # pyright: ignore[reportAttributeAccessIssue]
    jax.config.update("jax_optimization_level", "O1")
    try:
        yield
    finally:
        jax.config.update("jax_optimization_level", before)


def _find_tpu(name: str, kind: str) -> Topology:
    try:
        devices = find_tpus(name)
    except ValueError as error:
        raise _unknown_shape(name, kind) from error
    chip = CHIPS[TPUS[kind].chip]
    return Topology(name, devices, chip, chip.hbm)


def _find_gpu(name: str, kind: str, shape: str) -> Topology:
    chip = CHIPS[GPUS[kind]]
    assert chip.clock is not None  # every GPU has these in `CHIPS`
    assert chip.multiprocessors is not None
    try:
        devices = find_gpus(
            GPUS[kind],
            "9.0",
            int(shape),
            multiprocessors=chip.multiprocessors,
            ghz=chip.clock / 1e9,
            bandwidth=chip.bytes,
            memory=chip.hbm,
        )
    except RuntimeError as error:
        raise RuntimeError(f"--topology={name}: {error}") from error
    return Topology(name, devices, chip, chip.hbm * gpu_memory_fraction(), GPU_OPTIONS)


def gpu_memory_fraction() -> float:
    """Returns the share of a GPU's memory that JAX allocates, 0.75 unless the user sets it."""
    names = ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION")
    return float(next((os.environ[name] for name in names if os.environ.get(name)), 0.75))


def _unknown_shape(name: str, kind: str) -> ValueError:
    if kind in GPUS:
        return ValueError(f"--topology={name}: expected {kind}:NUMBER, GPUs of one host.")
    expected = f"{kind}:SHAPE, a shape in chips. Valid shapes: {TPUS[kind].shapes}."
    return ValueError(f"--topology={name}: expected {expected}")
