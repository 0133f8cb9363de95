"""The command eval: predictions as files, contours by the boundary benchmark."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import cv2
import numpy as np
import pytest
import scipy.io

from mtmamba_jax.checkpoints import load as runs
from mtmamba_jax.cli import main as cli
from mtmamba_jax.data_pipelines.sources import DataSettings, open_source
from mtmamba_jax.evaluation import evaluate
from mtmamba_jax.tasks.table import IGNORE, NYUDV2
from mtmamba_jax.training import state
from mtmamba_jax.training.train import train
from tests.bucket import BUCKET, serve_bucket
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config
from tests.training.test_processes import ROOT, finish, free_port, start_each

# Labels are twice as large as images, which are smaller than the batch's by odd numbers of pixels.
SIZES = [(64, 128), (59, 123), (58, 122), (64, 90), (39, 128)]
NAMES = [f"test/{i:06d}" for i in range(len(SIZES))]


class Uneven:
    """A source of images of other sizes."""

    def __init__(self, source):
        self.source = source

    def __len__(self):
        return len(self.source)

    def __getitem__(self, index):
        height, width = SIZES[index]
        example = self.source[index].items()
        return {n: v if n == "id" else v[:height, :width] for n, v in example}


def open_uneven(data: DataSettings, tasks, split):
    return Uneven(open_source(data, tasks, split))


@pytest.fixture(scope="module", autouse=True)
def pixel_model():
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((state, "build"), (state, "abstract_build"), (runs, "abstract_build")):
            patch.setattr(module, name, build_pixel_model)
        yield


def trained(folder, **settings):
    """Trains on all tasks but where told otherwise, for a moment."""
    train(tiny_config(**{"tasks__names": "()", "train__steps": "8", **settings}), folder)
    return folder


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """The work directory after all that eval does, with images of uneven sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "open_source", open_uneven)
        workdir = trained(tmp_path_factory.mktemp("uneven"), data__label_scale="2")
        arguments = ["eval", f"--workdir={workdir}", "--save_predictions", "--odsf", "--workers=2"]
        assert cli.main(arguments) == 0
    return workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """A work directory whose test set any process makes."""
    return trained(tmp_path_factory.mktemp("plain"), eval__batch_size="4")


def labels(workdir, opened=open_source):
    """Returns the test set's labels by id, at the size that is scored."""
    run = runs.load_run(workdir, "best")
    source, scale = opened(run.config.data, run.tasks, "test"), run.config.data.label_scale
    found = {}
    for i in range(len(source)):
        example = source[i]
        height, width = (n // scale * scale for n in example["image"].shape[:2])
        found[example["id"]] = {
            task.name: example[task.name][:height, :width] for task in run.tasks
        }
    return found


def write_edges(found, folder, number=1):
    for name, label in found.items():
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), number * label["edge"][..., 0].astype(np.uint8))
    return folder


def read_png(path):
    return cv2.imread(str(path), cv2.IMREAD_UNCHANGED)


