"""The command `prepare`, as a user calls it."""

import cv2
import pytest

from mtmamba_jax.cli.main import main
from mtmamba_jax.data_pipelines.datasets import DATASETS
from tests.data_pipelines.dummy_trees import ROOT


def prepare(name, tmp_path, *arguments):
    source = f"--source={ROOT / name / 'dummy_data'}"
    fixed = ["prepare", f"--dataset={name}", f"--data_dir={tmp_path}", "--workers=0"]
    return main([*fixed, source, "--allow_partial", *arguments])


@pytest.mark.parametrize("name", DATASETS)
def test_prepare_says_what_it_wrote_and_draws_it(name, tmp_path, capsys):
    assert prepare(name, tmp_path, "--check") == 0
    text = capsys.readouterr().out
    assert "records can be read" in text
    # The dummy trees of the others have no training examples.
    proposed = f"train --config={name} --config.data.dir={tmp_path}" in text
    assert proposed == (name == "cityscapes")
    sheet = cv2.imread(str(tmp_path / name / "1.0.0" / "samples.png"))
    assert sheet.std() > 20  # something is drawn


def test_a_second_call_leaves_what_is_there(tmp_path, capsys):
    prepare("nyudv2", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert prepare("nyudv2", tmp_path) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert "nyudv2 is prepared already" in capsys.readouterr().out


def test_a_part_is_not_taken_for_the_whole(tmp_path, capsys):
    prepare("nyudv2", tmp_path)
    source = f"--source={ROOT / 'nyudv2' / 'dummy_data'}"
    assert main(["prepare", "--dataset=nyudv2", f"--data_dir={tmp_path}", source]) == 2
    error = capsys.readouterr().err
    assert "holds a part of the dataset: {'val': 3} of {'train': 795, 'val': 654}" in error
    assert "Delete it to prepare all, or take the part with --allow_partial" in error


def test_a_folder_copied_in_part_is_named(tmp_path, capsys):
    folder = tmp_path / "nyudv2" / "1.0.0"
    folder.mkdir(parents=True)
    assert prepare("nyudv2", tmp_path) == 2
    assert f"{folder} is no whole dataset" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dataset=nyudv"], "Did you mean 'nyudv2'?"),
        (["--dataset=nyudv2"], "not prepared in"),
        (["--dataset=nyudv2", "--source=nowhere"], "nowhere does not exist"),
        (["--dataset=nyudv2", "--source=.", "--workers=-1"], "--workers: wanted 0 or more"),
        (["--dataset=nyudv2", "--source=gs://bucket/NYUDv2.zip"], "Copy it here first"),
        (["--dataset=nyudv2", f"--source={__file__}"], "test_prepare.py is no archive (.tar"),
    ],
)
def test_what_cannot_work_is_told_in_a_line(arguments, message, tmp_path, capsys):
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
    assert "nyudv2, val record 0 is wrong" in error
    assert "prepare the dataset again" in error
