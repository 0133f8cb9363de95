"""Whatever name and bytes a photo has, `predict` writes its maps or names it, and nothing else."""

import contextlib
import io
import os
import pathlib
import sys
import tempfile
import types

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from mtmamba_jax.cli import main as cli
from mtmamba_jax.tasks.table import DEPTH, HUMAN_PARTS
from tests.arbitrary_files import file_bytes, file_names
from tests.pixel_model import build_pixel_model

TASKS = (HUMAN_PARTS, DEPTH)
SUFFIXES = st.sampled_from(["", ".png", ".jpg", ".JPEG", ".tif", ".webp", ".bmp"])
IN_SUITE = settings(max_examples=40, deadline=None, derandomize=True)
LONG = settings(IN_SUITE, max_examples=600, derandomize=False)


@pytest.fixture(scope="module", autouse=True)
def pixel_run():
    """Predicts with a model that compiles at once."""
    graph, parameters = build_pixel_model(None, TASKS)
    config = types.SimpleNamespace(data=types.SimpleNamespace(size=(16, 24)))
    run = types.SimpleNamespace(
        graph=graph, parameters=parameters, tasks=TASKS, config=config, step=1
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mtmamba_jax.cli.predict.load_run", lambda *_, **__: run)
        yield


def files_below(folder):
    return {p: p.stat().st_size for p in pathlib.Path(folder).rglob("*") if not p.is_dir()}


@contextlib.contextmanager
def captured_errors():
    """Yields a list that then holds the lines on standard error, also those of C libraries."""
    lines: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile("w+", errors="surrogateescape") as file:
        os.dup2(file.fileno(), 2)
        try:
            with contextlib.redirect_stderr(file):
                yield lines
        finally:
            os.dup2(kept, 2)
            os.close(kept)
        file.flush()
        file.seek(0)
        lines.extend(file.read().split("\n"))


def check_photo(name, contents):
    with tempfile.TemporaryDirectory() as root:
        photos, output = pathlib.Path(root, "photos"), pathlib.Path(root, "out")
        photos.mkdir()
        photo = photos / name
        try:
            photo.write_bytes(contents)
        except (OSError, ValueError):
            assume(False)  # this file system has no such name
        before = files_below(root)
        with captured_errors() as errors, contextlib.redirect_stdout(io.StringIO()):
            code = cli.main(["predict", "--workdir=run", f"--output={output}", str(photo)])
        written = {p: size for p, size in files_below(root).items() if p not in before}
        assert files_below(root) == before | written
        assert all(path.is_relative_to(output) for path in written)
        if code:
            (line,) = [each for each in errors if each and "photo/s" not in each]  # but the bar
            assert line.startswith("error: ")
            assert str(photos) in line
            assert not written
            return
        assert len([each for each in errors if each and "photo/s" not in each]) <= 1  # a note
        maps = [np.load(path) for path in written if path.suffix == ".npy"]
        assert len(maps) == len(TASKS)
        assert len({path.parent for path in written if path.suffix == ".npy"}) == 1
        assert len({each.shape for each in maps}) == 1
        assert all(np.isfinite(each).all() for each in maps)


@IN_SUITE
@given(file_names(), SUFFIXES, file_bytes())
def test_any_photo_is_predicted_or_named(name, suffix, contents):
    check_photo(name + suffix, contents)


@pytest.mark.slow
@LONG
@given(file_names(), SUFFIXES, file_bytes())
def test_hundreds_of_photos_are_predicted_or_named(name, suffix, contents):
    check_photo(name + suffix, contents)
