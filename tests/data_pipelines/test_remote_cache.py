"""Datasets on remote storage: copied once, completely or not at all, and equal to local ones."""

import collections
import hashlib
import os
import pathlib
import pickle
import shutil
import sys
import threading

import numpy as np
import pytest
from fsspec.implementations.local import LocalFileSystem

from mtmamba_jax.cli import main as cli
from mtmamba_jax.cli.prepare import prepare
from mtmamba_jax.data_pipelines import builders
from mtmamba_jax.data_pipelines.records import Records
from mtmamba_jax.files.paths import user_cache_folder
from mtmamba_jax.tasks.table import NYUDV2

PLACE = "gs://bucket/datasets"
DUMMY = pathlib.Path(builders.__file__).parent / "nyudv2" / "dummy_data"


class Bucket(LocalFileSystem):
    """gs:// as folders below `root`; counts copies, and fails for files named `fail_on`."""

    protocol = "gs"
    root: pathlib.Path
    copied: collections.Counter
    fail_on = ""

    @classmethod
    def _strip_protocol(cls, path):
        path = os.fspath(path).rstrip("/")
        return f"{cls.root}/{path.removeprefix('gs://')}" if path.startswith("gs://") else path

    def get_file(self, rpath, lpath, **kwargs):
        name = pathlib.Path(rpath).name
        if self.fail_on and self.fail_on in name:
            pathlib.Path(lpath).write_bytes(b"half")
            raise ConnectionError("the network is down")
        self.copied[name] += 1
        return super().get_file(rpath, lpath, **kwargs)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    prepare("nyudv2", str(DUMMY), str(folder), allow_partial=True)
    return folder


