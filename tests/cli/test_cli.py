"""The commands as a person meets them: what they write, and what a mistake prints."""

import json
import os
import runpy
import signal
import subprocess
import sys

import cv2
import numpy as np
import pytest

from mtmamba_jax.cli import main as cli
from mtmamba_jax.messages import program_name
from mtmamba_jax.tasks.table import SEMSEG_NYUDV2
from mtmamba_jax.training.stopping import StoppedError
from mtmamba_jax.training.train import train
from tests.tiny import tiny_config

MISTAKES = [
    (["trian"], 2, "Unknown command 'trian'. Did you mean 'train'?"),
    (["train", "--config=synthetc"], 2, "Unknown config 'synthetc'. Did you mean 'synthetic'?"),
    (["train", "--config.train.step=3"], 2, "Did you mean 'train.steps'?"),
    (["train", "--config.train.steps"], 2, "--config.train.steps has no value"),
    (["train", "--config.tasks.names=dept"], 2, "Unknown task 'dept'"),
    (["train", "--config.model.encoder=swin_larg"], 2, "Did you mean 'swin_large'?"),
    (["train", "--config.model.name=mtmanba"], 2, "Did you mean 'mtmamba'?"),
    (["train", "--config.model.dtype=float16"], 2, "config key 'model.dtype', 'float16'"),
    (["train", "--config.model.remat=all"], 2, "config key 'model.remat', 'all'"),
    (["train", "--config.data.name=imagenet"], 2, "config key 'data.name', 'imagenet'"),
    (["train", "--wordkir=x"], 2, "Did you mean '--workdir'?"),
    (["eval", "--workdir=nowhere"], 2, "nowhere holds no run"),
    (["predict", "--workdir=nowhere", "photo.jpg"], 2, "nowhere holds no run"),
    (["--wrong", "train"], 2, "Unknown argument '--wrong' of train"),
    (
        ["train", "--config.data.size=96"],
        2,
        "'data.size' must be two integers in",
    ),
    (["train", "--config.train.log_every=0"], 2, "'train.log_every' must be in [1, 2**31); got 0"),
    (["train", "--config.tasks.baselines.dept=1"], 2, "Did you mean 'tasks.baselines.depth'?"),
    (["train", "--config.tasks.baselines.depth=low"], 2, "'tasks.baselines.depth' wants a float"),
    (
        ["train", "--config.augment.scale=(2.0,1.0)"],
        2,
        "'augment.scale' must be two ascending",
    ),
    (["train", "--config.tasks.names=1"], 2, "Unknown task"),
    (["train", f"--config.seed={2**63}"], 2, "'seed' must be in [0, 2**31)"),
    (["train", "--config.loss.scheme=logs"], 2, "Did you mean 'log'?"),
    (["train", "--config.model.scan_implementation=xl"], 2, "Did you mean 'xla'?"),
    (["train", "--config.model.decoder_drop_path_rate=1.0"], 2, "must be in [0, 1); got 1.0"),
    (["train", "--config.train.microbatches=3"], 2, "does not split into train.microbatches=3"),
    (
        ["train", "--config.train.microbatches=2", "--config.loss.reduction=batch"],
        2,
        "cannot be combined with train.microbatches > 1. Use loss.reduction='image'",
    ),
    (["train", "--config.tasks.baselines.depth=1.0"], 2, "tasks.baselines has no value for semseg"),
]


