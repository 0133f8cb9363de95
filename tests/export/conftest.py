"""Fixtures of tests of artifacts."""

import pytest

from mtmamba_jax.checkpoints import load as runs
from mtmamba_jax.export import program as export
from tests.export.artifacts import write_run
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config


@pytest.fixture
def pixel_run(tmp_path, monkeypatch):
    """A run of the pixel model, which compiles quickly."""
    monkeypatch.setattr(runs, "abstract_build", build_pixel_model)
    monkeypatch.setattr(export, "abstract_build", build_pixel_model)
    config = tiny_config(data__dir="/home/somebody/data")
    _, parameters = build_pixel_model(config, config.tasks.selected)
    write_run(tmp_path / "run", config, parameters)
    return tmp_path / "run"
