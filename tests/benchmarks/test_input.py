"""The benchmark of the input pipeline: what it prints and writes. No speed is asserted."""

import json

import pytest

from mtmamba_jax.benchmarks import input as input_benchmark
from mtmamba_jax.cli import main as cli
from tests.data_pipelines.own_data import write_folder


def test_worker_counts_are_powers_of_two_up_to_the_cores():
    assert input_benchmark.worker_counts(1) == [0, 1]
    assert input_benchmark.worker_counts(2) == [0, 1, 2]
    assert input_benchmark.worker_counts(6) == [0, 1, 2, 4, 6]
    assert input_benchmark.worker_counts(8) == [0, 1, 2, 4, 8]


def check_output(path, out, workers, repeats):
    document = json.loads(path.read_text())
    assert document["what"] == "input"
    assert document["device"]["cores"] >= 1
    assert {"numpy", "grain", "python"} <= document["versions"].keys()
    assert document["settings"]["repeats"] == repeats
    assert [record["workers"] for record in document["records"]] == workers
    for record in document["records"]:
        rates = record["sample_images_per_second"]
        assert len(rates) == repeats
        assert 0 < min(rates) <= record["images_per_second"] <= max(rates)
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + len(workers)
    assert len({len(line) for line in table}) == 1
    return document["settings"]


def test_each_number_of_workers_has_a_row_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_benchmark, "worker_counts", lambda cores: [0, 1])
    monkeypatch.chdir(tmp_path)
    keys = {"data.size": "32,64", "data.train_examples": 4, "train.batch_size": 2}
    arguments = [f"--config.{key}={value}" for key, value in keys.items()]
    assert cli.main(["benchmark", "--what=input", "--repeats=3", *arguments]) == 0
    settings = check_output(
        tmp_path / "benchmark_input.json", capsys.readouterr().out, workers=[0, 1], repeats=3
    )
    assert settings["config_name"] == "synthetic"
    assert settings["config"]["train.batch_size"] == 2


def test_the_data_of_a_configuration_is_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_benchmark, "worker_counts", lambda cores: [0])
    folder, output = tmp_path / "my_data", tmp_path / "out.json"
    write_folder(folder)
    keys = {"data.dir": folder, "tasks.names": "depth", "data.size": "32,64"}
    arguments = [f"--config.{key}={value}" for key, value in keys.items()]
    command = ["benchmark", "--what=input", "--config=custom", "--repeats=1", f"--output={output}"]
    assert cli.main([*command, *arguments]) == 0
    out = capsys.readouterr().out
    assert f"{folder}: 6 images to train on" in out
    check_output(output, out, workers=[0], repeats=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nyudv2", "--config.data.dir=nowhere"], "nyudv2 is not prepared in nowhere"),
        (["--config=custom", "--config.data.dir=nowhere"], "nowhere is not a folder"),
    ],
)
def test_missing_data_is_answered_with_the_remedy(
    arguments, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["benchmark", "--what=input", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
