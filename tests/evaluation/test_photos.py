"""Folders of predicted photos: their names, contents and replacement."""

import json
import os

import cv2
import numpy as np
import pytest

from mtmamba_jax.evaluation import photos
from mtmamba_jax.evaluation.resizing import enlarge
from mtmamba_jax.tasks.table import NYUDV2
from tests.evaluation.fake_predictor import FakePredictor
from tests.full_disk import largest_file

ORIGIN = {"workdir": "run", "step": 3}
FILES = {f"{task.name}{end}" for task in NYUDV2 for end in (".npy", ".png")}
FILES |= {"panel.png", "photo.json"}


def write_photo(path, size=(8, 12)):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(size[0]).integers(0, 255, (*size, 3), dtype=np.uint8)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    return path


def predict(paths, output, **options):
    options = {"origin": ORIGIN, **options}
    return list(photos.predict_photos(paths, FakePredictor(), output, **options))


def names_below(folder):
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize(
    "name", ["...jpg", "..jpg", ".jpg", "....png", "%.png", "a b\n.png", os.fsdecode(b"\xff.png")]
)
def test_a_photo_is_predicted_into_a_visible_folder_below_output_whatever_its_name(tmp_path, name):
    output = tmp_path / "up" / "out"
    path = write_photo(tmp_path / "photos" / name)
    (folder,) = predict([path], output)
    assert folder.parent == output
    assert not folder.name.startswith(".")
    assert names_below(folder) == FILES
    assert names_below(output) == {folder.name}
    assert names_below(output.parent) == {"out"}
    assert json.loads((folder / "photo.json").read_text())["photo"] == str(path)


def test_photos_of_one_name_have_folders_that_name_their_photo(tmp_path):
    paths = [write_photo(tmp_path / name) for name in ("a/x.png", "b/x.png", "b/x_2.png")]
    folders = predict(paths, tmp_path / "out")
    assert [folder.name for folder in folders] == ["x", "x_2", "x_2_2"]
    for path, folder in zip(paths, folders, strict=True):
        record = json.loads((folder / "photo.json").read_text())
        assert record["photo"] == str(path)
        assert record.items() > ORIGIN.items()


def test_nothing_of_an_earlier_prediction_is_left(tmp_path):
    first = write_photo(tmp_path / "a" / "x.png")
    (folder,) = predict([first], tmp_path / "out", with_overlay=True, with_features=True)
    assert names_below(folder) == FILES | {"overlay.png", "features.png"}
    second = write_photo(tmp_path / "b" / "x.png")
    assert predict([second], tmp_path / "out") == [folder]
    assert names_below(folder) == FILES
    assert json.loads((folder / "photo.json").read_text())["photo"] == str(second)


def test_a_folder_with_files_of_a_person_is_not_replaced_and_the_rest_is_predicted(tmp_path):
    output = tmp_path / "out"
    paths = [write_photo(tmp_path / f"{name}.png") for name in ("mine", "noted", "file", "new")]
    predict([paths[1]], output)
    for file in ("mine/thesis.tex", "noted/notes.txt", "file"):
        (output / file).parent.mkdir(exist_ok=True)
        (output / file).write_text("mine")
    *failures, done = predict(paths, output)
    assert done == output / "new"
    assert [failure.path for failure in failures] == paths[:3]
    assert "predict did not write thesis.tex. Move it, or give another" in failures[0].reason
    assert all((output / f).read_text() == "mine" for f in ("mine/thesis.tex", "file"))


def test_a_link_in_the_output_folder_is_replaced_and_not_followed(tmp_path):
    path, elsewhere = write_photo(tmp_path / "x.png"), tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x").symlink_to(elsewhere)
    assert names_below(predict([path], tmp_path / "out")[0]) == FILES
    assert names_below(elsewhere) == set()


def test_a_full_disk_leaves_whole_folders_only_and_is_reported_with_the_photo(tmp_path):
    paths = [write_photo(tmp_path / f"{name}.png") for name in "ab"]
    predict(paths[1:], tmp_path / "out")
    before = (tmp_path / "out" / "b" / "depth.npy").read_bytes()
    write_photo(paths[1], (300, 400))  # takes more now
    with (
        largest_file(10**5),
        pytest.raises(OSError, match=r"The prediction of .*b\.png could not be written to .*out/b"),
    ):
        predict(paths, tmp_path / "out")
    assert names_below(tmp_path / "out") == {"a", "b"}
    assert names_below(tmp_path / "out" / "a") == FILES
    assert (tmp_path / "out" / "b" / "depth.npy").read_bytes() == before


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("names", [["semseg"], ["depth", "edge"]])
def test_a_prediction_that_is_not_finite_is_named_and_not_written(tmp_path, value, names):
    class Diverged(FakePredictor):
        def logits(self, photo, **options):
            logits, image = super().logits(photo, **options)
            for name in names if photo.shape[0] == 9 else ():
                logits[name][0, 0, 0] = value
            return logits, image

    paths = [write_photo(tmp_path / "a.png", (9, 12)), write_photo(tmp_path / "b.png")]
    found = photos.predict_photos(paths, Diverged(), tmp_path / "out", origin=ORIGIN)
    failure, done = list(found)
    assert failure.path == paths[0]
    assert f"NaN or infinite values in the predicted {', '.join(names)}; try" in failure.reason
    assert names_below(tmp_path / "out") == {done.name} == {"b"}


def test_maps_written_in_strips_are_those_that_are_computed_at_once(tmp_path):
    path = write_photo(tmp_path / "x.png", (700, 900))
    (folder,) = predict([path], tmp_path / "out", with_overlay=True)
    logits, _ = FakePredictor().logits(cv2.imread(str(path))[..., ::-1])
    for task in NYUDV2:
        np.testing.assert_array_equal(
            np.load(folder / f"{task.name}.npy"), enlarge(task, logits[task.name], (700, 900))
        )
        assert cv2.imread(str(folder / f"{task.name}.png")).shape == (700, 900, 3)
    assert cv2.imread(str(folder / "overlay.png")).shape == (700, 900, 3)
