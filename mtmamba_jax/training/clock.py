"""Measures the speed of a run: time per step, waiting for input, utilisation of the devices."""

import concurrent.futures
import time

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from mtmamba_jax.config import Config
from mtmamba_jax.data_pipelines.pipeline import Batches
from mtmamba_jax.devices.chips import CHIPS
from mtmamba_jax.devices.flops import count_flops
from mtmamba_jax.devices.timing import peak_device_memory
from mtmamba_jax.messages import GIB
from mtmamba_jax.models.mtmamba import abstract_build


class Clock:
    """Measures steps, and how long the devices were idle because a batch was not ready.

    Args:
      batch_size: Images per step.
      seconds_at_peak: Seconds per step at the devices' peak FLOP/s, None if unknown.
    """

    def __init__(self, batch_size: int, seconds_at_peak: float | None):
        self._batch_size, self._seconds_at_peak = batch_size, seconds_at_peak
        self._watcher = concurrent.futures.ThreadPoolExecutor(1)  # waits for steps to end
        self._end: concurrent.futures.Future | None = None
        self.restart(0)

    def restart(self, step: int) -> None:
        """Starts measuring after `step`."""
        self._start, self._step, self._waited, self._end = time.monotonic(), step, 0.0, None

    def next(self, batches: Batches) -> dict[str, np.ndarray]:
        """Returns the next batch; the devices wait for it once the previous step has ended."""
        start = time.monotonic()
        batch = next(batches)
        arrived = time.monotonic()
        if self._end is None:
            self._waited += arrived - start
        elif self._end.done():
            self._waited += max(0.0, arrived - max(start, self._end.result()))
        return batch

    def started(self, numbers: object) -> None:
        """Registers a step that was launched, by the arrays that it will return."""

        def wait() -> float:
            jax.block_until_ready(numbers)
            return time.monotonic()

        self._end = self._watcher.submit(wait)

    def numbers(self, step: int) -> dict[str, float]:
        """Returns means since the start, up to `step`.

        `input_wait` is a share of the time, `flops_utilisation` a share of the devices' peak
        FLOP/s; `device_memory_gib` is the peak on this process's first device. The last two are
        left out where they are not known.
        """
        elapsed = time.monotonic() - self._start
        seconds = elapsed / (step - self._step)
        found = {
            "seconds_per_step": seconds,
            "images_per_second": self._batch_size / seconds,
            "input_wait": self._waited / elapsed,
        }
        if self._seconds_at_peak is not None:
            found["flops_utilisation"] = self._seconds_at_peak / seconds
        peak = peak_device_memory()
        if peak is not None:
            found["device_memory_gib"] = peak / GIB
        return found

    def close(self) -> None:
        """Ends the thread that waits for steps."""
        self._watcher.shutdown()


def seconds_at_peak(config: Config, mesh: Mesh) -> float | None:
    """Returns the seconds that a training step takes at the devices' peak bfloat16 FLOP/s.

    As usual for model-FLOPs utilisation, a step counts as three times the matrix products and
    convolutions of the forward pass; recomputation (remat) and the elementwise work of the scan do
    not count. None for chips that `chips.CHIPS` does not list.
    """
    chip = CHIPS.get(mesh.devices.flat[0].device_kind)
    if chip is None:
        return None
    # The kernels hide their matrix products from the count; the plain scan shows them.
    plain = config.replace(model={"scan_implementation": "xla"})
    graph, parameters = abstract_build(plain.model, plain.tasks.selected)
    images = jax.ShapeDtypeStruct((config.train.batch_size, *config.data.size, 3), "float32")
    forward = count_flops(lambda p, x: nnx.merge(graph, p)(x), parameters, images)
    return 3 * forward / (mesh.size * chip.flops)
