"""XLA options for the devices of a mesh."""

import dataclasses

import numpy as np
import pytest

from mtmamba_jax.devices.sharding import BATCH_AXES, compiler_options, mesh_compiler_options

SCHEDULER = "xla_gpu_enable_latency_hiding_scheduler"


@dataclasses.dataclass(frozen=True)
class Device:
    platform: str
    process_index: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """A mesh of devices that this machine does not have."""

    devices: np.ndarray

    @property
    def shape(self):
        return dict(zip(BATCH_AXES, self.devices.shape, strict=True))


@pytest.mark.parametrize(
    ("platform", "shape", "processes", "off"),
    [
        ("gpu", (2, 1), [0, 0], True),
        ("gpu", (8, 1), [3] * 8, True),
        ("gpu", (1, 1), [0], False),
        ("gpu", (1, 2), [0, 0], False),  # gathering weights from the other GPU can be overlapped
        ("gpu", (2, 2), [0] * 4, False),
        ("gpu", (2, 1), [0, 1], False),  # so can a slow network
        ("cpu", (2, 1), [0, 0], False),
        ("tpu", (2, 1), [0, 0], False),
    ],
)
def test_the_latency_hiding_scheduler_is_off_for_replicas_on_gpus_of_one_process(
    platform, shape, processes, off
):
    devices = np.array([Device(platform, process) for process in processes]).reshape(shape)
    options = mesh_compiler_options(Layout(devices))
    assert options.pop(SCHEDULER, None) == (False if off else None)
    assert options == compiler_options(platform)
