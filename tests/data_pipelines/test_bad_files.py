"""Datasets with one bad file are refused with a message that names the file and the remedy."""

import json
import shutil

import cv2
import numpy as np
import pytest
import scipy.io
from PIL import Image

from mtmamba_jax.data_pipelines.builders.nyudv2.files import NYUDv2
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.data_pipelines.records import Records
from mtmamba_jax.tasks.table import PASCAL_CONTEXT
from tests.data_pipelines.dummy_trees import copy_tree, prepare, visible


def delete(path):
    path.unlink()


def empty(path):
    path.write_bytes(b"")


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(bytes(data))


def web_page(path):
    path.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")


def make_folder(path):
    path.unlink()
    path.mkdir()


def smaller(path):
    if path.suffix == ".npy":
        np.save(path, np.load(path)[:-1])
    else:
        cv2.imwrite(str(path), cv2.imread(str(path), cv2.IMREAD_UNCHANGED)[:-1])


def write(value):
    """Writes a value at one pixel."""

    def corrupt(path):
        if path.suffix == ".npy":
            array = np.load(path)
            array[1, 1] = value
            np.save(path, array)
        else:
            array = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
            array[1, 1] = value
            cv2.imwrite(str(path), array)

    return corrupt


def colours(path):
    cv2.imwrite(str(path), cv2.cvtColor(cv2.imread(str(path), 0), cv2.COLOR_GRAY2BGR))


def grey(path):
    cv2.imwrite(str(path), cv2.imread(str(path), 0))


def transparent(path):
    cv2.imwrite(str(path), cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2BGRA))


def text(content):
    return lambda path: path.write_text(content)


def array(value):
    def corrupt(path):
        with path.open("wb") as file:
            np.save(file, value, allow_pickle=True)

    return corrupt


def mat(**variables):
    return lambda path: scipy.io.savemat(path, variables)


def rename_part(path):
    annotation = scipy.io.loadmat(path)["anno"]
    annotation[0, 0]["objects"][0, 0]["parts"][0, 0]["part_name"] = "wing"
    scipy.io.savemat(path, {"anno": annotation})


def cut_mask(path):
    annotation = scipy.io.loadmat(path)["anno"]
    part = annotation[0, 0]["objects"][0, 0]["parts"][0, 0]
    part["mask"] = part["mask"][:-1]
    scipy.io.savemat(path, {"anno": annotation})


def rotate_by_exif(path):
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif)


