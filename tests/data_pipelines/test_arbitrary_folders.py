"""Whatever names and lists your own data has, it is read or refused by name, inside its folder."""

import pathlib
import sys
import tempfile
import unicodedata
import warnings

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.tasks.table import SALIENCY
from tests.arbitrary_files import file_bytes, file_names

IN_SUITE = settings(max_examples=60, deadline=None, derandomize=True)
LONG = settings(IN_SUITE, max_examples=2000, derandomize=False)

LONG_PARTS = st.sampled_from([250 * "x", 300 * "x", 120 * "ü"])
SEPARATORS = st.sampled_from(
    ["a\u2028b", "a\x85b", "\x0ba", "a\x1c", "a\rb", "a\u3000", " a", "a "]
)
PARTS = file_names() | SEPARATORS | LONG_PARTS
NAMES = PARTS | st.lists(PARTS, min_size=2, max_size=3).map("/".join) | st.just(2100 * "a/" + "a")
SUFFIXES = st.sampled_from([".png", ".PNG", ".jpg", ".tif", ""])
OUTSIDE = st.sampled_from(["../../secret", "/secret", "../images/../../secret", "..\\secret"])
ENDS = st.sampled_from(["\n", "\r\n", "\r", "\n\n"])

SOUND = {
    "images": cv2.imencode(".png", np.full((4, 5, 3), 9, np.uint8))[1].tobytes(),
    "saliency": cv2.imencode(".png", np.ones((4, 5), np.uint8))[1].tobytes(),
}

opened: list[pathlib.Path] = []


def record_opened(event, arguments):
    if event == "open" and isinstance(arguments[0], str):
        opened.append(pathlib.Path(arguments[0]))


@pytest.fixture(scope="module", autouse=True)
def hook():
    sys.addaudithook(record_opened)  # which cannot be removed again


def is_documented(name):
    """Returns whether a name is one that images of one's own may have."""
    parts = name.split("/")
    return (
        len(name) < 1000
        and name == name.strip(" \t")
        and not set(name) & {*"\n\r\\"}
        and all(0 < len(part.encode()) < 250 and part[0] != "." for part in parts)
    )


@st.composite
def sound_folders(draw):
    """The files of a folder as documented: {path: bytes, or None for a sound image}."""
    names = NAMES.filter(is_documented)
    names = draw(st.lists(names, min_size=2, max_size=4, unique_by=(composed, str.casefold)))
    files = {f"{folder}/{name}.png": None for folder in SOUND for name in names}
    end = draw(ENDS)
    return files | {
        "train.txt": (end.join(names[1:]) + end).encode(),
        "val.txt": names[0].encode(),
    }


@st.composite
def folders(draw):
    """The files of any folder: {path: bytes, or None for a sound image}."""
    lists = {"train": ["one"], "val": ["two"]}
    files: dict[str, bytes | None] = {
        f"{folder}/{name}.png": None for name in ("one", "two") for folder in SOUND
    }
    contents = st.none() | file_bytes()
    for name in draw(st.lists(NAMES, max_size=2, unique=True)):
        files[f"images/{name}{draw(SUFFIXES)}"] = draw(contents)
        files[f"saliency/{name}.png"] = draw(contents)
        lists[draw(st.sampled_from(["train", "val"]))].append(name)
    known = st.sampled_from([*lists["train"], *lists["val"]])
    changes = st.sampled_from(["{}.png", "./{}", "images/{}", " {}", "{}/", "../images/{}"])
    changed = st.builds(lambda name, change: change.replace("{}", name), known, changes)
    for split, names in lists.items():
        names += draw(st.lists(known | changed | NAMES | OUTSIDE, max_size=1))
        end = draw(ENDS)
        files[f"{split}.txt"] = (end.join(names) + end).encode()
    return files


def write_folder(root, files):
    """Writes those of the files that lie inside and that this file system can hold."""
    for folder in SOUND:
        (root / folder).mkdir()
    for name, contents in files.items():
        path, top = root / name, name.split("/")[0]
        if ".." in path.parts:
            continue
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(SOUND[top] if contents is None else contents)
        except OSError:
            continue


def state_of(root):
    return {path: path.lstat().st_mtime_ns for path in root.rglob("*")}


def composed(name):
    return unicodedata.normalize("NFC", name)


def check_folder(files, is_sound=False):
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        data = root / "data"
        data.mkdir()
        write_folder(data, files)
        (root / "secret.png").write_bytes(SOUND["images"])
        before = state_of(root)
        opened.clear()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of PIL, about what it reads all the same
                read_all(data)
        except DataError as error:
            assert not is_sound, error
            assert str(data) in str(error)
        below = [path for path in opened if path.is_relative_to(root)]
        assert all(path.is_relative_to(data) and ".." not in path.parts for path in below)
        assert state_of(root) == before


def read_all(data):
    images = [path.relative_to(data / "images") for path in data.glob("images/**/*.*")]
    names = {composed(str(path).removesuffix(path.suffix)) for path in images}
    for split in ("train", "val"):
        source = Folder(data, split, (SALIENCY,))
        assert names.issuperset(source.ids)
        for index in range(len(source)):
            check_example(source[index], (SALIENCY,))


@IN_SUITE
@given(sound_folders())
def test_a_folder_with_documented_names_is_read(files):
    check_folder(files, is_sound=True)


@IN_SUITE
@given(folders())
@example(
    {
        **{f"{folder}/{name}.png": None for folder in SOUND for name in ("one", "two", ".")},
        **{"train.txt": b"one\n.\n", "val.txt": b"two\n"},
    }
)
def test_any_folder_is_read_or_refused_without_leaving_it(files):
    check_folder(files)


@pytest.mark.slow
@LONG
@given(sound_folders())
def test_thousands_of_folders_with_documented_names_are_read(files):
    check_folder(files, is_sound=True)


@pytest.mark.slow
@LONG
@given(folders())
def test_thousands_of_folders_are_read_or_refused_without_leaving_them(files):
    check_folder(files)
