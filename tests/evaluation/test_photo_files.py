"""Which files of folders are photos, and how they are read."""

import os
import re
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, features

from mtmamba_jax.evaluation.photo_files import Failure, find_photos, read_photo
from tests.image_files import claiming_png

PIXELS = np.zeros((20, 40, 3), np.uint8)
PIXELS[:, :20], PIXELS[:10, 20:] = (255, 0, 0), (0, 255, 0)
UPRIGHT = np.rot90(PIXELS, -1)  # as orientation 6 says

FORMATS = ["jpg", "png", "webp", "tif", "gif", "bmp", "jp2", "ppm", "tga", "mpo"]
if features.check("avif"):
    FORMATS.append("avif")


def write(path, text="photo"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("suffix", FORMATS)
def test_what_pillow_or_opencv_reads_is_read_as_rgb(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    Image.fromarray(PIXELS).save(path)
    photo = read_photo(path).pixels
    assert photo.shape == PIXELS.shape
    assert abs(photo[::19, ::39].astype(int) - PIXELS[::19, ::39]).max() < 40
    assert find_photos([tmp_path], tmp_path / "out").photos == [path]


@pytest.mark.parametrize("suffix", sorted({"jpg", "png", "webp", "tif", "avif"} & {*FORMATS}))
def test_photos_are_turned_as_their_exif_data_says(tmp_path, suffix):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(PIXELS).save(tmp_path / f"x.{suffix}", exif=exif)
    photo = read_photo(tmp_path / f"x.{suffix}").pixels
    assert photo.shape == UPRIGHT.shape
    assert abs(photo[::39, ::19].astype(int) - UPRIGHT[::39, ::19]).max() < 40


def test_a_folder_counts_and_names_what_it_skips(tmp_path):
    for name in ("a.jpg", "b/c.PNG", "b/IMG_1.HEIC", "IMG_2.heic", "._a.jpg", "notes.txt", "list"):
        write(tmp_path / name)
    (tmp_path / "d.jpg").symlink_to(tmp_path / "gone")
    os.mkfifo(tmp_path / "e.jpg")
    (tmp_path / "f.jpg").symlink_to("/dev/zero")
    found = find_photos([tmp_path], tmp_path / "out")
    assert found.photos == [tmp_path / "a.jpg", tmp_path / "b" / "c.PNG"]
    assert found.failures == []
    (line,) = found.skipped
    assert "skipped 8 files" in line
    kinds = ("1 .txt", "1 ._* (of macOS)", "1 without suffix", "1 broken link", "2 device or pipe")
    assert all(kind in line for kind in ("2 .heic", *kinds))
    assert f"; the first is {tmp_path / '._a.jpg'}. Save photos among them as JPEG" in line


def test_a_folder_without_photos_says_what_it_holds(tmp_path):
    write(tmp_path / "IMG_2.heic")
    (failure,) = find_photos([tmp_path], tmp_path / "out").failures
    assert "holds no photo" in failure.reason
    assert "it holds 1 .heic. Save photos as JPEG or PNG" in failure.reason


def test_linked_folders_are_searched_and_links_to_upper_ones_end(tmp_path):
    write(tmp_path / "elsewhere" / "a.jpg")
    photos = tmp_path / "photos"
    write(photos / "b.jpg")
    for name, target in (("link", tmp_path / "elsewhere"), ("up", photos), ("again", photos)):
        (photos / name).symlink_to(target)
    found = find_photos([photos], tmp_path / "out")
    assert found.photos == [photos / "b.jpg", photos / "link" / "a.jpg"]


def test_predictions_are_not_photos_though_linked_to(tmp_path):
    write(tmp_path / "a.jpg")
    write(tmp_path / "out" / "a" / "panel.png")
    (tmp_path / "link").symlink_to(tmp_path / "out" / "a")
    assert find_photos([tmp_path], tmp_path / "out").photos == [tmp_path / "a.jpg"]


def cut(path, kept):
    _, data = cv2.imencode(".png", PIXELS)
    path.write_bytes(data.tobytes()[:kept])


@pytest.mark.parametrize(
    "name",
    [
        "heic",
        "heix",
        "heim",
        "heis",
        "hevc",
        "hevx",
        "hevm",
        "hevs",
        "mif1",
        "mif2",
        "msf1",
        "miaf",
    ],
)
@pytest.mark.parametrize("place", ["major", "compatible"])
def test_heif_of_every_brand_is_called_heic(tmp_path, name, place):
    brands = [name, "mif1"] if place == "major" else ["iso8", "mif1", name]
    listed = (brands[0] + "\0\0\0\0" + "".join(brands[1:])).encode()
    box = struct.pack(">I4s", 8 + len(listed), b"ftyp") + listed
    (tmp_path / "x.jpg").write_bytes(box + bytes(50))
    failure = read_photo(tmp_path / "x.jpg")
    assert failure.reason == "is HEIC, which is not read here; save it as JPEG or PNG"


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            lambda path: path.write_bytes(claiming_png(60000, 60000)),
            r"has more than 178 megapixels; shrink it",
        ),
        (lambda path: path.write_bytes(b"<!DOCTYPE html>"), "not an image, but a web page"),
        (lambda path: path.write_bytes(b"\x89PNG\r\n\x1a\n"), "not an image, or a damaged one"),
        (lambda path: path.write_bytes(os.urandom(999)), "not an image, or a damaged one"),
        (lambda path: cut(path, 30), "not an image, or a damaged one"),
        (lambda path: path.touch(), "is empty"),
        (lambda path: os.truncate(os.open(path, os.O_CREAT | os.O_RDWR), 2**31), "more than 2 GB"),
        (lambda path: os.mkfifo(path), "not a file"),
        (lambda path: path.symlink_to("/dev/zero"), "not a file"),
    ],
)
def test_a_file_that_is_no_photo_is_refused_with_the_reason(tmp_path, make, reason):
    make(tmp_path / "x.jpg")
    failure = read_photo(tmp_path / "x.jpg")
    assert isinstance(failure, Failure)
    assert re.search(reason, failure.reason)