def eight_bits(path):
    cv2.imwrite(str(path), (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) // 256).astype(np.uint8))


def old_archive(path):
    cv2.imwrite(str(path), np.zeros((480, 640, 3), np.uint8))


AGAIN = r"Extract or copy it again"
NYUDV2 = (
    ("images/0002.png", delete, rf"is missing\. {AGAIN}"),
    ("images/0002.png", empty, rf"is empty\. {AGAIN}"),
    ("images/0002.png", cut, rf"is cut off after \d+ bytes\. {AGAIN}"),
    ("images/0002.png", flip_a_bit, rf"is damaged .*\. {AGAIN}"),
    ("images/0002.png", web_page, rf"is a web page\. {AGAIN}"),
    ("images/0002.png", text("photo"), rf"is not a PNG or JPEG\. {AGAIN}"),
    ("images/0002.png", make_folder, rf"is not a file\. {AGAIN}"),
    ("images/0002.png", transparent, rf"has mode RGBA, expected 8-bit RGB\. {AGAIN}"),
    ("images/0002.png", old_archive, r"480x640: this is an older .*425x560; get the archive"),
    ("segmentation/0002.png", delete, r"is missing"),
    ("segmentation/0002.png", cut, r"is cut off"),
    ("segmentation/0002.png", smaller, r"is 39x56 .*, its image 40x56.*another version"),
    ("segmentation/0002.png", write(41), r"holds the value 41; expected 0 \(no class\) to 40\. Is"),
    ("segmentation/0002.png", colours, r"has mode RGB, expected one channel .*not colours"),
    ("edge/0002.png", delete, r"is missing"),
    ("edge/0002.png", write(128), r"holds the value 128; expected 0 and 255"),
    ("edge/0002.png", smaller, r"is 39x56"),
    ("normals/0002.png", flip_a_bit, r"is damaged"),
    ("normals/0002.png", smaller, r"is 39x56"),
    ("normals/0002.png", grey, r"has mode L, expected 8-bit RGB"),
    ("depth/0002.npy", delete, r"is missing"),
    ("depth/0002.npy", cut, r"not a readable \.npy array"),
    ("depth/0002.npy", write(np.nan), r"1 values that are NaN.*metres; write 0"),
    ("depth/0002.npy", write(np.inf), r"1 values that are NaN, infinite"),
    ("depth/0002.npy", write(-1), r"1 values that are NaN, infinite or negative"),
    ("depth/0002.npy", smaller, r"is 39x56"),
    ("depth/0002.npy", array(np.array(["far"] * 3)), r"not an array of real numbers\. Save metres"),
    ("depth/0002.npy", array(np.array([{}], object)), r"not a readable \.npy array"),
    (
        "depth/0002.npy",
        array(np.ones((40, 56, 3), np.float32)),
        r"has shape 40x56x3, expected \[h w\]",
    ),
    ("gt_sets/val.txt", empty, r"is empty"),
    ("gt_sets/val.txt", text("0001\n0002\n0001\n"), r"names '0001' twice\. Remove one"),
    ("gt_sets/val.txt", text("0001\n../0002\n"), r"names '../0002', which is not a plain name"),
    ("gt_sets/val.txt", text("0001\n0004\n"), r"images/0004\.png is missing"),
    (
        "gt_sets/val.txt",
        lambda path: path.write_bytes(b"\xff\xfe\x00"),
        r"is not UTF-8 text. Save it as UTF-8",
    ),
)
PASCAL = (
    ("JPEGImages/2008_000003.jpg", delete, r"is missing"),
    ("JPEGImages/2008_000003.jpg", cut, rf"is damaged .*\. {AGAIN}"),
    ("semseg/VOC12/2008_000003.png", write(21), r"holds the value 21; expected 0 to 20 and 255"),
    ("semseg/VOC12/2008_000003.png", delete, r"pascal-context/2008_000003\.png is missing"),
    ("pascal-context/trainval/2008_000003.mat", delete, r"is missing"),
    ("pascal-context/trainval/2008_000003.mat", cut, r"not a readable MATLAB file"),
    ("pascal-context/trainval/2008_000003.mat", web_page, r"not a readable MATLAB file"),
    ("pascal-context/trainval/2008_000003.mat", mat(Labels=1), r"has no variable 'LabelMap'"),
    (
        "pascal-context/trainval/2008_000003.mat",
        mat(LabelMap="x"),
        r"LabelMap is .*expected integers",
    ),
    (
        "pascal-context/trainval/2008_000003.mat",
        mat(LabelMap=np.ones((9, 9), np.uint16)),
        r"is 9x9",
    ),
    ("human_parts/2008_000003.mat", delete, r"is missing"),
    ("human_parts/2008_000003.mat", cut, r"not a readable MATLAB file"),
    ("human_parts/2008_000003.mat", mat(anno=np.ones(3)), r"anno is not structured as published"),
    ("human_parts/2008_000003.mat", rename_part, r"'wing' is not a part of a person"),
    ("human_parts/2008_000003.mat", cut_mask, r"is 43x56"),
    ("normals_distill/2008_000003.png", smaller, r"is 43x56 .*its image 44x56"),
    ("sal_distill/2008_000003.png", smaller, r"is 43x56"),
    ("sal_distill/2008_000003.png", colours, r"has mode RGB"),
    ("ImageSets/Parts/val.txt", text("{"), r"not readable JSON"),
    ("ImageSets/Parts/val.txt", text("[]"), r"is not a JSON object with image names"),
    (
        "ImageSets/Parts/val.txt",
        text('{"2008_000003": 15}'),
        r"holds 15 for '2008_000003', expected",
    ),
    ("ImageSets/Parts/val.txt", text('{"a": ["person"]}'), r"expected a list of numbers\."),
    ("ImageSets/Parts/val.txt", text('{"a": null}'), r"holds None for 'a'"),
)
IMAGE = "leftImg8bit/val/lindau/lindau_000001_000019_leftImg8bit.png"
LABELS = "gtFine/val/lindau/lindau_000001_000019_gtFine_labelIds.png"
DISPARITY = "disparity/val/lindau/lindau_000001_000019_disparity.png"
CITYSCAPES = (
    (IMAGE, empty, rf"is empty\. {AGAIN}"),
    (IMAGE, cut, rf"is cut off after \d+ bytes\. {AGAIN}"),
    (IMAGE, flip_a_bit, rf"is damaged .*\. {AGAIN}"),
    (IMAGE, web_page, rf"is a web page\. {AGAIN}"),
    (IMAGE, transparent, rf"has mode RGBA, expected 8-bit RGB\. {AGAIN}"),
    (LABELS, delete, r"is missing"),
    (LABELS, empty, r"is empty"),
    (LABELS, cut, r"is cut off"),
    (LABELS, web_page, r"is a web page"),
    (LABELS, smaller, r"is \d+x\d+ .*, its image \d+x\d+"),
    (LABELS, colours, r"has mode RGB, expected one channel .*not colours"),
    (LABELS, write(34), r"holds the value 34; expected label IDs 0 to 33"),
    (LABELS, write(255), r"holds the value 255; expected label IDs 0 to 33"),
    (DISPARITY, delete, r"is missing"),
    (DISPARITY, cut, r"is cut off"),
    (DISPARITY, flip_a_bit, r"is damaged"),
    (DISPARITY, smaller, r"is \d+x\d+ .*, its image \d+x\d+"),
    (DISPARITY, eight_bits, r"has 8 bits, expected 16"),
    (DISPARITY, colours, r"has mode RGB"),
    (
        "disparity",
        shutil.rmtree,
        r"is not cityscapes as .*: it has no folder disparity\. Give",
    ),
    ("gtFine", shutil.rmtree, r"is not cityscapes as .*: it has no folder gtFine\. Give"),
    (
        "leftImg8bit",
        shutil.rmtree,
        r"is not cityscapes as .*: it has no folder leftImg8bit\. Give",
    ),
)


def cases():
    tables = {"nyudv2": NYUDV2, "pascal_context": PASCAL, "cityscapes": CITYSCAPES}
    for name, rows in tables.items():
        for number, (file, corrupt, message) in enumerate(rows):
            yield pytest.param(name, file, corrupt, message, id=f"{name}-{number}-{file}")


@pytest.mark.parametrize(("name", "file", "corrupt", "message"), list(cases()))
def test_a_bad_file_is_refused_with_its_name_and_the_remedy(tmp_path, name, file, corrupt, message):
    tree = copy_tree(name, tmp_path / "tree")
    corrupt(tree / file)
    with pytest.raises(DataError, match=message) as raised:
        prepare(name, tree, tmp_path / "data")
    named = file.split("/")[-1]
    if "missing" not in message:
        assert named in str(raised.value)
    assert visible(tmp_path / "data") == []


def test_all_bad_files_are_reported_at_once_and_finished_shards_are_kept(tmp_path):
    tree = copy_tree("nyudv2", tmp_path / "tree")
    contents = {file: (tree / file).read_bytes() for file in ("edge/0001.png", "depth/0003.npy")}
    for file in contents:
        cut(tree / file)
    with pytest.raises(DataError, match=r"2 of 3 examples(.|\n)*0001\.png(.|\n)*0003\.npy"):
        prepare("nyudv2", tree, tmp_path / "data")
    for file, content in contents.items():
        (tree / file).write_bytes(content)
    builder = prepare("nyudv2", tree, tmp_path / "data")
    assert builder.info.splits["val"].num_examples == 3


@pytest.mark.parametrize(
    ("name", "file", "remedy"),
    [
        ("nyudv2", "edge/0002.png", r"take their names out of .*gt_sets/val\.txt"),
        (
            "pascal_context",
            "sal_distill/2008_000003.png",
            r"take their names out of .*ImageSets/Context/val\.txt",
        ),
        ("cityscapes", LABELS, r"remove their images"),
    ],
)
def test_the_message_explains_how_to_exclude_bad_examples_and_where_the_rest_is(
    name, file, remedy, tmp_path
):
    tree = copy_tree(name, tmp_path / "tree")
    cut(tree / file)
    folder = tmp_path / "data" / name / ".1.0.0.unfinished"
    message = rf"are kept in {folder}\. Or {remedy}, and prepare the rest with --allow_partial"
    with pytest.raises(DataError, match=message):
        prepare(name, tree, tmp_path / "data")


def test_an_example_that_a_library_rejects_is_named(tmp_path, monkeypatch):
    def refuse(self, paths, size):
        raise cv2.error("unsupported")

    tree = copy_tree("nyudv2", tmp_path / "tree")
    monkeypatch.setattr(NYUDv2, "_read_labels", refuse)
    with pytest.raises(DataError, match=r"0002\.png and its labels .* \(error: unsupported\)"):
        prepare("nyudv2", tree, tmp_path / "data")


def test_lists_may_start_with_a_byte_order_mark(tmp_path):
    tree = copy_tree("nyudv2", tmp_path / "tree")
    (tree / "gt_sets" / "val.txt").write_text("0001\r\n0002\r\n", encoding="utf-8-sig")
    builder = prepare("nyudv2", tree, tmp_path / "data")
    assert [record["id"] for record in builder.as_data_source("val")] == [b"0001", b"0002"]


def test_32_bit_contexts_give_the_same_boundaries(tmp_path):
    tree = copy_tree("pascal_context", tmp_path / "tree")
    prepare("pascal_context", tree, tmp_path / "before")
    for path in (tree / "pascal-context" / "trainval").glob("*.mat"):
        context = scipy.io.loadmat(path)["LabelMap"]
        scipy.io.savemat(path, {"LabelMap": context.astype(np.int32)})
    prepare("pascal_context", tree, tmp_path / "after")
    before, after = (
        Records("pascal_context", tmp_path / place, "val", PASCAL_CONTEXT)
        for place in ("before", "after")
    )
    for index in range(len(before)):
        np.testing.assert_array_equal(after[index]["edge"], before[index]["edge"])


def test_the_annotation_of_an_image_missing_from_the_part_list_is_read(tmp_path):
    tree = copy_tree("pascal_context", tmp_path / "tree")
    prepare("pascal_context", tree, tmp_path / "before")
    (tree / "ImageSets/Parts/val.txt").write_text("{}")
    prepare("pascal_context", tree, tmp_path / "after")
    before, after = (
        Records("pascal_context", tmp_path / place, "val", PASCAL_CONTEXT)
        for place in ("before", "after")
    )
    found = [after[index]["human_parts"] for index in range(len(after))]
    assert any(label.any() for label in found)
    for index, label in enumerate(found):
        np.testing.assert_array_equal(label, before[index]["human_parts"])
    cut(tree / "human_parts" / "2008_000003.mat")
    with pytest.raises(
        DataError, match=r"human_parts/2008_000003\.mat is not a readable MATLAB file"
    ):
        prepare("pascal_context", tree, tmp_path / "cut")


def test_the_annotation_of_an_image_without_people_in_the_part_list_is_not_read(tmp_path):
    tree = copy_tree("pascal_context", tmp_path / "tree")
    objects = tree / "ImageSets/Parts/val.txt"
    without = {name: [12] for name in json.loads(objects.read_text())}
    objects.write_text(json.dumps(without))
    for path in (tree / "human_parts").glob("*.mat"):
        cut(path)
    builder = prepare("pascal_context", tree, tmp_path / "data")
    assert all((record["human_parts"] == 0).all() for record in builder.as_data_source("val"))


@pytest.mark.parametrize("change", [rotate_by_exif, grey])
def test_photos_are_read_as_stored_and_converted_to_rgb(tmp_path, change):
    tree = copy_tree("pascal_context", tmp_path / "tree")
    photo = tree / "JPEGImages" / "2008_000003.jpg"
    change(photo)
    stored = np.asarray(Image.open(photo).convert("RGB"))
    prepare("pascal_context", tree, tmp_path / "data")
    record = Records("pascal_context", tmp_path / "data", "val", PASCAL_CONTEXT)[2]
    np.testing.assert_array_equal(record["image"], stored)
