"""Records of prepared datasets hold the official code's arrays."""

import pathlib
import shutil

import numpy as np
import pytest

from mtmamba_jax.cli.prepare import prepare
from mtmamba_jax.data_pipelines import builders
from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.datasets import DATASETS
from mtmamba_jax.data_pipelines.records import Records
from mtmamba_jax.data_pipelines.transforms import eval_transforms
from mtmamba_jax.tasks.table import IGNORE, TASK_SETS

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
GOLDEN_FILES = {
    "nyudv2": "NYUDv2_expected.npz",
    "pascal_context": "PASCALContext_expected.npz",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A data_dir with every dataset, prepared from its dummy data."""
    folder = tmp_path_factory.mktemp("datasets")
    for name in DATASETS:
        source = pathlib.Path(builders.__file__).parent / name / "dummy_data"
        prepare(name, str(source), str(folder), allow_partial=True)
    return str(folder)


def official_key(task):
    return "sal" if task.name == "saliency" else task.name


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_records_hold_the_official_arrays(name, data_dir):
    arrays = np.load(GOLDEN / GOLDEN_FILES[name])
    records = Records(name, data_dir, "val", TASK_SETS[name])
    assert {records[i]["id"] for i in range(len(records))} == {k.split("/")[0] for k in arrays}
    for index in range(len(records)):
        example = records[index]
        check_example(example, records.tasks)
        image = arrays[f"{example['id']}/raw/image"]
        np.testing.assert_array_equal(example["image"], image)
        for task in records.tasks:
            label = arrays[f"{example['id']}/raw/{official_key(task)}"].copy()
            # The builders mark missing labels as ignore; the official code's transforms do.
            if task.name in ("depth", "normals"):
                label[(label == 0).all(-1)] = IGNORE
            np.testing.assert_array_equal(example[task.name], label)


@pytest.mark.parametrize("name", GOLDEN_FILES)
def test_evaluation_transforms_of_records_give_the_official_arrays(name, data_dir):
    arrays = np.load(GOLDEN / GOLDEN_FILES[name])
    records = Records(name, data_dir, "val", TASK_SETS[name])
    for index in range(len(records)):
        example = records[index]
        expected = arrays[f"{example['id']}/val/image"]
        for transform in eval_transforms(records.tasks, expected.shape[:2]):
            example = transform(example, np.random.default_rng(0))
        # Normalised values reach 2.7, where float32 values are 2.4e-7 apart: a few roundings.
        np.testing.assert_allclose(example["image"], expected, rtol=0, atol=1e-6)
        for task in records.tasks:
            label = arrays[f"{example['id']}/val/{official_key(task)}"]
            np.testing.assert_array_equal(example[task.name], label)


@pytest.mark.parametrize("name", DATASETS)
def test_a_record_holds_the_requested_tasks(name, data_dir):
    whole = Records(name, data_dir, "val", TASK_SETS[name])
    for task in TASK_SETS[name]:
        records = Records(name, data_dir, "val", (task,))
        assert len(records) == len(whole)
        example = records[0]
        assert set(example) == {"image", "id", task.name}
        for key, value in example.items():
            np.testing.assert_array_equal(value, whole[0][key])


def test_a_missing_file_is_named_with_the_remedy(data_dir, tmp_path):
    shutil.copytree(f"{data_dir}/nyudv2", tmp_path / "nyudv2")
    (shard,) = (tmp_path / "nyudv2" / "1.0.0").glob("*-val.*")
    shard.unlink()
    wanted = rf"lacks 1 of the 1 files of its split 'val': {shard.name}\. Copy the folder again"
    with pytest.raises(ValueError, match=wanted):
        Records("nyudv2", str(tmp_path), "val", TASK_SETS["nyudv2"])
