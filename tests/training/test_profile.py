"""Traces of some steps."""

import pytest

from mtmamba_jax.cli import main as cli
from mtmamba_jax.training import state
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config


def test_the_steps_that_are_named_are_traced(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(state, "build", build_pixel_model)
    train(tiny_config(train__steps="6", train__eval_every="6"), tmp_path, profile=(3, 4))
    traces = list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert len(traces) == 1
    assert traces[0].stat().st_size > 0
    train(tiny_config(train__steps="6", train__eval_every="6"), tmp_path, profile=(3, 4))
    assert "warning: step 3 is done already: nothing is traced" in capsys.readouterr().out
    assert list((tmp_path / "profile").rglob("*.xplane.pb")) == traces


@pytest.mark.parametrize("text", ["3", "4:3", "0:2", "1:301", "a:b"])
def test_steps_that_cannot_be_traced_are_refused(text, tmp_path, capsys):
    arguments = ["--config.train.steps=300", f"--workdir={tmp_path}/run", f"--profile={text}"]
    assert cli.main(["train", *arguments]) == 2
    assert "--profile wants START:STOP, steps of the run from 1 to 300" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
