"""Names from outside as paths, and files that are written whole or not at all."""

import errno
import os
import pathlib
import time

import pytest

from mtmamba_jax.cli.console import default_workdir
from mtmamba_jax.files.paths import check_writable, path_inside, replacing, write_atomically

NAMES = ["a", "a/b", "a_b", "..", "../a", "/etc/x", "a/../../b", ".a", "_.a", "_", "", "a//b", "."]


def test_a_name_as_a_path_stays_in_its_folder_is_visible_and_is_of_no_other_name(tmp_path):
    paths = [path_inside(name) for name in NAMES]
    assert len(set(paths)) == len(NAMES)
    for path in paths:
        assert (tmp_path / path).resolve().is_relative_to(tmp_path)
        assert not any(part.startswith(".") for part in pathlib.PurePath(path).parts)
    assert path_inside("val/room 1.2") == "val/room 1.2"


@pytest.mark.parametrize("config", ["x.py:../../up", "folder/...py", "x.py:/etc"])
def test_a_default_work_directory_stays_in_runs(config, tmp_path):
    path = tmp_path / default_workdir(config)
    assert path.resolve().is_relative_to(tmp_path / "runs")
    assert path.resolve() != tmp_path / "runs"


def fill_up(path, contents):
    with open(path, "wb") as file:
        file.write(contents[:3])
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_the_old_file_and_the_message_names_it(tmp_path, monkeypatch):
    path = tmp_path / "map.png"
    write_atomically(path, b"old")
    monkeypatch.setattr(pathlib.Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match=r"map\.png could not be written \(No space left on device"):
        write_atomically(path, b"new contents")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


def test_a_full_disk_is_explained_once_and_without_the_temporary_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pathlib.Path, "write_bytes", fill_up)
    with pytest.raises(OSError) as error, replacing(tmp_path / "maps", 1, "It", "choose") as new:
        new.mkdir()
        write_atomically(new / "map.png", b"new contents")
    reason = f"It could not be written to {tmp_path}/maps (No space left on device)."
    assert str(error.value) == f"{reason} Free some disk space, or choose."
    assert error.value.errno == errno.ENOSPC


def test_a_place_where_nothing_can_be_written_is_explained_and_a_check_makes_nothing(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for folder in (tmp_path / "file", tmp_path / "file" / "a" / "b"):
        message = r"It is not written \(Not a directory\)\. Fix that, or choose another\."
        with pytest.raises(NotADirectoryError, match=message):
            check_writable(folder, "It is not written", "choose another")
        with (
            pytest.raises(OSError, match=r"It could not be written to .*\. Fix that, or choose"),
            replacing(folder / "c", 1, "It", "choose another"),
        ):
            pass
    check_writable(tmp_path / "new" / "folder", "It is not written", "choose another")
    check_writable(tmp_path, "It is not written", "choose another")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


CODES = (errno.EACCES, errno.EISDIR, errno.ENOENT, errno.EROFS, errno.EIO)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, *CODES])
def test_only_a_full_disk_is_said_to_be_full_and_errors_keep_their_type(tmp_path, code):
    path, error = tmp_path / "maps", OSError(code, os.strerror(code))
    with pytest.raises(type(error)) as raised, replacing(path, 1, "The map", "choose another"):
        raise error
    fix = "Fix that" if code in CODES else "Free some disk space"
    reason = f"The map could not be written to {path} ({error.strerror}). {fix}, or choose another."
    assert str(raised.value) == reason
    assert raised.value.errno == code


def test_a_file_in_the_place_of_a_folder_is_named_with_the_reason(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"could not be written \(Is a directory\)\. Fix"):
        write_atomically(tmp_path, b"map")


def test_a_file_may_have_the_longest_name_that_disks_take(tmp_path):
    path = tmp_path / (251 * "x" + ".png")
    write_atomically(path, b"map")
    with replacing(path, 1, "The file", "choose another") as new:
        new.write_bytes(b"other")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {path.name: b"other"}


def test_what_a_process_was_killed_over_is_removed_a_day_later(tmp_path):
    names = [f".partial.{number}" for number in range(4)]
    for name, contents in zip(names, ("new", "new", "old", "notes.txt"), strict=True):
        (tmp_path / name).mkdir()
        (tmp_path / name / contents).write_bytes(b"")
        os.utime(tmp_path / name, 2 * (time.time() - 25 * 3600,))
    os.utime(tmp_path / names[0])
    with replacing(tmp_path / "map", 1, "The map", "choose another") as new:
        new.write_bytes(b"map")
    assert {file.name for file in tmp_path.iterdir()} == {"map", *names} - {names[1]}


def test_a_replacement_that_fails_leaves_the_old_folder_and_names_it(tmp_path):
    folder = tmp_path / "artifact"
    folder.mkdir()
    (folder / "weights").write_bytes(b"old")
    with (
        pytest.raises(OSError, match=r"The artifact could not be written to .*artifact \(No space"),
        replacing(folder, 1, "The artifact", "give another --output") as new,
    ):
        new.mkdir()
        fill_up(new / "weights", b"new contents")
    assert [path.name for path in tmp_path.iterdir()] == ["artifact"]
    assert (folder / "weights").read_bytes() == b"old"
