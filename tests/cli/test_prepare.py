"""The command `prepare`, as a user calls it."""

import cv2
import pytest

from mtmamba_jax.cli.main import main
from mtmamba_jax.data_pipelines.datasets import DATASETS
from tests.data_pipelines.dummy_trees import ROOT


def prepare(name, data_dir, *arguments):
    source = f"--source={ROOT / name / 'dummy_data'}"
    fixed = ["prepare", f"--dataset={name}", f"--data_dir={data_dir}", "--workers=0"]
    return main([*fixed, source, "--allow_partial", *arguments])


@pytest.mark.parametrize("name", DATASETS)
def test_prepare_reports_the_records_and_draws_samples(name, tmp_path, capsys):
    assert prepare(name, tmp_path, "--check") == 0
    text = capsys.readouterr().out
    assert "Every record can be read" in text
    # Only the dummy tree of Cityscapes has training examples.
    proposed = f"train --config={name} --config.data.dir={tmp_path}" in text
    assert proposed == (name == "cityscapes")
    sheet = cv2.imread(str(tmp_path / name / "1.0.0" / "samples.png"))
    assert sheet.std() > 20  # not blank


def test_a_second_call_changes_nothing(tmp_path, capsys):
    prepare("nyudv2", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare("nyudv2", tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "nyudv2 is prepared already" in capsys.readouterr().out


def test_a_partial_dataset_is_refused_without_allow_partial(tmp_path, capsys):
    prepare("nyudv2", tmp_path)
    source = f"--source={ROOT / 'nyudv2' / 'dummy_data'}"
    assert main(["prepare", "--dataset=nyudv2", f"--data_dir={tmp_path}", source]) == 2
    error = capsys.readouterr().err
    assert "holds a part of the dataset: {'val': 3} of {'train': 795, 'val': 654}" in error
    assert "Delete it to prepare all, or pass --allow_partial to use the part" in error


def test_an_incomplete_copy_is_refused(tmp_path, capsys):
    folder = tmp_path / "nyudv2" / "1.0.0"
    folder.mkdir(parents=True)
    assert prepare("nyudv2", tmp_path) == 2
    assert f"{folder} is not a complete dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=nyudv"], "Did you mean 'nyudv2'?"),
        (["--dataset=nyudv2"], "not prepared in"),
        (["--dataset=nyudv2", "--source=nowhere"], "nowhere does not exist"),
        (["--dataset=nyudv2", "--source=.", "--workers=-1"], "--workers must be 0 or more, got -1"),
        (["--dataset=nyudv2", "--source=gs://bucket/NYUDv2.zip"], "Copy it here first"),
        (["--dataset=nyudv2", f"--source={__file__}"], "test_prepare.py is not an archive (.tar"),
    ],
)
def test_invalid_arguments_end_with_a_message_and_no_traceback(
    arguments, message, tmp_path, capsys
):
    assert main(["prepare", *arguments, f"--data_dir={tmp_path}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_check_names_a_damaged_record(tmp_path, capsys):
    prepare("nyudv2", tmp_path)
    (shard,) = (tmp_path / "nyudv2").rglob("*.array_record*")
    data = bytearray(shard.read_bytes())
    middle = data.index(b"\x89PNG") + 1000  # inside the first record
    data[middle : middle + 50] = bytes(50)
    shard.write_bytes(bytes(data))
    assert prepare("nyudv2", tmp_path, "--check") == 2
    error = capsys.readouterr().err
    assert "nyudv2, val record 0 is invalid" in error
    assert "prepare the dataset again" in error
