"""Where a run writes: places that it refuses."""

import pytest

from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.training.train import train
from tests.tiny import tiny_config


@pytest.mark.parametrize("place", ["s3://bucket/run", "file:///run"])
def test_places_that_are_not_written_to_are_refused(place):
    message = rf"--workdir={place}: runs are not written to \w+://. Give a folder, or a place in"
    with pytest.raises(ValueError, match=message):
        train(tiny_config(), place)
    with pytest.raises(ValueError, match=message):
        load_run(place, "best")
