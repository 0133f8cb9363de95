"""Fixtures shared by the tests of a folder of one's own data."""

import shutil

import pytest

from tests.data_pipelines.own_data import write_folder


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folder as it should be; not to be changed."""
    root = tmp_path_factory.mktemp("folder") / "my_data"
    write_folder(root)
    return root


@pytest.fixture
def copy(written, tmp_path):
    """A copy of the folder, for the test to change."""
    shutil.copytree(written, tmp_path / "my_data")
    return tmp_path / "my_data"
