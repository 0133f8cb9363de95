"""Archives are extracted completely or not at all; damaged or unsafe ones are refused."""

import errno
import os
import shutil
import tarfile
import zipfile

import pytest

from mtmamba_jax.data_pipelines.builders import archives, locate
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.data_pipelines.records import create_builder
from tests.data_pipelines.dummy_trees import (
    copy_tree,
    fill_up,
    pack,
    prepare,
    records_of,
    visible,
)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_a_disk_that_fills_up_while_extracting_is_reported_and_leaves_nothing_incomplete(
    suffix, small_tree, tmp_path
):
    archive = pack(tmp_path / f"NYUDv2{suffix}", small_tree)
    message = fill_up(1000, archive, tmp_path / "data")
    assert f"Extracting {archive} below" in message
    assert "Free some disk space, or give another --data_dir" in message


def test_the_contents_of_a_zip_must_fit_on_the_disk(tmp_path, monkeypatch):
    archive = tmp_path / "NYUDv2.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("depth/1.npy", bytes(10_000_000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OSError, match=r"Extracting .*NYUDv2\.zip needs about 10 MB"):
        prepare("nyudv2", archive, tmp_path / "data")


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory):
    return copy_tree("nyudv2", tmp_path_factory.mktemp("small") / "NYUDv2")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_archive_or_its_folder_gives_the_same_records_as_its_contents(
    small_tree, tmp_path, suffix
):
    prepare("nyudv2", small_tree, tmp_path / "from_tree")
    (tmp_path / "downloads").mkdir()
    archive = pack(tmp_path / "downloads" / f"NYUDv2{suffix}", small_tree)
    (tmp_path / "downloads" / "holiday.zip").write_bytes(b"not ours")
    for source in (archive, archive.parent):
        data_dir = tmp_path / f"from_{source.name}"
        prepare("nyudv2", source, data_dir)
        assert records_of(data_dir) == records_of(tmp_path / "from_tree")
        assert not (data_dir / "nyudv2" / ".1.0.0.unfinished").exists()


def cut(archive):
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])


def flip(archive):
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 255
    archive.write_bytes(bytes(data))


def web_page(archive):
    archive.write_text("<!DOCTYPE html><html>Google Drive: quota exceeded</html>")


def repack(*extra):
    return lambda archive: pack(archive, extra=extra)


def link(archive):
    with tarfile.open(archive, "w:gz") as opened:
        member = tarfile.TarInfo("NYUDv2/images")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        opened.addfile(member)


def offset_of(archive, index):
    with tarfile.open(archive) as opened:
        return opened.getmembers()[index].offset


def cut_between_members(archive):
    archive.write_bytes(archive.read_bytes()[: offset_of(archive, 3)])


def cut_in_the_header(archive):
    archive.write_bytes(archive.read_bytes()[: offset_of(archive, 3) + 100])


def cut_in_the_end(archive):
    """Leaves one of the two zero blocks."""
    with tarfile.open(archive) as opened:
        opened.getmembers()
        end = opened.offset
    archive.write_bytes(archive.read_bytes()[: end + 512])


def break_a_header(archive):
    data = bytearray(archive.read_bytes())
    data[offset_of(archive, 3) + 20] ^= 255
    archive.write_bytes(bytes(data))


def claim_deflate64(archive):
    """Changes the compression method in every header to one that zipfile does not support."""
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = data.find(signature)
        while start >= 0:
            data[start + offset] = 9
            start = data.find(signature, start + 4)
    archive.write_bytes(bytes(data))


DAMAGED = r"is damaged or cut off after \d+ bytes .*\. Download it again"