def files_below(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def scores_of(workdir):
    return json.loads((workdir / "scores_best.json").read_text())


def test_odsf_is_that_of_the_saved_predictions(evaluated, tmp_path):
    true = write_edges(labels(evaluated, open_uneven), tmp_path / "labels")
    arguments = [
        "--dataset=pascal_context",  # whose distance is taken where none is published
        "--label_kind=contours",
        "--workers=0",
        f"--predictions={evaluated / 'predictions_best' / 'edge'}",
        f"--labels={true}",
        f"--output={tmp_path / 'out'}",
    ]
    assert cli.main(["boundaries", *arguments]) == 0
    ours, theirs = (folder for folder in (evaluated / "boundaries_best", tmp_path / "out"))
    assert (ours / "curve.csv").read_text() == (theirs / "curve.csv").read_text()
    found, wanted = (json.loads((f / "boundaries.json").read_text()) for f in (ours, theirs))
    assert found["scores"] == wanted["scores"]
    assert found["images"] == wanted["images"] == len(NAMES)
    assert 0 < found["scores"]["odsF"] < 100
    assert found.keys() - {"step"} == wanted.keys()


def test_odsf_is_beside_the_edges_other_scores(evaluated):
    written = scores_of(evaluated)
    benchmark = json.loads((evaluated / "boundaries_best" / "boundaries.json").read_text())
    assert written["scores"]["edge"].items() >= benchmark["scores"].items()
    assert "maxF" in written["scores"]["edge"]
    assert written["boundaries"] == {
        "dataset": "synthetic",
        "predictions": None,
        "labels": None,
        "ids": None,
        "label_kind": "contours",
        "max_distance": 0.0075,
        "only_published_images": False,
        "images": len(NAMES),
    }


def test_saved_predictions_have_the_scores_that_eval_prints(evaluated):
    folder, scores = evaluated / "predictions_best", scores_of(evaluated)["scores"]
    squares, hits, cosines = [], np.zeros((2, 40)), []
    for name, label in labels(evaluated, open_uneven).items():
        depth = scipy.io.loadmat(folder / "depth" / f"{name}.mat")["depth"]
        assert depth.dtype == np.float32
        true = label["depth"][..., 0]
        squares.append(((np.maximum(depth, 0) - true) ** 2)[true != IGNORE])
        classes, true = read_png(folder / "semseg" / f"{name}.png"), label["semseg"][..., 0]
        for number in range(40):
            a, b = (classes == number) & (true != IGNORE), true == number
            hits[:, number] += (a & b).sum(), (a | b).sum()
        colours = read_png(folder / "normals" / f"{name}.png")[..., ::-1]
        normals = colours / 127.5 - 1
        normals /= np.linalg.norm(normals, axis=-1, keepdims=True)
        scored = (label["normals"] != IGNORE).any(-1)
        cosines.append((normals * label["normals"]).sum(-1)[scored])
    assert np.sqrt(np.concatenate(squares).mean()) == pytest.approx(scores["depth"]["RMSE"])
    shares = hits[0] / np.maximum(hits[1], 1)
    assert 100 * shares.mean() == pytest.approx(scores["semseg"]["mIoU"])
    angles = np.degrees(np.arccos(np.clip(np.concatenate(cosines), -1, 1)))
    # Levels are 1/255 wide: half a degree at most.
    assert angles.mean() == pytest.approx(scores["normals"]["mErr"], abs=0.5)


def test_every_prediction_of_every_task_is_saved_and_nothing_else(evaluated):
    wanted = {f"{task.name}/{name}" for task in NYUDV2 for name in NAMES}
    found = set(files_below(evaluated / "predictions_best"))
    suffixes = {name: ".mat" if name.startswith("depth") else ".png" for name in wanted}
    assert found == {"predictions.json", *(name + suffixes[name] for name in wanted)}
    record = json.loads((evaluated / "predictions_best" / "predictions.json").read_text())
    assert set(record.pop("files")) == found - {"predictions.json"}
    assert record == {"workdir": str(evaluated), "step": 8, "images": len(NAMES)}


def evaluate_in(count, *arguments):
    """Has several processes, on four devices together, evaluate a pixel model."""
    command = [sys.executable, "-m", "tests.eval_of_several", str(free_port()), str(count)]
    finish(start_each(command, count, *arguments, "--odsf", "--workers=1"))


@pytest.fixture(scope="module")
def of_one_process(workdir):
    """The predictions that one process saves, what it writes beside the curve, and its odsF."""
    evaluate_in(1, f"--workdir={workdir}", "--save_predictions")
    return results(workdir, workdir / "predictions_best")


def results(workdir, predictions):
    odsf = scores_of(workdir)["scores"]["edge"]["odsF"]
    return files_below(predictions), files_below(workdir / "boundaries_best"), odsf


def test_several_processes_save_and_count_what_one_does(workdir, of_one_process, tmp_path):
    evaluate_in(2, f"--workdir={workdir}", f"--save_predictions={tmp_path}")
    assert len(of_one_process[0]) == 4 * len(NAMES) + 1
    assert results(workdir, tmp_path) == of_one_process


@pytest.mark.slow
def test_a_run_in_a_bucket_has_its_predictions_and_curve_there(
    workdir, of_one_process, tmp_path, monkeypatch
):
    place = f"gs://{BUCKET}/run"
    with serve_bucket() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)

        def copy(way, *arguments):
            code = f"import gcsfs, sys; gcsfs.GCSFileSystem().{way}(*sys.argv[1:], recursive=True)"
            subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=ROOT)

        copy("put", f"{workdir}/", place)
        evaluate_in(1, f"--workdir={place}", "--save_predictions")
        for name in ("predictions_best", "boundaries_best"):
            copy("get", f"{place}/{name}", str(tmp_path / name))
    predictions, boundaries, _ = of_one_process
    for name, wanted in (("predictions_best", predictions), ("boundaries_best", boundaries)):
        found = files_below(tmp_path / name)
        assert found.keys() == wanted.keys()
        # The record names the place.
        assert {n for n in found if found[n] != wanted[n]} <= {"predictions.json"}


