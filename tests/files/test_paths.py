"""Folders are walked to their end, whatever links they hold."""

import pytest

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
def test_files_are_found_by_every_link_once(tmp_path, tree):
    files, links, wanted = TREES[tree]
    lay_out(tmp_path, files, links)
    assert [str(path) for path in walk_files(tmp_path / "images")] == wanted


def test_many_folders_that_link_to_each_other_are_walked_quickly(tmp_path):
    names = [f"images/{n}" for n in range(20)]
    links = {f"{n}/to{m[7:]}": m for n in names for m in names if n != m}
    lay_out(tmp_path, [f"{n}/x.png" for n in names], links)
    assert len(walk_files(tmp_path / "images")) == len(names) + len(links)


def test_a_chain_of_doubled_links_is_walked_quickly(tmp_path):
    links = {f"images/{n}/{side}": f"images/{n + 1}" for n in range(40) for side in "ab"}
    lay_out(tmp_path, ["images/40/x.png"], links)
    assert len(walk_files(tmp_path / "images")) <= 1 + len(links)
