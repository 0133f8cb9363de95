"""Where a run writes: places that it refuses, and files on their way to a bucket."""

import errno

import pytest
from etils import epath

from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.checkpoints.run_lock import LockedRunDirectory, lock
from mtmamba_jax.files import locks
from mtmamba_jax.training.train import train
from tests.tiny import tiny_config


@pytest.mark.parametrize("place", ["s3://bucket/run", "file:///run"])
def test_places_that_are_not_written_to_are_refused(place):
    message = rf"--workdir={place}: runs are not written to \w+://. Give a folder, or a place in"
    with pytest.raises(ValueError, match=message):
        train(tiny_config(), place)
    with pytest.raises(ValueError, match=message):
        load_run(place, "best")


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
