"""Scoring folders of predictions: image names, kinds of labels, workers, errors, command."""

import json
import re

import cv2
import numpy as np
import pytest
import scipy.io

from mtmamba_jax.cli import main as cli
from mtmamba_jax.data_pipelines.read_files import read_list
from mtmamba_jax.metrics.boundaries import folders
from mtmamba_jax.metrics.boundaries.contours import contour_of_regions
from mtmamba_jax.metrics.boundaries.scores import compute, sum_counts
from tests.metrics.boundaries import scenes

SIZE = (48, 60)
NAMES = ("a", "b", "c")


@pytest.fixture
def files(tmp_path):
    """Folders of labels of Voronoi cells and of soft predictions of their contours."""
    for name in ("predictions", "labels"):
        (tmp_path / name).mkdir()
    for seed, name in enumerate(NAMES):
        label = scenes.cells(SIZE, 6, seed).astype(np.uint8)
        levels = scenes.soft_prediction(contour_of_regions(label), seed)
        cv2.imwrite(str(tmp_path / "predictions" / f"{name}.png"), levels)
        cv2.imwrite(str(tmp_path / "labels" / f"{name}.png"), label)
    return tmp_path


def counts(files, ids=NAMES, label_kind="regions", **settings):
    settings = {"max_distance": 0.02, "label_kind": label_kind, **settings}
    return list(folders.count_folder(ids, files / "predictions", files / "labels", **settings))


def test_counts_are_the_same_for_any_number_of_workers(files):
    here = counts(files)
    assert len({image.tobytes() for image in here}) == len(NAMES)
    np.testing.assert_array_equal(counts(files, num_workers=2), here)


@pytest.mark.slow
def test_counts_of_one_worker_are_those_of_this_process(files):
    np.testing.assert_array_equal(counts(files, num_workers=1), counts(files))


def test_images_are_read_lazily_in_order(files):
    (files / "predictions" / "b.png").unlink()
    images = folders.count_folder(
        NAMES, files / "predictions", files / "labels", label_kind="regions", max_distance=0.02
    )
    next(images)
    with pytest.raises(ValueError, match=r"b.png is missing"):
        next(images)


def test_matlab_label_maps_give_the_same_counts_as_png_regions(files):
    expected = counts(files)
    for name in NAMES:
        path = files / "labels" / f"{name}.png"
        label = cv2.imread(str(path), cv2.IMREAD_UNCHANGED).astype(np.uint16) + 300
        scipy.io.savemat(path.with_suffix(".mat"), {"LabelMap": label})
        path.unlink()
    np.testing.assert_array_equal(counts(files), expected)


def test_a_thick_line_is_one_contour_or_a_region_with_two(files):
    line = np.zeros(SIZE, np.uint8)
    line[20:23] = 255
    cv2.imwrite(str(files / "labels" / "a.png"), line)
    true = {kind: counts(files, ["a"], kind)[0][0, 1] for kind in ("contours", "regions")}
    assert true["regions"] == 2 * SIZE[1]
    assert 0.9 * SIZE[1] < true["contours"] <= SIZE[1]


def test_published_pascal_context_figures_score_2498_images():
    left_out = read_list(folders.EXCLUDED["pascal_context"])
    assert len(left_out) == 5105 - 2498
    assert all(re.fullmatch(r"20(08|09|10)_00\d{4}", name) for name in left_out)
    assert list(left_out) == sorted(left_out)


def test_ids_are_the_listed_ones_or_the_predictions_without_excluded_images(files):
    predictions, listed = files / "predictions", files / "listed.txt"
    (predictions / "a.png").rename(predictions / "2008_000002.png")  # excluded on PASCAL-Context
    listed.write_text("c\n2008_000002\n")
    assert folders.find_ids("pascal_context", predictions, None) == ("b", "c")
    assert folders.find_ids("nyudv2", predictions, None) == ("2008_000002", "b", "c")
    everything = folders.find_ids("pascal_context", predictions, None, include_all=True)
    assert everything == ("2008_000002", "b", "c")
    assert folders.find_ids("pascal_context", predictions, listed) == ("c", "2008_000002")


