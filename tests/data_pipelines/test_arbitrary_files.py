"""Whatever bytes a file of your own data has, it is read as documented or refused by name."""

import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.folder.labels import label_suffixes, read_label
from mtmamba_jax.data_pipelines.read_files import DataError, read_rgb
from tests.arbitrary_files import file_bytes
from tests.data_pipelines.own_data import TASKS

IN_SUITE = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
LONG = settings(IN_SUITE, max_examples=3000, derandomize=False)


def read_or_refuse(read, path):
    """Returns what a file holds, or None if it was refused in one line with its name."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PIL, about what it reads all the same
            return read()
    except DataError as error:
        assert str(path) in str(error)
        return None


def check_label(folder, task, suffix, contents):
    path = folder / f"label{suffix}"
    path.write_bytes(contents)
    label = read_or_refuse(lambda: read_label(task, path, None), path)
    if label is not None:
        image = np.zeros((*label.shape[:2], 3), np.uint8)
        check_example({"image": image, "id": "x", task.name: label}, (task,))


def check_image(folder, suffix, contents):
    path = folder / f"image{suffix}"
    path.write_bytes(contents)
    image = read_or_refuse(lambda: read_rgb(path), path)
    if image is not None:
        check_example({"image": image, "id": "x"}, ())


LABELS = st.sampled_from([(task, suffix) for task in TASKS for suffix in label_suffixes(task)])
IMAGES = st.sampled_from([".jpg", ".jpeg", ".png"])


@IN_SUITE
@given(LABELS, file_bytes())
def test_a_label_file_is_read_or_refused(tmp_path, kind, contents):
    check_label(tmp_path, *kind, contents)


@IN_SUITE
@given(IMAGES, file_bytes())
def test_an_image_file_is_read_or_refused(tmp_path, suffix, contents):
    check_image(tmp_path, suffix, contents)


@pytest.mark.slow
@LONG
@given(LABELS, file_bytes())
def test_thousands_of_label_files_are_read_or_refused(tmp_path, kind, contents):
    check_label(tmp_path, *kind, contents)


@pytest.mark.slow
@LONG
@given(IMAGES, file_bytes())
def test_thousands_of_image_files_are_read_or_refused(tmp_path, suffix, contents):
    check_image(tmp_path, suffix, contents)