def test_regions_of_a_folder_of_labels_are_the_true_contours_where_it_is_given(
    workdir, tmp_path, capsys
):
    folder = write_edges(labels(workdir), tmp_path / "labels", number=7)
    arguments = ["eval", f"--workdir={workdir}", "--odsf", "--workers=0"]
    assert cli.main(arguments) == 0
    contours = scores_of(workdir)
    assert cli.main([*arguments, f"--boundary_labels={folder}"]) == 0
    regions = scores_of(workdir)
    assert f"regions of labels from {folder}, matched within 0.0075" in capsys.readouterr().out
    assert regions["boundaries"]["label_kind"] == "regions"
    assert regions["scores"]["edge"]["odsF"] != contours["scores"]["edge"]["odsF"]
    (folder / f"{NAMES[3]}.png").unlink()
    assert cli.main([*arguments, f"--boundary_labels={folder}"]) == 2
    assert f"has no label of {NAMES[3]}" in capsys.readouterr().err
    cv2.imwrite(str(folder / f"{NAMES[3]}.png"), np.zeros((9, 8), np.uint8))
    assert cli.main([*arguments, f"--boundary_labels={folder}"]) == 2
    assert f"is 32x64 (height x width), its label in {folder} 9x8" in capsys.readouterr().err
    # What was scored before is kept, but not an odsF of other labels.
    assert "maxF" in scores_of(workdir)["scores"]["edge"]
    assert "odsF" not in scores_of(workdir)["scores"]["edge"]


def open_without_edges(data: DataSettings, tasks, split):
    return [
        {name: np.full_like(v, IGNORE) if name == "edge" else v for name, v in example.items()}
        for example in open_source(data, tasks, split)
    ]


def refuse_constant(name):
    raise AssertionError(f"{name} is no JSON")


def test_scores_of_a_task_without_labels_are_null_as_json_has_no_nan(workdir, monkeypatch):
    monkeypatch.setattr(evaluate, "open_source", open_without_edges)
    assert cli.main(["eval", f"--workdir={workdir}"]) == 0
    text = (workdir / "scores_best.json").read_text()
    written = json.loads(text, parse_constant=refuse_constant)
    assert written["scores"]["edge"]["maxF"] is written["constants"]["edge"] is None
    assert written["scores"]["depth"]["RMSE"] > 0


