"""Sweeps: which runs they train, that finished runs are skipped, and when they stop."""

import pathlib
import shlex
import signal

import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.cli import main as cli
from mtmamba_jax.training.stopping import StoppedError
from tests.pixel_model import build_pixel_model
from tests.tiny import TINY

NAME = "ablations_synthetic"
TINY_FLAGS = [f"--config.{key}={value}" for key, value in TINY.items() if key != "tasks.names"]


def sweep(workdir, *flags):
    return cli.main(["sweep", f"--config={NAME}", f"--workdir={workdir}", *flags])


def printed(workdir, capsys, *flags):
    """Returns configuration and work directory of the commands that a sweep prints."""
    assert sweep(workdir, "--print", *flags) == 0
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    return [(line[line.index("train") + 1], line[-1]) for line in lines]


@pytest.fixture
def trained(monkeypatch):
    """Replaces training: records the run and writes what a finished run leaves."""
    names = []

    def run(config, workdir):
        names.append(workdir.rsplit("/", 1)[1])
        if "fails" in config.data.dir:
            raise OSError("the disk is full")
        if "stops" in config.data.dir and names[-1] == "stm_2_seed0":
            raise StoppedError(8, signal.SIGINT)
        finish(config, workdir)
        return signal.SIGTERM if "ends" in config.data.dir else None

    monkeypatch.setattr("mtmamba_jax.cli.train.train_once", run)
    return names


def finish(config, workdir):
    workdir = pathlib.Path(workdir)
    for kind in ("best", "latest"):
        (workdir / kind / str(config.train.steps)).mkdir(parents=True)
    RunDirectory(workdir).write_config(config)


def test_print_lists_a_train_command_for_every_row_and_seed(tmp_path, capsys):
    found = printed(tmp_path, capsys)
    assert len(found) == len(configuration.variants(NAME)) == 13
    flags = ("--rows=stm_2,single_task_d*", "--seeds=3,1", "--config.train.steps=7")
    assert printed(tmp_path, capsys, *flags) == [
        (f"--config={NAME}:{row}", f"--workdir={tmp_path}/{row}_seed{seed}")
        for seed in (3, 1)
        for row in ("single_task_depth", "stm_2")
    ]
    assert sweep(tmp_path, "--print", *flags) == 0
    (first, *_) = capsys.readouterr().out.splitlines()
    assert "--config.seed=3 --config.train.steps=7" in first
    assert list(tmp_path.iterdir()) == []


def test_finished_runs_are_skipped_and_others_trained_in_order(tmp_path, trained, capsys):
    flags = ("--rows=stm_*", "--config.data.dir=here")
    assert sweep(tmp_path, "--rows=stm_2", "--config.data.dir=here") == 0
    assert trained == ["stm_2_seed0"]
    assert sweep(tmp_path, *flags) == 0
    assert trained == ["stm_2_seed0", "stm_1_seed0", "stm_3_seed0"]
    output = capsys.readouterr().out
    assert "3 runs in" in output and "1 of them finished" in output
    assert f"tables --runs={tmp_path}" in output
    assert printed(tmp_path, capsys, *flags) == []


def test_a_failing_run_does_not_prevent_the_others(tmp_path, trained, capsys):
    assert sweep(tmp_path, "--rows=stm_*", "--config.data.dir=fails") == 1
    assert trained == ["stm_1_seed0", "stm_2_seed0", "stm_3_seed0"]
    error = capsys.readouterr().err
    assert f"{tmp_path}/stm_1_seed0: the disk is full" in error
    assert "3 of 3 runs failed" in error


def test_stopping_a_run_stops_the_sweep(tmp_path, trained, capsys):
    assert sweep(tmp_path, "--rows=stm_*", "--config.data.dir=stops") == 130
    assert trained == ["stm_1_seed0", "stm_2_seed0"]
    output = capsys.readouterr().out
    assert output.endswith(
        "Stopped by SIGINT after step 8, which is saved. The same command resumes from there.\n"
    )
    assert output.count("Stopped") == 1


def test_a_signal_at_the_end_of_a_run_stops_the_sweep(tmp_path, trained, capsys):
    assert sweep(tmp_path, "--rows=stm_*", "--config.data.dir=ends") == 0
    assert trained == ["stm_1_seed0"]
    output = capsys.readouterr().out
    assert "Stopped by SIGTERM. Run the same command to resume." in output
    assert "All runs are finished" not in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=ablations", "--rows=smt_1"], "no row 'smt_1'. Did you mean 'stm_1'?"),
        (["--config=ablations:stm_1"], "Use --config=ablations --rows=stm_1."),
        (["--config=custom"], "'custom' has none"),
        (["--config=ablatoins"], "Did you mean 'ablations'?"),
        (["--config=ablations", "--seeds=0,0"], "--seeds must be distinct numbers"),
        (["--config=ablations", "--seeds=one"], "--seeds must be distinct numbers"),
        (["--config=ablations", "--config.seed=1"], "as --seeds=0,1, not as --config.seed"),
        (["--config=ablations", "--config.train.step=1"], "Did you mean 'train.steps'?"),
        (["--config=ablations", "--num_processes=2"], "--coordinator, --process_id missing: give"),
    ],
)
def test_mistakes_are_reported_before_training(flags, message, trained, capsys):
    assert cli.main(["sweep", *flags]) == 2
    assert message in capsys.readouterr().err
    assert trained == []


def test_a_finished_run_of_another_configuration_is_refused(tmp_path, trained, capsys):
    assert sweep(tmp_path, "--rows=stm_1", "--config.data.dir=here") == 0
    assert sweep(tmp_path, "--rows=stm_1", "--config.optimizer.learning_rate=0.5") == 2
    error = capsys.readouterr().err
    assert f"{tmp_path}/stm_1_seed0 holds a finished run of another configuration" in error
    assert "optimizer.learning_rate: 0.003 -> 0.5" in error


@pytest.mark.parametrize("replace_model", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_sweep_trains_runs_whose_scores_tables_prints(
    replace_model, tmp_path, monkeypatch, capsys
):
    if replace_model:  # by one that compiles at once
        monkeypatch.setattr("mtmamba_jax.training.state.build", build_pixel_model)
    flags = ("--rows=single_task_depth", *TINY_FLAGS, "--config.train.steps=2")
    assert sweep(tmp_path, *flags) == 0
    assert f"[1 of 1] {NAME}:single_task_depth, seed 0" in capsys.readouterr().out
    assert cli.main(["tables", f"--runs={tmp_path}"]) == 0
    assert "| Single-task 2*Swin | swin_test |      1 |" in capsys.readouterr().out
    assert printed(tmp_path, capsys, *flags) == []
