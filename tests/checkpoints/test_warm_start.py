"""Initial weights from another run."""

import jax
import numpy as np
import pytest

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.save import CheckpointWriter
from mtmamba_jax.checkpoints.warm_start import warm_start
from mtmamba_jax.models.mtmamba import build
from mtmamba_jax.tasks.table import NYUDV2
from mtmamba_jax.training import state
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config


def parameters_of(**overrides):
    config = tiny_config(**overrides)
    return build(config.model, config.tasks.selected, config.seed)[1]


def begin(settings, parameters):
    return warm_start(settings, None, parameters)  # only files of PyTorch ask for the structure


def saved(folder, parameters):
    """Saves parameters as the best of a run and returns its work directory."""
    checkpoints = CheckpointWriter(RunDirectory(folder), config={})
    checkpoints.save_best({"parameters": parameters}, 3, {"delta_m": 1.0})
    checkpoints.close()
    return str(folder)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two runs: work directory and weights."""
    found = {seed: parameters_of(seed=seed) for seed in ("1", "2")}
    return {
        seed: (saved(tmp_path_factory.mktemp("run") / "run", parameters), parameters)
        for seed, parameters in found.items()
    }


def settings_of(**init):
    return tiny_config(**{f"init__{key}": value for key, value in init.items()}).init


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_weights_come_from_the_run_and_the_encoder_that_the_configuration_names(runs, capsys):
    own = parameters_of()
    assert begin(settings_of(), own) is own
    (first, weights), (second, others) = runs["1"], runs["2"]
    assert_equal(begin(settings_of(run=first), own), weights)
    assert f"config.init.run: weights of {first}/best/3" in capsys.readouterr().out
    assert_equal(begin(settings_of(encoder=first), own), own | {"encoder": weights["encoder"]})
    # The encoder's go before the run's.
    found = begin(settings_of(run=second, encoder=first), own)
    assert_equal(found, others | {"encoder": weights["encoder"]})


def test_an_encoder_fits_a_model_of_other_tasks(runs):
    own = parameters_of(tasks__names="('depth',)", model__state_size="3")
    found = begin(settings_of(encoder=runs["1"][0]), own)
    assert_equal(found, own | {"encoder": runs["1"][1]["encoder"]})


def test_what_differs_is_listed_with_names_and_shapes(runs):
    own = parameters_of(tasks__names="('semseg', 'normals')", tasks__classes="('a', 'b')")
    with pytest.raises(ValueError) as error:
        begin(settings_of(run=runs["1"][0]), own)
    message = str(error.value)
    assert f"The weights of config.init.run={runs['1'][0]} do not fit the model" in message
    lacks, more, shapes = (
        message.split("missing from it:")[1]
        .replace("other shapes", "|")
        .replace("missing from the model:", "|")
        .split("|")
    )
    assert "heads/projections/normals/kernel" in lacks
    assert "heads/projections/depth/kernel" in more
    assert "heads/projections/semseg/kernel [8, 40] -> [8, 2]" in shapes
    assert "config.init.encoder" in message


@pytest.mark.parametrize("key", ["run", "encoder"])
def test_a_folder_without_a_checkpoint_is_refused(key, tmp_path):
    with pytest.raises(ValueError, match=rf"config.init.{key}={tmp_path} holds no checkpoint"):
        begin(settings_of(**{key: str(tmp_path)}), parameters_of())


def test_a_name_that_reads_as_a_number_is_a_folder(tmp_path):
    with pytest.raises(ValueError, match=r"config.init.run=3 holds no checkpoint"):
        train(tiny_config(init__run="3"), tmp_path)


@pytest.mark.parametrize("part", ["**/*", "d/*"])
def test_a_damaged_checkpoint_is_named(part, tmp_path):
    own = parameters_of()
    place = saved(tmp_path / "run", own)
    for path in (tmp_path / "run" / "best" / "3" / "parameters").rglob(part):
        if path.is_file():
            path.write_bytes(b"")
    with pytest.raises(ValueError, match=rf"config.init.run: checkpoint {place}/best/3 cannot be"):
        begin(settings_of(run=place), own)


def test_a_run_starts_from_the_weights_of_another_unless_it_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(state, "build", build_pixel_model)
    weights = jax.tree.map(lambda x: np.asarray(x) + 1, build_pixel_model(None, NYUDV2[:2])[1])
    place = saved(tmp_path / "other", weights)
    # Nothing is learned at this rate, so the weights stay the initial ones.
    still = {"optimizer__learning_rate": "1e-30", "train__steps": "2", "init__run": place}
    train(tiny_config(**still), tmp_path / "run")
    latest = RunDirectory(tmp_path / "run").newest("latest")
    assert_equal(latest.read({"parameters": weights})["parameters"], weights)
    capsys.readouterr()
    train(tiny_config(**still), tmp_path / "run")
    assert "weights of" not in capsys.readouterr().out
