"""Folders are walked to their end, whatever links they hold."""

import pytest

from mtmamba_jax.files import paths
from mtmamba_jax.files.paths import walk_files


def lay_out(root, files, links):
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(root / target)


TREES = {
    "links to the folder and above it": (
        ["images/x.png", "semseg/x.png"],
        {
            f"images/{n}": target
            for n, target in zip("abcd", ("", "..", "images", "/"), strict=True)
        },
        ["x.png"],
    ),
    "links of subfolders to those above": (
        ["images/one/x.png", "images/two/y.png"],
        {f"images/{n}/{m}": "images" for n in ("one", "two") for m in "abc"},
        ["one/x.png", "two/y.png"],
    ),
    "links to each other": (
        ["images/one/x.png", "images/two/y.png"],
        {"images/one/a": "images/two", "images/two/b": "images/one"},
        ["one/a/y.png", "one/x.png", "two/b/x.png", "two/y.png"],
    ),
    "two links to one folder": (
        ["pool/x.png"],
        {"images/train": "pool", "images/val": "pool"},
        ["train/x.png", "val/x.png"],
    ),
    "two links to a folder with a link elsewhere": (
        ["elsewhere/x.png"],
        {"images/train": "pool", "images/val": "pool", "pool/cam": "elsewhere"},
        ["train/cam/x.png", "val/cam/x.png"],
    ),
    "three folders that link to each other": (
        ["images/one/x.png", "images/two/y.png", "images/three/z.png"],
        {
            "images/one/a": "images/two",
            "images/two/b": "images/three",
            "images/three/c": "images/one",
        },
        [
            *("one/a/b/z.png", "one/a/y.png", "one/x.png"),
            *("three/c/a/y.png", "three/c/x.png", "three/z.png"),
            *("two/b/c/x.png", "two/b/z.png", "two/y.png"),
        ],
    ),
    "a link to a folder with a link to the folder above": (
        ["images/x.png", "other/y.png", "semseg/x.png"],
        {"images/a": "other", "other/b": ""},
        ["a/y.png", "x.png"],
    ),
    "the folder is a link to the folder above it": (["x.png"], {"images": ""}, ["x.png"]),
    "a link to itself, and one to nothing": (
        ["images/x.png"],
        {"images/a": "images/a", "images/b": "nothing"},
        ["a", "b", "x.png"],
    ),
    "hidden files and folders": (
        ["images/._x.png", "images/.old/x.png", "images/x.png"],
        {},
        ["x.png"],
    ),
}


@pytest.mark.parametrize("tree", TREES)
def test_files_are_found_by_every_link_that_does_not_lead_upwards(tmp_path, tree):
    files, links, wanted = TREES[tree]
    lay_out(tmp_path, files, links)
    assert [str(path) for path in walk_files(tmp_path / "images")] == wanted


def test_subfolders_with_two_links_upwards_each_are_walked_quickly(tmp_path):
    folders = [f"images/{n}" for n in range(40)]
    links = {f"{folder}/{n}": up for folder in folders for n, up in enumerate(("images", ""))}
    lay_out(tmp_path, [f"{folder}/x.png" for folder in folders], links)
    assert len(walk_files(tmp_path / "images")) == len(folders)


def test_links_that_are_followed_once_each_are_not_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "_MOST_AGAIN", 10)
    lay_out(tmp_path, ["pool/x.png"], {f"images/{n}": "pool" for n in range(50)})
    assert len(walk_files(tmp_path / "images")) == 50


CHAIN = {f"images/{n}/{side}": f"images/{n + 1}" for n in range(40) for side in "ab"}
MUTUAL = {f"images/{n}/to{m}": f"images/{m}" for n in range(20) for m in range(20) if n != m}


@pytest.mark.parametrize("links", [CHAIN, MUTUAL], ids=["doubled links", "links to each other"])
def test_links_that_multiply_are_refused_quickly_and_named(tmp_path, links):
    lay_out(tmp_path, ["images/19/x.png", "images/40/x.png"], links)
    with pytest.raises(ValueError, match=r"/images holds links to folders, such as .*/images/\d+/"):
        walk_files(tmp_path / "images")