@pytest.fixture
def bucket(prepared, tmp_path, monkeypatch):
    """The dataset in a bucket, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(Bucket, "root", tmp_path / "remote", raising=False)
    monkeypatch.setattr(Bucket, "copied", collections.Counter(), raising=False)
    # The module: `fsspec.registry` is a view of the table in it.
    monkeypatch.setitem(sys.modules["fsspec.registry"]._registry, "gs", Bucket)
    shutil.copytree(prepared, tmp_path / "remote" / "bucket" / "datasets")
    return tmp_path / "remote" / "bucket" / "datasets" / "nyudv2" / "1.0.0"


def open_remote():
    return Records("nyudv2", PLACE, "val", NYUDV2)


def check_equal(records, prepared):
    local = Records("nyudv2", str(prepared), "val", NYUDV2)
    assert len(records) == len(local)
    for index in range(len(local)):
        for key, value in local[index].items():
            np.testing.assert_array_equal(records[index][key], value)


def files(folder):
    return {path.name for path in folder.iterdir()}


def local_copy():
    (folder,) = (user_cache_folder() / "datasets").glob("*/*/nyudv2/1.0.0")
    return folder


def test_a_copied_dataset_equals_the_local_one(bucket, prepared, capsys):
    check_equal(open_remote(), prepared)
    assert files(local_copy()) == files(bucket)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 and f"from {PLACE}/nyudv2/1.0.0 to {local_copy()}" in lines[0]


def test_opening_again_copies_nothing(bucket, prepared, capsys):
    open_remote()
    assert set(Bucket.copied) == files(bucket) and set(Bucket.copied.values()) == {1}
    capsys.readouterr()
    check_equal(open_remote(), prepared)
    assert set(Bucket.copied.values()) == {1}
    assert capsys.readouterr().out == ""


def test_a_worker_opens_the_copy_without_the_bucket(bucket, prepared):
    pickled = pickle.dumps(open_remote())
    shutil.rmtree(bucket)
    check_equal(pickle.loads(pickled), prepared)


@pytest.mark.parametrize("file", ["array_record", "features.json", "dataset_info.json"])
def test_an_interrupted_copy_is_completed(file, bucket, prepared, monkeypatch):
    monkeypatch.setattr(Bucket, "fail_on", file)
    with pytest.raises(OSError, match=r"could not be copied .*the network is down.* are kept"):
        open_remote()
    assert "dataset_info.json" not in files(local_copy())
    for path in local_copy().iterdir():
        assert path.read_bytes() == (bucket / path.name).read_bytes()
    (local_copy() / f"{file}.partial").write_bytes(b"of a killed process")
    monkeypatch.setattr(Bucket, "fail_on", "")
    check_equal(open_remote(), prepared)
    assert set(Bucket.copied.values()) == {1}


def test_a_file_whose_size_differs_from_the_listing_is_refused(bucket, monkeypatch):
    def cut(self, rpath, lpath, **kwargs):
        pathlib.Path(lpath).write_bytes(b"half")

    monkeypatch.setattr(Bucket, "get_file", cut)
    with pytest.raises(OSError, match=r"had \d+ bytes, but 4 were received"):
        open_remote()
    assert not files(local_copy())


@pytest.fixture(scope="module")
def deeper(tmp_path_factory):
    """The same dataset with a metre added to every depth; the files have the same sizes."""
    root = tmp_path_factory.mktemp("deeper")
    shutil.copytree(DUMMY, root / "source")
    for path in (root / "source" / "depth").rglob("*.npy"):
        np.save(path, np.load(path) + np.float32(1))
    prepare("nyudv2", str(root / "source"), str(root / "prepared"), allow_partial=True)
    return root / "prepared"


def test_changed_contents_of_the_same_size_are_copied_beside_the_old_copy(
    bucket, prepared, deeper, capsys
):
    before = open_remote()
    old = local_copy()
    (shard,) = (deeper / "nyudv2" / "1.0.0").glob("*-val.*")
    assert shard.stat().st_size == (bucket / shard.name).stat().st_size
    shutil.copy2(shard, bucket)
    capsys.readouterr()
    after = open_remote()
    assert set(Bucket.copied.values()) == {2}
    # Readers of the old copy are not disturbed.
    check_equal(before, prepared)
    check_equal(pickle.loads(pickle.dumps(before)), prepared)
    check_equal(after, deeper)
    assert (after[0]["depth"] != before[0]["depth"]).any()
    out = capsys.readouterr().out
    assert (
        f"nyudv2 has changed. The earlier copy can be deleted once nothing reads it: {old}" in out
    )


def test_the_same_contents_uploaded_again_are_not_copied_again(bucket, monkeypatch):
    def with_hashes(self, path, **kwargs):
        return [
            entry | {"md5Hash": hashlib.md5(pathlib.Path(entry["name"]).read_bytes()).hexdigest()}
            for entry in LocalFileSystem.ls(self, path, **kwargs)
        ]

    monkeypatch.setattr(Bucket, "ls", with_hashes)
    open_remote()
    for path in bucket.iterdir():
        os.utime(path, (1, 1))
    open_remote()
    assert set(Bucket.copied.values()) == {1}


def test_a_dataset_that_changes_during_the_copy_is_refused(bucket, prepared, monkeypatch):
    def change(self, rpath, lpath, **kwargs):
        os.utime(bucket / "samples.png", (1, 1))
        LocalFileSystem.get_file(self, rpath, lpath, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Bucket, "get_file", change)
        with pytest.raises(OSError, match="changed while it was copied"):
            open_remote()
    assert not list((user_cache_folder() / "datasets").glob("*/*/nyudv2/1.0.0"))
    check_equal(open_remote(), prepared)


@pytest.mark.parametrize("missing", ["nyudv2-val.array_record-00000-of-00001", "dataset_info.json"])
def test_an_unfinished_upload_is_refused_before_anything_is_copied(missing, bucket, prepared):
    (bucket / missing).rename(bucket.parent / "later")
    with pytest.raises(ValueError, match=f"lacks 1 file, {missing}. Is it still being uploaded"):
        open_remote()
    assert not Bucket.copied
    (bucket.parent / "later").rename(bucket / missing)
    check_equal(open_remote(), prepared)


def test_a_copy_that_lost_a_file_is_completed(bucket, prepared):
    open_remote()
    (shard,) = local_copy().glob("*-val.*")
    shard.unlink()
    check_equal(open_remote(), prepared)
    assert Bucket.copied.pop(shard.name) == 2
    assert set(Bucket.copied.values()) == {1}


def test_concurrent_openings_copy_once(bucket):
    errors = []

    def open_it():
        try:
            open_remote()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=open_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert set(Bucket.copied) == files(bucket) and set(Bucket.copied.values()) == {1}


def test_a_full_disk_is_reported_before_anything_is_copied(bucket, monkeypatch):
    usage = collections.namedtuple("usage", "free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000))
    with pytest.raises(OSError, match=r"nyudv2 needs .* MB .* are free.*XDG_CACHE_HOME"):
        open_remote()
    assert not Bucket.copied


def test_a_missing_dataset_is_answered_with_how_to_upload_it(bucket):
    command = r"\(mtmamba prepare --dataset=nyudv2 .* --data_dir=DIR\)"
    with pytest.raises(ValueError, match=rf"not prepared in gs://bucket/other.*{command}"):
        Records("nyudv2", "gs://bucket/other", "val", NYUDV2)


def test_a_bucket_that_cannot_be_read_is_named(bucket, monkeypatch):
    def refuse(self, path, **kwargs):
        raise RuntimeError("401 Anonymous caller")

    monkeypatch.setattr(Bucket, "ls", refuse)
    with pytest.raises(OSError, match=r"gs://bucket/datasets/nyudv2/1.0.0 cannot be .*Anonymous"):
        open_remote()


def test_the_default_folder_of_tfds_may_be_remote(bucket, prepared, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", PLACE)
    check_equal(Records("nyudv2", None, "val", NYUDV2), prepared)


def test_preparing_into_a_bucket_is_refused_with_the_remedy(bucket, capsys):
    arguments = ["prepare", "--dataset=nyudv2", "--source=x", f"--data_dir={PLACE}"]
    assert cli.main(arguments) == 2
    error = capsys.readouterr().err
    assert "written to a local disk" in error
    assert f"gcloud storage cp -r DIR/nyudv2 {PLACE}/" in error
