"""Mistakes in a folder of one's own data are named with the remedy."""

import os
import shutil
import subprocess

import cv2
import numpy as np
import pytest
from PIL import Image

from mtmamba_jax import config as configuration
from mtmamba_jax.data_pipelines.folder.source import Folder, find_folder
from mtmamba_jax.data_pipelines.pipeline import ExampleError, eval_batches
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.data_pipelines.sources import open_source
from tests.data_pipelines.own_data import NAMES, SIZE, TASKS, save


def delete(path):
    path.unlink()


def remove_folder(path):
    shutil.rmtree(path)


def rename(name):
    return lambda path: path.rename(path.parent / name)


def rename_all(path):
    for file in [p for p in path.rglob("*") if p.is_file()]:
        file.rename(file.with_name(f"{file.stem}_label{file.suffix}"))


def as_jpeg(path):
    for file in [p for p in path.rglob("*") if p.is_file()]:
        file.rename(file.with_suffix(".jpg"))


def only_val(path):
    for name in NAMES[:6]:
        for file in path.glob(f"{name}.*"):
            file.unlink()


def only_train(path):
    for name in NAMES[6:]:
        for file in path.glob(f"{name}.*"):
            file.unlink()


def empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def twice(suffix):
    return lambda path: shutil.copy(path, path.with_suffix(suffix))


def array(value):
    return lambda path: save(path, value)


def pixel(value):
    def corrupt(path):
        values = np.load(path) if path.suffix == ".npy" else np.array(Image.open(path))
        values[1, 1] = value
        save(path, values)

    return corrupt


def text(content):
    return lambda path: path.write_text(content)


def hide(name, listed):
    def corrupt(path):
        root = path.parents[1]
        (path.parent / name).parent.mkdir(exist_ok=True)
        path.rename(path.parent / name)
        (root / "train.txt").write_text(f"{listed}\n{A1}")

    return corrupt


def utf_16_without_mark(path):
    path.write_bytes(path.read_text().encode("utf-16-le"))


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def masks_of_255(path):
    for file in path.rglob("*.png"):
        values = np.array(Image.open(file))
        save(file, np.where(values == 1, 255, 0).astype(np.uint8))


def colours_of_12_bits(path):
    cv2.imwrite(str(path), np.full((*SIZE, 3), 1000, np.uint16))


def pipe(path):
    path.unlink()
    os.mkfifo(path)


def device(path):
    path.unlink()
    path.symlink_to("/dev/zero")


def folder(path):
    path.unlink()
    path.mkdir()


def opencv_normals(path):
    save(path, (255 - np.array(Image.open(path)).astype(int)).clip(1).astype(np.uint8))