STRANGE = r"It is not the published archive; do not use it"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("NYUDv2.tar.gz", cut, DAMAGED),
        ("NYUDv2.zip", cut, DAMAGED),
        ("NYUDv2.tar.gz", flip, DAMAGED),
        ("NYUDv2.zip", flip, DAMAGED),
        ("NYUDv2.tar.gz", lambda archive: archive.write_bytes(b""), DAMAGED),
        ("NYUDv2.tar", cut, DAMAGED),
        ("NYUDv2.tar", cut_between_members, DAMAGED),
        ("NYUDv2.tar", cut_in_the_header, DAMAGED),
        ("NYUDv2.tar", cut_in_the_end, DAMAGED),
        ("NYUDv2.tar", break_a_header, DAMAGED),
        ("NYUDv2.tar", lambda archive: archive.write_bytes(b""), DAMAGED),
        ("NYUDv2.tar", web_page, r"is a web page.*Download it in a browser"),
        ("NYUDv2.tar", repack(("../evil", b"x")), rf"'\.\./evil', which leads out.*{STRANGE}"),
        ("NYUDv2.zip", claim_deflate64, r"cannot be unpacked here .* with another program"),
        ("NYUDv2.tar.gz", web_page, r"is a web page.*Download it in a browser"),
        ("NYUDv2.zip", web_page, r"is a web page.*Download it in a browser"),
        ("NYUDv2.tar.gz", repack(("../evil", b"x")), rf"'\.\./evil', which leads out.*{STRANGE}"),
        ("NYUDv2.tar.gz", repack(("/evil", b"x")), rf"'/evil', which leads out.*{STRANGE}"),
        ("NYUDv2.zip", repack(("a/../../evil", b"x")), rf"which leads out.*{STRANGE}"),
        ("NYUDv2.zip", repack(("C:\\evil", b"x")), rf"which leads out.*{STRANGE}"),
        ("NYUDv2.tar.gz", link, rf"neither file nor folder\. {STRANGE}"),
        (
            "NYUDv2.zip",
            repack(("README", b"x")),
            r"is not nyudv2 as published: it has no folder images, segmentation",
        ),
    ],
)
def test_a_bad_archive_is_refused_with_its_name_and_the_remedy(
    small_tree, tmp_path, name, change, message
):
    archive = pack(tmp_path / name, small_tree)
    change(archive)
    with pytest.raises(DataError, match=message) as raised:
        prepare("nyudv2", archive, tmp_path / "data")
    assert "NYUDv2" in str(raised.value)
    assert visible(tmp_path / "data") == []
    assert not (tmp_path / "evil").exists()
    assert not list((tmp_path / "data").rglob("*.partial"))


def write_trainextra(folder):
    """Writes a folder of another Cityscapes archive that is found before the needed one."""
    path = folder / "leftImg8bit" / "train_extra" / "augsburg" / "augsburg_leftImg8bit.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not wanted")


def test_cityscapes_is_read_from_its_three_archives_among_others(tmp_path):
    tree = copy_tree("cityscapes", tmp_path / "tree")
    prepare("cityscapes", tree, tmp_path / "from_tree")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    write_trainextra(tmp_path / "extra")
    pack(downloads / "leftImg8bit_trainextra.zip", tmp_path / "extra" / "leftImg8bit")
    (downloads / "gtCoarse.zip").write_bytes(b"not wanted")
    for part in ("leftImg8bit", "gtFine", "disparity"):
        pack(downloads / f"{part}_trainvaltest.zip", tree / part)
    prepare("cityscapes", downloads, tmp_path / "from_zips")
    assert records_of(tmp_path / "from_zips") == records_of(tmp_path / "from_tree")


@pytest.mark.parametrize("together", [True, False])
def test_cityscapes_is_found_among_folders_of_its_other_archives(together, tmp_path):
    tree = copy_tree("cityscapes", tmp_path / "tree")
    downloads = tmp_path / "downloads"
    write_trainextra(downloads / "a_trainextra")
    if together:  # a folder that holds all three names
        for part in ("gtFine", "disparity"):
            (downloads / "a_trainextra" / part / "train_extra").mkdir(parents=True)
    for part in ("leftImg8bit", "gtFine", "disparity"):
        shutil.copytree(tree / part, downloads / f"{part}_trainvaltest" / part)
    splits = locate.open_splits(
        create_builder("cityscapes").FILES,
        "cityscapes",
        downloads,
        tmp_path / "staging",
        allow_partial=True,
    )
    assert [len(files) for files in splits] == [2, 2]


def test_unreadable_folders_are_skipped(small_tree, tmp_path, monkeypatch):
    shutil.copytree(small_tree, tmp_path / "source" / "NYUDv2")
    private = tmp_path / "source" / "A"
    private.mkdir()
    scandir = os.scandir

    def refuse(path="."):  # the tests may run as root, who can read everything
        if path == private:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    prepare("nyudv2", tmp_path / "source", tmp_path / "data")
    assert records_of(tmp_path / "data")


def test_an_extracted_archive_is_not_extracted_again(small_tree, tmp_path):
    archive = pack(tmp_path / "NYUDv2.zip", small_tree)
    folder = archives.extract(archive, tmp_path / "extracted")
    before = folder.stat().st_mtime_ns
    assert archives.extract(archive, tmp_path / "extracted") == folder
    assert folder.stat().st_mtime_ns == before
