"""What a run says of its speed."""

import contextlib
import time

import pytest

from mtmamba_jax.training.clock import Clock


class Running:
    """Numbers of a step that devices work on for some seconds."""

    def __init__(self, seconds):
        self._end = time.monotonic() + seconds

    def block_until_ready(self):
        time.sleep(max(0, self._end - time.monotonic()))
        return self


@pytest.mark.parametrize(
    ("step", "batch", "share"), [(0.4, 0.3, 0), (0.3, 0.6, 0.5), (0.01, 0.3, 1)]
)
def test_waiting_counts_only_while_devices_have_nothing_to_do(step, batch, share):
    def slow_batches():
        while True:
            time.sleep(batch)
            yield {}

    batches = slow_batches()
    with contextlib.closing(Clock(batch_size=1, seconds_at_peak=None)) as clock:
        next(batches)
        clock.restart(0)
        for _ in range(3):
            numbers = Running(step)
            clock.started(numbers)
            clock.next(batches)
            numbers.block_until_ready()  # as the loop, which is one step ahead at most
        found = clock.numbers(3)["input_wait"]
    assert abs(found - share) < 0.2  # a busy machine wakes threads late
