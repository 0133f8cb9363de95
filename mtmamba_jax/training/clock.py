"""How fast a run is: the time of its steps, what of it was waiting, how much a device did in it."""

from __future__ import annotations

import concurrent.futures
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from ml_collections import ConfigDict

from mtmamba_jax import config as configuration
from mtmamba_jax.data_pipelines.pipeline import Batches
from mtmamba_jax.devices.chips import CHIPS, GIB
from mtmamba_jax.devices.flops import count_flops
from mtmamba_jax.devices.timing import device_peak
from mtmamba_jax.models.mtmamba import ModelSettings, abstract_build

MEASURED = (
    "seconds_per_step",
    "images_per_second",
    "input_wait",
    "flops_utilisation",
    "device_memory_gib",
)
"""What a clock says of steps; the last two where they are known."""


class Clock:
    """Measures steps, and how long the devices had none for want of a batch.

    Args:
      batch_size: images of a step.
      least: seconds that a step takes where every device does its highest rate of FLOPs, or None.
    """

    def __init__(self, batch_size: int, least: float | None):
        self._batch_size, self._least = batch_size, least
        self._watcher = concurrent.futures.ThreadPoolExecutor(1)  # waits for steps to end
        self._end: concurrent.futures.Future | None = None
        self.restart(0)

    def restart(self, step: int) -> None:
        """Measures from now on; `step` is the last one before."""
        self._start, self._step, self._waited, self._end = time.monotonic(), step, 0.0, None

    def next(self, batches: Batches) -> dict[str, np.ndarray]:
        """Returns the next batch; the devices wait for it once the step before has ended."""
        start = time.monotonic()
        batch = next(batches)
        arrived = time.monotonic()
        if self._end is None:
            self._waited += arrived - start
        elif self._end.done():
            self._waited += max(0.0, arrived - max(start, self._end.result()))
        return batch

    def started(self, numbers: object) -> None:
        """Notes a step that was given to the devices, and the numbers that come out of it."""
        self._end = self._watcher.submit(_end_of, numbers)

    def numbers(self, step: int) -> dict[str, float]:
        """Returns means over the steps since the start, up to `step`: see `MEASURED`.

        `input_wait` is a share of the time, `flops_utilisation` of the devices' highest rate;
        `device_memory_gib` is the most that was held on this process's first device.
        """
        seconds = (time.monotonic() - self._start) / (step - self._step)
        found = {
            "seconds_per_step": seconds,
            "images_per_second": self._batch_size / seconds,
            "input_wait": self._waited / (time.monotonic() - self._start),
        }
        if self._least is not None:
            found["flops_utilisation"] = self._least / seconds
        peak = device_peak()
        if peak is not None:
            found["device_memory_gib"] = peak / GIB
        return found

    def close(self) -> None:
        """Ends the thread that watches."""
        self._watcher.shutdown()


def _end_of(numbers: object) -> float:
    jax.block_until_ready(numbers)
    return time.monotonic()


def least_seconds(config: ConfigDict, mesh: Mesh) -> float | None:
    """Returns the seconds of a training step at the highest rate of the devices.

    That counts a step as three times the matrix products and convolutions of the forward pass, as
    is usual for model-FLOPs utilisation; what is done twice (remat) and the scan's elementwise work
    are not in it. The rate is the chip's for bfloat16. None for a chip that `chips.CHIPS` lacks.

    Args:
      config: gives the model, the size of images and the batch.
      mesh: of the devices.
    """
    chip = CHIPS.get(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    # The kernels hide their products; the plain scan shows them.
    plain = config.copy_and_resolve_references()
    plain.model.scan_implementation = "xla"
    graph, parameters = abstract_build(ModelSettings(**plain.model), configuration.tasks(config))
    images = jax.ShapeDtypeStruct((config.train.batch_size, *config.data.size, 3), "float32")
    forward = count_flops(lambda p, x: nnx.merge(graph, p)(x), parameters, images)
    return 3 * forward / (mesh.size * chip.flops)
