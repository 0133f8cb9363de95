"""Weight files are written whole or not at all."""

import numpy as np
import pytest

from mtmamba_jax.convert.weight_files import write_safetensors, write_torch
from tests.full_disk import largest_file


@pytest.mark.parametrize(
    ("write", "name"), [(write_safetensors, "a.safetensors"), (write_torch, "a.pth")]
)
def test_a_full_disk_leaves_the_old_file_and_the_message_names_it(tmp_path, write, name):
    if write is write_torch:
        pytest.importorskip("torch", reason="the extra convert is not installed")
    path = tmp_path / name
    path.write_bytes(b"old")
    arrays = {"weight": np.zeros(10**6, np.float32)}
    with (
        largest_file(10**5),
        pytest.raises(OSError, match=rf"The weight file could not be written to .*{name} \("),
    ):
        write(path, arrays, {})
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {name: b"old"}
