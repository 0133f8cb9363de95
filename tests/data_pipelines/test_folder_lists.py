"""Names in lists that look right but are not, and labels without a labelled pixel."""

import numpy as np
import pytest

from mtmamba_jax.data_pipelines.folder import source as folder
from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.data_pipelines.pipeline import ExampleError, eval_batches
from mtmamba_jax.data_pipelines.read_files import DataError
from tests.data_pipelines.own_data import NAMES, SIZE, TASKS, save


@pytest.mark.parametrize(
    ("odd", "shown"),
    [
        ("{}\N{NO-BREAK SPACE}", r"\xa0"),
        ("{}\N{ZERO WIDTH SPACE}", r"\u200b"),
        ("\N{ZERO WIDTH NO-BREAK SPACE}{}", r"\ufeff"),
        ("{}\f", r"\x0c"),
        ("{}.png\N{NO-BREAK SPACE}", r"\xa0"),
        ("\N{IDEOGRAPHIC SPACE}{}", r"\u3000"),
    ],
)
def test_letters_that_do_not_show_are_shown_with_the_name_to_write(copy, odd, shown):
    names = [NAMES[6], odd.format(NAMES[7])]
    (copy / "val.txt").write_text("\n".join(names), encoding="utf-8")
    with pytest.raises(DataError) as refused:
        Folder(copy, "train", TASKS)
    message = str(refused.value)
    assert message.isprintable()  # one line
    assert f"lacks (1): {names[1]!a}. Write {NAMES[7]!r}, not " in message
    assert message.count(shown) == 2


@pytest.mark.parametrize("odd", ["{}\N{NO-BREAK SPACE}", "{}.png", "images/{}", "{}_x"])
def test_unknown_names_are_reported_without_what_follows_from_them(copy, odd):
    (copy / "val.txt").write_text("\n".join(map(odd.format, NAMES[6:])), encoding="utf-8")
    with pytest.raises(
        DataError, match=r"val\.txt names images that images/ lacks \(2\)"
    ) as refused:
        Folder(copy, "train", TASKS)
    assert "no label" not in str(refused.value)


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize(("task", "empty"), [("depth", 0), ("normals", 0), ("semseg", 255)])
def test_labels_without_a_labelled_pixel_are_warned_of_at_the_start(copy, task, empty, split):
    assert "warning" not in Folder(copy, "train", TASKS).summary()
    names = NAMES[:6] if split == "train" else NAMES[6:]
    files = sorted(each for name in names for each in (copy / task).glob(f"{name}.*"))
    for file in files:
        if file.suffix == ".npy":
            save(file, np.zeros(SIZE, np.float32))
        elif task == "depth":
            save(file, np.zeros(SIZE, np.uint16))
        else:
            save(file, np.full((*SIZE, 3) if task == "normals" else SIZE, empty, np.uint8))
    *_, warning = Folder(copy, "train", TASKS).summary().splitlines()
    use = "train on" if split == "train" else "score"
    count = len(files)
    assert warning.startswith(
        f"  warning: no pixel of {task} is labelled in {count} of the {count} labels for {split}"
    )
    assert f"so there is nothing to {use}. Label some, or leave the task out" in warning


def test_one_label_of_a_task_is_read_at_the_start_if_it_has_a_labelled_pixel(copy, monkeypatch):
    read, original = [], folder.read_label

    def count(task, path, size):
        read.append(task.name)
        return original(task, path, size)

    monkeypatch.setattr(folder, "read_label", count)
    Folder(copy, "val", TASKS)
    assert {name: read.count(name) for name in ("depth", "normals", "semseg")} == {
        "depth": 1,
        "normals": 1,
        "semseg": 1,
    }


def test_an_error_of_a_file_is_reported_without_the_name_of_its_class(copy):
    file = copy / "depth" / f"{NAMES[3]}.npy"
    save(file, np.ones((9, 9), np.float32))
    batches = eval_batches(Folder(copy, "train", TASKS), TASKS, size=SIZE, batch_size=2)
    with pytest.raises(ExampleError) as refused:
        list(batches)
    batches.close()
    assert f"Example 3 could not be read: {file} is 9x9" in str(refused.value)
    assert "DataError" not in str(refused.value)
