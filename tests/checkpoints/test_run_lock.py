"""Who may write to a work directory, and files on their way to a bucket."""

import contextlib
import errno
import os
import re
import tempfile
import time

import pytest
from etils import epath

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.run_lock import LockedRunDirectory, lock
from mtmamba_jax.files import locks
from mtmamba_jax.training import state
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config
from tests.training.test_processes import losses, start


@pytest.fixture(autouse=True)
def pixel_model(monkeypatch):
    monkeypatch.setattr(state, "build", build_pixel_model)


def test_a_second_run_in_the_same_directory_is_refused(tmp_path):
    first = start(tmp_path, (1, 1), "train.steps=2000", "train.eval_every=2000")
    try:
        while len(losses(tmp_path)) < 3:
            assert first[0].poll() is None, first[0].communicate()[0]
            time.sleep(0.05)
        (second,) = start(tmp_path, (1, 1), "train.steps=2000", "train.eval_every=2000")
        output = second.communicate(timeout=240)[0]
        assert second.returncode != 0
        assert f"Another process trains in {tmp_path}. Wait for it, or choose another" in output
        before = len(losses(tmp_path))
        while len(losses(tmp_path)) < before + 3:  # the first one is not disturbed
            assert first[0].poll() is None, first[0].communicate()[0]
            time.sleep(0.05)
    finally:
        first[0].kill()
    first[0].wait()
    (third,) = start(tmp_path, (1, 1), "train.steps=2000", "train.eval_every=2000")
    try:
        line = next(line for line in third.stdout if "Resuming from" in line)
        assert int(re.search(r"step (\d+)", line)[1]) > 0
    finally:
        third.kill()


@contextlib.contextmanager
def without_rights():
    """Makes root, whom no permission stops, somebody else for a while."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_directory_that_cannot_be_written_is_named_and_left_as_it_is():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        with without_rights(), pytest.raises(OSError) as error:
            train(tiny_config(), f"{folder}/run")
        assert f"{folder}/run cannot be written (Permission denied). Choose another" in str(
            error.value
        )
        assert os.listdir(folder) == []


def test_a_run_unlocks_its_directory_when_it_ends(tmp_path):
    for _ in range(2):  # in one process, which a lock would keep for as long as it lives
        train(tiny_config(train__steps="2", train__eval_every="2"), tmp_path)


def test_a_system_without_locks_is_warned_of(tmp_path, monkeypatch, capsys):
    def refuse(descriptor, **options):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.filelock, "lock_descriptor", refuse)
    with lock(RunDirectory(tmp_path / "run")):
        out = capsys.readouterr().out
    assert "cannot be locked (No locks available): its file system has no locks" in out


class Bucket:
    """A folder in a bucket whose network fails for a while."""

    def __init__(self, folder):
        self.folder, self.fails = epath.Path(folder), False

    def __fspath__(self):
        return "gs://bucket/run"

    __str__ = __fspath__

    def __truediv__(self, name):
        if self.fails:
            raise RuntimeError("no network")
        return self.folder / name


@pytest.fixture
def remote(tmp_path):
    """A work directory in a bucket."""
    for name in ("bucket", "local"):
        (tmp_path / name).mkdir()
    directory = LockedRunDirectory("gs://bucket/run", tmp_path / "local")
    directory.path = Bucket(tmp_path / "bucket")
    return directory


def test_what_could_not_be_copied_to_a_bucket_is_copied_later(remote, capsys):
    (remote.local / "metrics.jsonl").write_text("a\n")
    remote.path.fails = True
    assert not remote.sync()
    assert "metrics could not be copied to gs://bucket/run (RuntimeError: no network)" in (
        capsys.readouterr().out
    )
    remote.path.fails = False
    assert remote.sync()
    assert (remote.path.folder / "metrics.jsonl").read_text() == "a\n"
    remote.close()
    assert not remote.local.exists()


def test_what_is_not_in_the_bucket_at_the_end_is_kept(remote, capsys):
    (remote.local / "metrics.jsonl").write_text("a\n")
    remote.path.fails = True
    remote.close()
    assert f"They are kept in {remote.local}" in capsys.readouterr().out
    assert (remote.local / "metrics.jsonl").read_text() == "a\n"