@pytest.mark.parametrize(("arguments", "code", "message"), MISTAKES, ids=lambda v: str(v)[:40])
def test_mistake_prints_one_message_without_a_stack_trace_and_writes_nothing(
    arguments, code, message, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "Traceback" not in error
    assert list(tmp_path.iterdir()) == []


def test_module_is_the_command_line_and_suggests_itself(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/site/mtmamba_jax/__main__.py", "eval", "--workdir=nowhere"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("mtmamba_jax", run_name="__main__")
    assert ended.value.code == 2
    assert "nowhere holds no run" in capsys.readouterr().err
    assert program_name() == "python -m mtmamba_jax"


def test_a_message_of_the_kernels_is_one_line_of_standard_error():
    program = """
import logging
from mtmamba_jax.cli import main
main._show_log()
logging.warning("another library calls logging.basicConfig")
logging.getLogger("mtmamba_jax.kernels.ss2d.api").info("The scan runs pallas_gpu.")
"""
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert ran.stderr.splitlines()[1:] == ["The scan runs pallas_gpu."]


def test_a_peak_rate_that_is_never_reached_is_one_note(monkeypatch, capsys):
    monkeypatch.setattr("mtmamba_jax.cli.train.train", stop_at_once)
    cli.main(["train", "--config.train.steps=20"])  # as many as synthetic's steps of warmup
    note = "note: the learning rate never reaches 0.003: optimizer.warmup_steps=20 is not below"
    assert note in capsys.readouterr().out
    cli.main(["train", "--config.train.steps=21"])
    assert "note:" not in capsys.readouterr().out


def stop_at_once(*arguments, **options):
    raise StoppedError(0, signal.SIGINT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "The following arguments are required: COMMAND. mtmamba --help lists"),
        (["predict"], "The following arguments are required: --workdir, photos. mtmamba predict"),
        (["export", "--format=x"], "Argument --format: invalid choice: 'x' (choose from"),
    ],
)
def test_a_wrong_command_line_is_one_line_like_other_errors(
    arguments, message, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", ["mtmamba"])
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_a_suggested_command_can_be_pasted(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["/somewhere/launch.py"])
    assert cli.main(["eval", "--workdir=/no where"]) == 2
    suggested = "Create one: python launch.py train '--workdir=/no where'\n"
    assert capsys.readouterr().err.endswith(suggested)


@pytest.mark.parametrize(
    "arguments",
    [
        ["boundaries", "--dataset=nyudv2", "--predictions=x", "--labels=x", "--output=file/a"],
        pytest.param(
            ["benchmark", "--what=ss2d", "--output=/proc/a"],
            marks=pytest.mark.skipif(not os.path.isdir("/proc"), reason="needs Linux's /proc"),
        ),
    ],
)
def test_a_place_for_results_is_checked_before_the_work(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"")
    assert cli.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {arguments[-1]} cannot be written")
    assert error.endswith("Fix that, or give another --output.\n")


def test_traceback_flag_shows_where_an_error_comes_from(tmp_path):
    with pytest.raises(ValueError, match="holds no run"):
        cli.main(["eval", f"--workdir={tmp_path}", "--traceback"])


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run")
    train(tiny_config(), path)
    return path


def test_eval_prints_scores_beside_the_constant_and_writes_them(workdir, capsys):
    assert cli.main(["eval", f"--workdir={workdir}"]) == 0
    output = capsys.readouterr().out
    assert "semseg" in output
    assert "constant" in output
    assert (workdir / "scores_best.json").exists()
    assert str(workdir / "scores_best.json") in output
    written = json.loads((workdir / "scores_best.json").read_text())
    ious = written["class_iou"]["semseg"]
    assert list(ious) == list(SEMSEG_NYUDV2.class_names)
    assert np.mean(list(ious.values())) == pytest.approx(written["scores"]["semseg"]["mIoU"])
    assert f"{ious['wall']:.2f}" in output
    assert f"delta1 {written['scores']['depth']['delta1']:.3f} %" in output
    assert "against the best constant predictions" in output
    assert "confusion_semseg.png" in output
    assert cv2.imread(str(workdir / "confusion_semseg.png")) is not None


def test_eval_of_a_checkpoint_that_is_not_there_says_when_it_will_be(workdir, tmp_path, capsys):
    (tmp_path / "config.json").write_bytes((workdir / "config.json").read_bytes())
    assert cli.main(["eval", f"--workdir={tmp_path}"]) == 2
    assert "no best checkpoint yet" in capsys.readouterr().err


def write_photo(path, height, width, channels=3):
    random = np.random.default_rng(height)
    shape = (height, width, channels) if channels > 1 else (height, width)
    cv2.imwrite(str(path), random.integers(0, 255, shape, dtype=np.uint8))


def test_predict_takes_photos_of_any_kind_and_reports_those_it_cannot_read(
    workdir, tmp_path, capsys
):
    photos, output = tmp_path / "photos", tmp_path / "out"
    (photos / "more").mkdir(parents=True)
    write_photo(photos / "wide.jpg", 40, 150)
    write_photo(photos / "tall.png", 90, 20)
    write_photo(photos / "grey.png", 31, 33, channels=1)
    write_photo(photos / "alpha.png", 64, 64, channels=4)
    write_photo(photos / "more" / "wide.png", 600, 700)
    (photos / "broken.jpg").write_bytes(b"<html>not an image</html>")
    (photos / "empty.png").write_bytes(b"")
    code = cli.main(
        ["predict", f"--workdir={workdir}", str(photos), f"--output={output}", "--overlay"]
    )
    captured = capsys.readouterr()
    assert code == 1
    assert "broken.jpg: not an image" in captured.err
    assert "empty.png: the file is empty" in captured.err
    assert "Wrote 5 of 7 photos" in captured.out
    sizes = {
        "wide": (600, 700), "wide_2": (40, 150), "tall": (90, 20), "grey": (31, 33),
        "alpha": (64, 64),
    }  # fmt: skip
    assert sorted(path.name for path in output.iterdir()) == sorted(sizes)
    for name, size in sizes.items():
        depth, classes = (np.load(output / name / f"{t}.npy") for t in ("depth", "semseg"))
        assert depth.shape == classes.shape == size
        assert depth.dtype == np.float32
        assert classes.max() < 40
        for picture in ("depth", "semseg", "overlay"):
            assert cv2.imread(str(output / name / f"{picture}.png")).shape == (*size, 3)
        assert (output / name / "panel.png").exists()


def test_predict_names_what_is_missing_and_does_the_rest(workdir, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    write_photo(tmp_path / "photo.png", 8, 300)
    paths = [str(tmp_path / name) for name in ("empty", "missing.jpg", "photo.png", "photo.png")]
    output = tmp_path / "out"
    assert cli.main(["predict", f"--workdir={workdir}", *paths, f"--output={output}"]) == 1
    captured = capsys.readouterr()
    assert "empty: holds no photo" in captured.err
    assert "missing.jpg: does not exist" in captured.err
    assert [path.name for path in output.iterdir()] == ["photo"]


def test_predict_says_which_folder_is_of_which_of_two_photos_of_one_name(
    workdir, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(workdir.parent)
    photos = [tmp_path / name for name in ("x/a.png", "y/a.png", "b.png")]
    for photo in photos:
        photo.parent.mkdir(exist_ok=True)
        write_photo(photo, 8, 8)
    output = tmp_path / "out"
    arguments = [f"--workdir={workdir.name}", *map(str, photos), f"--output={output}"]
    assert cli.main(["predict", *arguments]) == 0
    printed = capsys.readouterr().out
    assert f"photo.json says: {output}/a of {photos[0]}, {output}/a_2 of {photos[1]}\n" in printed
    assert "Wrote 3 of 3 photos" in printed
    record = json.loads((output / "b" / "photo.json").read_text())
    assert (record["photo"], record["workdir"]) == (str(photos[2]), str(workdir))


def test_predict_checks_its_output_first_and_leaves_no_empty_folder(workdir, tmp_path, capsys):
    (tmp_path / "file").write_bytes(b"")
    output = f"--output={tmp_path / 'file'}"
    assert cli.main(["predict", "--workdir=nowhere", str(tmp_path), output]) == 1
    reason = f"error: {output} cannot be written to (Not a directory). Fix that, or give another"
    assert capsys.readouterr().err == f"{reason} --output.\n"
    (tmp_path / "broken.png").write_bytes(b"broken")
    arguments = [f"--workdir={workdir}", str(tmp_path / "broken.png"), f"--output={tmp_path}/new"]
    assert cli.main(["predict", *arguments]) == 1
    assert not (tmp_path / "new").exists()


def test_predict_draws_features_beside_the_same_predictions(workdir, tmp_path):
    write_photo(tmp_path / "photo.png", 50, 70)
    for name, flags in (("plain", []), ("more", ["--features"])):
        arguments = [str(tmp_path / "photo.png"), f"--output={tmp_path / name}", *flags]
        assert cli.main(["predict", f"--workdir={workdir}", *arguments]) == 0
    plain, more = tmp_path / "plain" / "photo", tmp_path / "more" / "photo"
    new = {path.name for path in more.iterdir()} - {path.name for path in plain.iterdir()}
    assert new == {"features.png"}
    assert cv2.imread(str(more / "features.png")).shape[1] > 3 * 300
    # A program with more outputs may round otherwise.
    depths = [np.load(folder / "depth.npy") for folder in (plain, more)]
    np.testing.assert_allclose(*depths, rtol=1e-4, atol=1e-5)


def test_predict_refuses_a_wrong_size(workdir, tmp_path, capsys):
    write_photo(tmp_path / "a.png", 8, 8)
    arguments = ["predict", f"--workdir={workdir}", str(tmp_path), "--size=big"]
    assert cli.main(arguments) == 2
    assert "HEIGHTxWIDTH" in capsys.readouterr().err