def test_having_no_prediction_to_score_is_an_error(files):
    predictions = files / "predictions"
    with pytest.raises(ValueError, match=r"labels/none holds 0 files NAME.png\. Predictions are"):
        folders.find_ids("nyudv2", files / "labels/none", None)
    for name in ("a", "b"):
        (predictions / f"{name}.png").unlink()
    (predictions / "c.png").rename(predictions / "2008_000002.png")
    with pytest.raises(ValueError, match=r"holds 1 files.* exclude \(--all scores them\)"):
        folders.find_ids("pascal_context", predictions, None)


def write(path, array):
    cv2.imwrite(str(path), array)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda f: write(f / "predictions/a.png", np.zeros(SIZE, np.uint16)),
            "16 bits, expected",
        ),
        (lambda f: write(f / "predictions/a.png", np.zeros((*SIZE, 3), np.uint8)), "mode RGB"),
        (lambda f: write(f / "predictions/a.png", np.zeros((9, 9), np.uint8)), "9x9 .* 48x60"),
        (lambda f: (f / "labels/a.png").unlink(), r"no label of a \(a.png or a.mat\).*--ids"),
        (lambda f: (f / "predictions/a.png").write_bytes(b"?"), "a.png is not a PNG or JPEG"),
    ],
)
def test_invalid_files_are_reported_with_a_remedy(files, spoil, message):
    spoil(files)
    with pytest.raises(ValueError, match=message):
        counts(files)


def test_an_unknown_label_kind_is_reported(files):
    with pytest.raises(ValueError, match=r"Unknown label kind 'region'\. Did you mean 'regions'"):
        counts(files, label_kind="region")


def run(files, *arguments):
    folder_flags = [f"--{name}={files / name}" for name in ("predictions", "labels", "output")]
    return cli.main(["boundaries", "--dataset=nyudv2", "--workers=0", *folder_flags, *arguments])


def test_the_command_scores_a_folder(files, capsys):
    assert run(files) == 0
    record = json.loads((files / "output" / "boundaries.json").read_text())
    sums = sum_counts(counts(files, max_distance=0.011))
    assert record == {
        "dataset": "nyudv2",
        "predictions": str(files / "predictions"),
        "labels": str(files / "labels"),
        "ids": None,
        "only_published_images": False,
        "label_kind": "regions",
        "max_distance": 0.011,
        "images": 3,
        "scores": compute(sums),
    }
    assert f"{record['scores']['odsF']:.2f}" in capsys.readouterr().out
    assert (files / "output" / "curve.png").stat().st_size > 1000


@pytest.mark.parametrize("which", ["published", "all", "ids"])
def test_the_report_records_which_images_were_scored(which, files):
    listed = files / "list.txt"
    listed.write_text("a\n")
    flags = {"published": (), "all": ("--all",), "ids": (f"--ids={listed}",)}[which]
    assert run(files, "--dataset=pascal_context", *flags) == 0
    record = json.loads((files / "output" / "boundaries.json").read_text())
    assert record["images"] == (1 if which == "ids" else 3)
    assert record["ids"] == (str(listed) if which == "ids" else None)
    assert record["only_published_images"] == (which == "published")


def test_ids_and_all_are_mutually_exclusive(files, capsys):
    assert run(files, "--all", "--ids=list.txt") == 2
    assert (
        "--ids=list.txt scores only the listed images and --all scores every"
        in capsys.readouterr().err
    )


def test_the_command_reports_an_error_in_one_message(files, capsys):
    (files / "list.txt").write_text("d\n")
    (files / "predictions" / "a.png").rename(files / "predictions" / "d.png")
    assert run(files, f"--ids={files / 'list.txt'}") == 2
    assert "error: " in (error := capsys.readouterr().err)
    assert "has no label of d (d.png or d.mat)" in error
