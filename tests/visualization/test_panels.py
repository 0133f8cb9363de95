"""Files of panels."""

import numpy as np
import pytest
from etils import epath

from mtmamba_jax.visualization import panels


def write(folder, *names, monkeypatch):
    monkeypatch.setattr(panels, "example_panel", lambda *_: np.zeros((4, 4, 3), np.uint8))
    return panels.write_panels(folder, (), (({"id": name}, {}) for name in names))


@pytest.mark.parametrize(
    "name", ["..", "../up", "/etc/x", ".hidden", "a/" * 200, "\N{PANDA FACE}" * 99]
)
def test_a_panel_stays_in_its_folder_whatever_the_image_is_called(tmp_path, monkeypatch, name):
    (path,) = write(epath.Path(tmp_path / "panels"), name, monkeypatch=monkeypatch)
    assert path.exists()
    assert path.resolve().parent == tmp_path / "panels"
    assert not path.name.startswith(".")


def test_each_image_has_a_panel_and_none_of_an_earlier_run_is_left(tmp_path, monkeypatch):
    folder = epath.Path(tmp_path)
    write(folder, "a/b", "old", monkeypatch=monkeypatch)
    (tmp_path / "notes.txt").write_text("mine")
    paths = write(folder, "a/b", "a_b", monkeypatch=monkeypatch)
    assert [path.name for path in paths] == ["a_b.png", "a_b_2.png"]
    assert {path.name for path in tmp_path.iterdir()} == {"a_b.png", "a_b_2.png", "notes.txt"}