def test_everything_but_odsf_is_written_if_no_image_can_be_scored(tmp_path, monkeypatch, capsys):
    trained(tmp_path)
    monkeypatch.setattr(evaluate, "open_source", open_without_edges)
    assert cli.main(["eval", f"--workdir={tmp_path}", "--odsf", "--workers=0"]) == 2
    captured = capsys.readouterr()
    assert "--odsf found no image to score" in captured.err
    assert "odsF" not in scores_of(tmp_path)["scores"]["edge"]
    assert not (tmp_path / "boundaries_best").exists()
    assert (tmp_path / "confusion_semseg.png").exists()
    assert f"Wrote {tmp_path / 'scores_best.json'}" in captured.out


def test_boundaries_of_an_older_checkpoint_are_removed(tmp_path):
    trained(tmp_path, eval__batch_size="4")
    folder = tmp_path / "boundaries_best"
    arguments = ["eval", f"--workdir={tmp_path}"]
    assert cli.main([*arguments, "--odsf", "--workers=0"]) == 0
    assert cli.main(arguments) == 0  # of the same step, so what it shows is true
    files = files_below(folder)
    assert files.keys() == {"boundaries.json", "curve.csv", "curve.png"}
    record = json.loads(files["boundaries.json"]) | {"step": 4}
    (folder / "boundaries.json").write_text(json.dumps(record))
    (folder / "notes.txt").write_text("mine")
    assert cli.main(arguments) == 0
    assert files_below(folder) == {"notes.txt": b"mine"}
    (folder / "notes.txt").unlink()
    (folder / "boundaries.json").write_text(json.dumps(record))
    assert cli.main(arguments) == 0
    assert not folder.exists()


@pytest.fixture
def nothing_computed(monkeypatch):
    def refuse(*arguments):
        raise AssertionError("something is computed")

    monkeypatch.setattr("mtmamba_jax.cli.eval.Evaluator", refuse)


def test_a_run_without_edges_is_refused_before_anything_is_computed(
    tmp_path, nothing_computed, capsys
):
    trained(tmp_path, tasks__names="('depth',)")
    assert cli.main(["eval", f"--workdir={tmp_path}", "--odsf"]) == 2
    assert "task edge, which this run does not have: it has depth" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--odsf", "--boundary_labels=nowhere"], "NAME.mat; nowhere is not a folder"),
        (["--odsf", "--workers=-1"], "--workers must be 0 or more, got -1"),
        (["--all"], "need --odsf: add it"),
        (["--boundary_labels=."], "need --odsf: add it"),
        (["--workers=2"], "need --odsf: add it"),
    ],
)
def test_wrong_flags_are_refused_before_anything_is_computed(
    flags, message, workdir, nothing_computed, capsys
):
    assert cli.main(["eval", f"--workdir={workdir}", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_cannot_be_written_is_named_before_anything_is_computed(
    workdir, tmp_path, nothing_computed, capsys
):
    (tmp_path / "file").write_text("")
    flag = f"--save_predictions={tmp_path / 'file'}"
    assert cli.main(["eval", f"--workdir={workdir}", flag]) == 1
    error = capsys.readouterr().err
    assert f"could not be written to {tmp_path / 'file'} (Not a directory). Fix that, or" in error
    assert error.endswith("choose another folder with --save_predictions=FOLDER.\n")


def test_a_full_disk_leaves_no_torn_file_and_no_record(workdir, tmp_path, monkeypatch, capsys):
    arguments = ["eval", f"--workdir={workdir}", f"--save_predictions={tmp_path}"]
    assert cli.main(arguments) == 0
    whole = files_below(tmp_path)
    write, written = pathlib.Path.write_bytes, []

    def fill_up(path, contents):
        written.append(path)
        if len(written) > 9:
            write(path, contents[:9])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(path, contents)

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill_up)
    capsys.readouterr()
    assert cli.main(arguments) == 1
    assert "No space left on device" in capsys.readouterr().err
    found = files_below(tmp_path)
    assert found.pop("incomplete.json")
    assert found.items() < whole.items()
    monkeypatch.undo()
    assert cli.main(arguments) == 0
    assert files_below(tmp_path) == whole