A0, A1 = NAMES[0], NAMES[1]
WRONG = (
    ("images", remove_folder, r"has no folder images/\. It holds depth/, edge/, .*Put the images"),
    (
        "images",
        empty_folder,
        r"images holds no image, NAME\.jpg, \.jpeg, \.png\. Put",
    ),
    ("train.txt", delete, r"lacks train\.txt \(images to train on\).*\n  cd .* grep -vxF -f val"),
    ("val.txt", delete, r"lacks val\.txt \(images to score\)"),
    (
        "train.txt",
        text(""),
        r"lacks train\.txt \(images to train on; it is empty\).*\n  cd .* > tr",
    ),
    ("val.txt", text("\ufeff\n\n"), r"lacks val\.txt \(images to score; it is empty\).*\n  cd "),
    ("val.txt", utf_16_without_mark, r"val\.txt is not UTF-8 text\. Save it as UTF-8\. Write one"),
    ("train.txt", text(f"{A0}\n{A1}\n{A0}"), r"names 'room\.0' twice"),
    ("train.txt", text(f"{A0}.png"), r"Write 'room\.0', not 'room\.0\.png'"),
    ("train.txt", text(f"images/{A1}.PNG"), r"Write 'a/room1', not 'images/a/room1\.PNG'"),
    ("train.txt", text(f"{A0}\nroom9"), r"names images that images/ lacks \(1\): room9\. Add the"),
    ("train.txt", text(f"{A0}\n{NAMES[6]}"), r"share images \(1\): room\.6\. Remove them"),
    (f"images/{A0}.png", delete, r"names images that images/ lacks \(1\): room\.0\. Add"),
    (f"images/{A0}.png", rename("room.0.tif"), r"room\.0\.tif has another suffix: save it as"),
    (f"images/{A0}.png", hide(".x.png", ".x"), r"images/\.x\.png is hidden.*: rename it without"),
    (f"images/{A0}.png", hide("..x.png", "..x"), r"images/\.\.x\.png is hidden.*: rename it"),
    (f"images/{A0}.png", hide(".x.png", "images/.x.png"), r"images/\.x\.png is hidden.*: rename"),
    (f"images/{A0}.png", hide(".a/x.png", ".a/x"), r"images/\.a/x\.png is hidden.*: rename it"),
    (
        f"images/{A0}.png",
        hide(" x .png", " x "),
        r"\(1\): x\. The name of 'images/ x \.png' begins or",
    ),
    (f"images/{A0}.png", hide("x.y.png", "x"), r"lacks \(1\): x\. Add the images"),
    (
        f"images/{A0}.png",
        twice(".jpeg"),
        r"two files of one name: .*room\.0\.jpeg and .*room\.0\.p",
    ),
    (f"images/{A0}.png", cut, r"room\.0\.png is cut off after"),
    (f"images/{A0}.png", array(np.zeros(SIZE, np.uint8)), r"has mode L, expected 8-bit RGB"),
    ("train.txt", folder, r"train\.txt is not a file\. Write one name per line"),
    ("train.txt", device, r"train\.txt is not a file\. Write one name per line"),
    ("val.txt", pipe, r"val\.txt is not a file\. Write one name per line"),
    (f"images/{A1}.PNG", pipe, r"room1\.PNG is not a file"),
    (f"semseg/{A1}.png", pipe, r"room1\.png is not a file"),
    (f"edge/{A0}.png", device, r"room\.0\.png is not a file"),
    (f"depth/{NAMES[3]}.npy", device, r"room3\.npy is not a file"),
    ("depth", remove_folder, r"no folder depth/ for the labels of task 'depth'.*leave the task"),
    ("depth", empty_folder, r"depth holds no label, NAME\.npy or \.png\. Add some, or leave"),
    ("depth", rename_all, r"depth has 7 files, such as depth/\S+_label\..*label of images/a/room1"),
    (
        "semseg",
        as_jpeg,
        r"labels with another suffix than \.png: semseg/a/room1\.jpg.*JPEG changes",
    ),
    ("depth", only_val, r"no label for any image of train\.txt, so there is nothing to train on"),
    ("depth", only_train, r"no label for any image of val\.txt, so there is nothing to score"),
    (f"depth/{NAMES[3]}.npy", twice(".png"), r"two files of one name: depth/a/room3\.npy and"),
    (f"depth/{NAMES[3]}.npy", pixel(np.nan), r"room3\.npy has 1 values that are NaN.*write 0"),
    (f"depth/{NAMES[3]}.npy", pixel(-1), r"room3\.npy has 1 values that are NaN, infinite or neg"),
    (f"depth/{NAMES[3]}.npy", array(np.ones((9, 9), np.float32)), r"is 9x9 .*its image 32x64"),
    (f"depth/{NAMES[3]}.npy", array(np.ones(SIZE, np.uint16)), r"uint16\): are they millimetres"),
    (f"depth/{A0}.png", colours_of_12_bits, r"has mode RGB, expected one channel .*not colours"),
    (f"semseg/{A0}.png", colours_of_12_bits, r"has mode RGB, expected one channel .*not colours"),
    (f"images/{A0}.png", colours_of_12_bits, r"16 bits per channel.*nearly black\. Save it with"),
    (f"depth/{A0}.png", array(np.ones(SIZE, np.uint8)), r"has 8 bits, wanted 16: millimetres"),
    (f"semseg/{A0}.png", pixel(3), r"the value 3; expected 0 to 2, the IDs of the run's 3 cl"),
    (f"semseg/{A0}.png", array(np.zeros((*SIZE, 3), np.uint8)), r"has mode RGB.*not colours"),
    (f"semseg/{A0}.png", array(np.zeros((9, 9), np.uint8)), r"is 9x9 .*its image 32x64"),
    (f"human_parts/{A0}.png", pixel(7), r"the value 7; expected 0 to 6"),
    (f"edge/{A0}.png", pixel(128), r"the value 128; expected 0, 1 on boundaries, and 255"),
    ("edge", masks_of_255, r"edge holds no values but 0 and 255 .*Write 1 instead of 255"),
    ("saliency", masks_of_255, r"saliency holds no values but 0 and 255"),
    (f"normals/{A1}.png", array(np.full((*SIZE, 3), 130, np.uint8)), r"holds no unit vectors"),
    (f"normals/{A1}.png", opencv_normals, r"point away from the camera"),
    (f"normals/{A1}.png", cut, r"is cut off"),
)


