"""Meshes, how arrays split over them, and XLA options for their devices."""

import dataclasses

import numpy as np
import pytest
from jax.sharding import PartitionSpec

from mtmamba_jax.devices.sharding import (
    BATCH_AXES,
    compiler_options,
    create_mesh,
    mesh_compiler_options,
    split_longest,
)

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


def test_mesh_takes_as_many_devices_as_divide_the_batch(caplog):
    assert create_mesh(8).size == 8
    assert create_mesh(6).size == 6
    assert "Using 6 of 8 devices: batches of 6 split" in caplog.text
    assert create_mesh(16, 8).size == 8
    assert create_mesh(16, 4).size == 4


def test_mesh_of_two_axes():
    assert dict(create_mesh(8, fsdp=2).shape) == {"data": 4, "fsdp": 2}
    assert dict(create_mesh(8, data=2, fsdp=2).shape) == {"data": 2, "fsdp": 2}
    assert dict(create_mesh(6, fsdp=2).shape) == {"data": 3, "fsdp": 2}
    for wrong in ({"fsdp": 3}, {"fsdp": 16}, {"data": 16}, {"data": 4, "fsdp": 4}):
        given = {"data": -1, "fsdp": 1} | wrong
        message = f"mesh.data={given['data']} and mesh.fsdp={given['fsdp']} do not fit 8 devices"
        with pytest.raises(ValueError, match=message):
            create_mesh(8, **wrong)


def test_devices_that_the_mesh_leaves_out_are_logged_with_the_reason(caplog):
    assert create_mesh(8, data=2).size == 2
    assert "Using 2 of 8 devices, as set by mesh.data and mesh.fsdp." in caplog.text


def test_arrays_that_do_not_divide_are_replicated():
    assert split_longest((6, 4), 4) == PartitionSpec(None, "fsdp")
    assert split_longest((8, 4), 4) == PartitionSpec("fsdp")
    for shape in ((6, 3), ()):
        assert split_longest(shape, 4) == PartitionSpec()
