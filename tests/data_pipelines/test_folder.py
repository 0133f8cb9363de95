"""A folder of one's own data is read as it was written."""

import pathlib
import pickle
import shutil
import unicodedata

import numpy as np
import pytest

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.folder import source as folder
from mtmamba_jax.data_pipelines.folder.labels import read_label
from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.tasks import table as tasks
from tests.data_pipelines.own_data import NAMES, SIZE, TASKS, UNLABELLED, as_written, save


def test_source_gives_what_was_written_and_ignore_where_there_is_no_file(written):
    train_source, val = (Folder(written, split, TASKS) for split in ("train", "val"))
    assert (len(train_source), len(val)) == (6, 2)
    for index, name in enumerate(NAMES):
        found = train_source[index] if index < 6 else val[index - 6]
        check_example(found, TASKS)
        assert found["id"] == name
        wanted = as_written(index)
        np.testing.assert_array_equal(found["image"], wanted["image"])
        for task in TASKS:
            label = wanted[task.name]
            if (task.name, index) in UNLABELLED:
                label = np.full_like(label, task.ignore)
            # 8 bits per component; half a millimetre, and float32.
            tolerance = {"normals": 0.01, "depth": 0.0005 + 1e-6}.get(task.name, 0)
            np.testing.assert_allclose(found[task.name], label, rtol=0, atol=tolerance)
            if task.name == "depth" and index % 2:
                np.testing.assert_array_equal(found["depth"], label)
    labelled = (train_source[1]["normals"] != tasks.IGNORE).all(-1)
    lengths = np.linalg.norm(train_source[1]["normals"][labelled], axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_summary_counts_the_labels(written):
    source = Folder(written, "train", TASKS)
    assert source.labelled == dict.fromkeys((t.name for t in TASKS), 5) | {"saliency": 6, "edge": 6}
    assert source.summary() == (
        f"{written}: 6 images to train on, all with saliency edge, "
        "5 with semseg human_parts depth normals"
    )


def test_labels_without_an_image_are_mentioned(copy):
    save(copy / "depth" / "stray.npy", np.ones(SIZE, np.float32))
    summary = Folder(copy, "train", TASKS).summary()
    assert summary.endswith("\n  labels without an image: 1, such as depth/stray.npy")


def test_source_is_pickled_without_being_opened_again(copy):
    source = Folder(copy, "train", TASKS)
    (copy / "val.txt").unlink()
    again = pickle.loads(pickle.dumps(source))
    for task in TASKS:
        np.testing.assert_array_equal(again[1][task.name], source[1][task.name])


def test_a_subset_of_the_tasks_needs_no_other_folder(copy):
    for task in TASKS:
        if task.name != "depth":
            shutil.rmtree(copy / task.name)
    assert Folder(copy, "train", (tasks.DEPTH,))[0].keys() == {"image", "id", "depth"}


def test_a_one_bit_png_is_a_label(copy):
    label = as_written(0)["saliency"][..., 0]
    save(copy / "saliency" / f"{NAMES[0]}.png", label == 1)
    found = Folder(copy, "train", TASKS)[0]["saliency"][..., 0]
    np.testing.assert_array_equal(found, (label == 1).astype(np.int32))


def test_some_labels_of_two_classes_are_read_when_the_source_is_opened(copy, monkeypatch):
    read = []

    def background(task, path, size):
        read.append((task.name, path.stem))
        return np.zeros_like(read_label(task, path, size))

    monkeypatch.setattr(folder, "read_label", background)
    monkeypatch.setattr(folder, "_SAMPLED", 3)
    Folder(copy, "train", TASKS)
    train, val = (
        [pathlib.PurePath(f"{NAMES[i]}.png").stem for i in ids] for ids in ((0, 2, 4), (6, 7))
    )
    read = [(task, name) for task, name in read if task in ("saliency", "edge")]
    assert read == [
        *((task, name) for task in ("saliency", "edge") for name in train),
        *(("saliency", name) for name in val),
        ("edge", val[0]),  # the other has no label
    ]


def test_scoring_needs_no_training_list(copy):
    (copy / "train.txt").unlink()
    assert len(Folder(copy, "val", TASKS)) == 2


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_lists_of_windows_tools_are_read(copy, encoding):
    text = (
        ("\ufeff" if encoding.endswith("e") else "") + "\r\n".join(["größe", *NAMES[6:]]) + "\r\n"
    )
    for file in copy.rglob(f"{NAMES[0]}.*"):
        file.rename(file.with_name(f"größe{file.suffix}"))
    (copy / "train.txt").unlink()
    (copy / "val.txt").write_bytes(text.encode(encoding))
    assert Folder(copy, "val", TASKS).ids == ("größe", *NAMES[6:])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\n\n", " \t\n"])
@pytest.mark.parametrize("name", ["a\u2028b", "a\x85b", "\x0bx\u3000", "a\x1cb\x0c"])
def test_a_name_with_another_line_separator_is_one_name(copy, name, end):
    for file in copy.rglob(f"{NAMES[6]}.*"):
        file.rename(file.with_name(name + file.suffix))
    (copy / "val.txt").write_bytes(end.join([name, NAMES[7]]).encode())
    assert Folder(copy, "val", TASKS).ids == (name, NAMES[7])


@pytest.mark.parametrize("listed", ["NFC", "NFD"])
@pytest.mark.parametrize("image", ["NFC", "NFD"])
@pytest.mark.parametrize("label", ["NFC", "NFD"])
def test_unicode_normal_forms_of_one_name_are_not_told_apart(copy, listed, image, label):
    forms = {"images": image, "listed": listed}
    name = {key: unicodedata.normalize(form, "größe é 각") for key, form in forms.items()}
    for file in copy.rglob(f"{NAMES[6]}.*"):
        stem = name.get(file.parent.name, unicodedata.normalize(label, name["listed"]))
        file.rename(file.with_name(stem + file.suffix))
    (copy / "val.txt").write_text("\n".join([name["listed"], NAMES[7]]), encoding="utf-8")
    found = Folder(copy, "val", TASKS)
    assert found.ids[0] == unicodedata.normalize("NFC", name["listed"])
    assert found.labelled["semseg"] == found.labelled["edge"] + 1 == 2
    assert found[0]["image"].shape == (*SIZE, 3)


def test_documented_tasks_are_those_of_the_set():
    text = (pathlib.Path(__file__).parents[2] / "docs" / "datasets.md").read_text()
    section = text.split("## Your own data")[1].split("\n## ")[0]
    for task in tasks.CUSTOM:
        assert f"{task.name}/" in section or f"`{task.name}/`" in section
