"""The builders read what the published files hold, on random datasets with the same structure."""

import json

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.builders.locate import locate_folders
from mtmamba_jax.data_pipelines.builders.pascal_context.classes import NORMALS_CLASSES
from mtmamba_jax.data_pipelines.datasets import DATASETS
from mtmamba_jax.data_pipelines.records import create_builder
from mtmamba_jax.tasks.table import IGNORE, TASK_SETS
from tests.data_pipelines.sample_trees import WRITERS

SIZE = (48, 64)
SPLITS = {"train": 4, "val": 2}
# Label ID -> class ID of https://github.com/mcordts/cityscapesScripts, labels.py; other IDs are not
# trained.
TRAINED = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9, 23: 10, 24: 11, 25: 12,
    26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip


def open_split(name, folder, split):
    kind = create_builder(name).FILES
    return kind(locate_folders([folder], kind.FOLDERS, kind.SUBFOLDERS), split)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    root = tmp_path_factory.mktemp("trees")
    return {name: (root / name, WRITERS[name](root / name, SPLITS, SIZE)) for name in DATASETS}


def examples(name, trees):
    for split in SPLITS:
        files = open_split(name, trees[name][0], split)
        for index in range(len(files)):
            yield files.paths(index), files[index]


def pixels(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize("name", DATASETS)
def test_every_example_is_read_and_keeps_the_contract(name, trees):
    folder, names = trees[name]
    for split in SPLITS:
        files = open_split(name, folder, split)
        assert files.ids == names[split]
        assert len(files) == SPLITS[split]
    images = []
    for paths, example in examples(name, trees):
        check_example(example, TASK_SETS[name])
        np.testing.assert_array_equal(example["image"], pixels(paths["image"]))
        assert max(example["image"].shape[0] / SIZE[0], example["image"].shape[1] / SIZE[1]) == 1
        images.append(example["image"].tobytes())
    assert len(set(images)) == sum(SPLITS.values())


@pytest.mark.parametrize("name", DATASETS)
def test_a_random_dataset_is_determined_by_its_seed(name, trees, tmp_path):
    def contents(folder):
        return {
            path.relative_to(folder): path.read_bytes()
            for path in folder.rglob("*")
            if path.suffix in (".png", ".jpg", ".npy", ".txt")  # .mat files contain the time
        }

    WRITERS[name](tmp_path / "same", SPLITS, SIZE)
    WRITERS[name](tmp_path / "other", SPLITS, SIZE, seed=1)
    first = contents(trees[name][0])
    assert contents(tmp_path / "same") == first
    other = contents(tmp_path / "other")
    assert other.keys() == first.keys()
    assert other != first


def test_nyudv2_reads_what_was_written(trees):
    for paths, example in examples("nyudv2", trees):
        classes = pixels(paths["semseg"]).astype(int) - 1
        np.testing.assert_array_equal(
            example["semseg"][..., 0], np.where(classes < 0, IGNORE, classes)
        )
        np.testing.assert_array_equal(example["edge"][..., 0], pixels(paths["edge"]) // 255)
        depth = np.load(paths["depth"])
        np.testing.assert_array_equal(
            example["depth"][..., 0], np.where(depth > 0, depth, np.float32(IGNORE))
        )
        normals = 2 * pixels(paths["normals"]).astype(np.float32) / 255 - 1
        np.testing.assert_array_equal(example["normals"], normals)
        lengths = np.linalg.norm(example["normals"], axis=-1)
        np.testing.assert_allclose(lengths, 1, atol=0.01)  # 8 bits: half a level is 0.004
        assert depth[depth > 0].min() > 0.5 and depth.max() <= 10


def test_pascal_context_reads_what_was_written(trees):
    shapes, kinds, people = set(), set(), set()
    for paths, example in examples("pascal_context", trees):
        shapes.add(example["image"].shape[:2])
        kinds.add(paths["semseg"].parent.name)
        np.testing.assert_array_equal(example["semseg"][..., 0], pixels(paths["semseg"]))
        np.testing.assert_array_equal(
            example["saliency"][..., 0], pixels(paths["saliency"]) / 255 > 0.5
        )
        context = scipy.io.loadmat(paths["context"])["LabelMap"]
        assert context.dtype == np.uint16
        trusted = np.isin(context, NORMALS_CLASSES)
        normals = 2 * pixels(paths["normals"]).astype(np.float32) / 255 - 1
        np.testing.assert_array_equal(
            example["normals"], np.where(trusted[..., None], normals, np.float32(IGNORE))
        )
        # A thin line follows every class border within one pixel.
        borders = cv2.dilate((np.diff(context.astype(int), axis=1) != 0).astype(np.uint8), None)
        line = cv2.dilate(example["edge"][..., 0].astype(np.uint8), np.ones((5, 5)))
        assert line[:, :-1][borders > 0].all()
        people.add("human_parts" in paths)
        assert ("human_parts" in paths) == bool(example["human_parts"].any())
    assert len(shapes) == 3 and len(kinds) == 2 and len(people) == 2
    folder, names = trees["pascal_context"]
    objects = json.loads((folder / "ImageSets" / "Parts" / "val.txt").read_text())
    assert tuple(objects) == names["val"]


def test_cityscapes_reads_what_was_written(trees):
    for paths, example in examples("cityscapes", trees):
        ids = pixels(paths["semseg"])
        expected = np.vectorize(lambda i: TRAINED.get(i, IGNORE))(ids)
        np.testing.assert_array_equal(example["semseg"][..., 0], expected)
        values = cv2.imread(str(paths["depth"]), cv2.IMREAD_UNCHANGED)
        assert values.dtype == np.uint16
        disparity = (values.astype(np.float64) - 1) / 256
        scored = (values != 0) & (disparity > 0) & (disparity < 80)
        np.testing.assert_array_equal(
            example["depth"][..., 0], np.where(scored, disparity, IGNORE).astype(np.float32)
        )
        assert (values == 0).any() and (disparity == 0).any() and (disparity >= 80).any()
        assert scored.mean() > 0.4


def test_cityscapes_maps_every_label_id(tmp_path):
    WRITERS["cityscapes"](tmp_path, {"train": 1}, SIZE)
    files = open_split("cityscapes", tmp_path, "train")
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 34
    Image.fromarray(ids.astype(np.uint8)).save(files.paths(0)["semseg"])
    label = files[0]["semseg"][..., 0]
    found = {int(i): set(label[ids == i].tolist()) for i in range(34)}
    assert found == {i: {TRAINED.get(i, IGNORE)} for i in range(34)}


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, IGNORE), (1, IGNORE), (2, 1 / 256), (257, 1.0), (20480, 79.99609375), (20481, IGNORE)],
)
def test_cityscapes_scores_disparities_above_0_and_below_80(value, expected, tmp_path):
    WRITERS["cityscapes"](tmp_path, {"train": 1}, SIZE)
    files = open_split("cityscapes", tmp_path, "train")
    cv2.imwrite(str(files.paths(0)["depth"]), np.full(SIZE, value, np.uint16))
    assert (files[0]["depth"] == np.float32(expected)).all()