@pytest.mark.parametrize(
    ("place", "corrupt", "message"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)]
)
def test_a_mistake_is_named_with_the_remedy(copy, place, corrupt, message):
    corrupt(copy / place)
    with pytest.raises(DataError, match=f"(?s){message}"):
        for split in ("train", "val"):
            source = Folder(copy, split, TASKS)
            for index in range(len(source)):
                source[index]


def test_all_mistakes_in_names_are_reported_at_once(copy):
    (copy / "val.txt").unlink()
    remove_folder(copy / "depth")
    rename_all(copy / "edge")
    (copy / "train.txt").write_text("\n".join([*NAMES[:6], *(f"room{i}" for i in range(90))]))
    with pytest.raises(DataError, match=r"4 things are wrong in") as error:
        Folder(copy, "train", TASKS)
    message = str(error.value)
    for part in ("lacks val.txt", "no folder depth/", "edge has 7 files", "lacks (90)"):
        assert part in message
    assert "room19 and 70 more" in message
    assert "room20" not in message


@pytest.mark.parametrize("missing", [("train",), ("val",), ("train", "val"), ("used up",)])
def test_the_command_in_the_message_makes_the_lists(copy, missing):
    (copy / "images" / ".DS_Store").unlink()
    link = next((copy / "images" / "a").iterdir())
    link.symlink_to(link.rename(copy / f"moved{link.suffix}"))
    for split in missing:
        (copy / f"{split}.txt").unlink(missing_ok=True)
    if missing == ("used up",):
        (copy / "train.txt").write_text("\n".join(NAMES))
        (copy / "val.txt").write_text("")
    with pytest.raises(DataError) as error:
        Folder(copy, "train", TASKS)
    (command,) = [line for line in str(error.value).splitlines() if line.startswith("  cd ")]
    subprocess.run(command, shell=True, check=True)
    lists = [(copy / f"{split}.txt").read_text().split() for split in ("train", "val")]
    assert sorted(lists[0] + lists[1]) == sorted(NAMES)
    if missing in (("train",), ("val",)):
        assert len(lists[1]) == 2


def test_the_folder_must_be_given_and_exist(tmp_path):
    data = configuration.load("custom", {"tasks.names": "depth"}).data
    with pytest.raises(DataError, match=r"'data\.dir' is not set.*--config\.data\.dir=my_data"):
        open_source(data, TASKS, "train")
    with pytest.raises(DataError, match="is not a folder"):
        find_folder(tmp_path / "none")


def test_a_bad_file_found_by_the_pipeline_is_named(copy):
    pixel(3)(copy / "semseg" / f"{NAMES[5]}.png")
    batches = eval_batches(Folder(copy, "train", TASKS), TASKS, size=SIZE, batch_size=2)
    with pytest.raises(ExampleError, match=r"a/room5\.png holds the value 3"):
        list(batches)
    batches.close()


def test_folder_without_a_folder_of_labels_is_answered_with_the_possible_ones(copy):
    for task in TASKS:
        remove_folder(copy / task.name)
    with pytest.raises(ValueError, match=r"has no folder of labels.*: semseg, human_parts"):
        configuration.load("custom", {"data.dir": str(copy)})
