"""The benchmark of the input: all ways make the same arrays. No speed is asserted."""

import dataclasses
import json
import multiprocessing
import time

import numpy as np
import pytest

from mtmamba_jax.benchmarks import input as input_benchmark
from mtmamba_jax.benchmarks.plain_input import Published, Raw, plain_batches
from mtmamba_jax.data_pipelines.batch import check_batch
from mtmamba_jax.data_pipelines.pipeline import eval_batches
from mtmamba_jax.data_pipelines.records import DATASETS, Records
from mtmamba_jax.data_pipelines.transforms import AugmentSettings, train_transforms
from mtmamba_jax.messages import markdown_table
from mtmamba_jax.tasks import TASK_SETS

UNCHANGED = AugmentSettings(
    scale=(1.0, 1.0), max_class_share=1.0, flip_probability=0.0, jitter_probability=0.0
)


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    root = tmp_path_factory.mktemp("input")
    found = {
        name: input_benchmark.Dataset(name, root / name, root / "prepared") for name in DATASETS
    }
    for dataset in found.values():
        dataset.write(3, (48, 64))
    return found


def published(dataset):
    return Published(dataset.name, dataset.layout())


def raw(dataset):
    tasks = TASK_SETS[dataset.name]
    return Raw(dataset.name, Records(dataset.name, dataset.prepared, "train", tasks))


def make_plain(dataset, source=published, **arguments):
    given = {"crop_size": (64, 80), "batch_size": 3, "seed": 0, "augment": AugmentSettings()}
    batches = plain_batches(source(dataset), **(given | arguments))
    batch = next(batches)
    return batch | {"id": np.array(["?"] * 3), "mask": np.ones(3, bool)}


@pytest.mark.parametrize("source", [published, raw])
@pytest.mark.parametrize("name", DATASETS)
def test_the_plain_way_without_its_random_part_equals_the_records(name, source, datasets):
    tasks = TASK_SETS[name]
    records = Records(name, datasets[name].prepared, "train", tasks)
    ours = next(eval_batches(records, tasks, size=(64, 80), batch_size=3))
    order = np.random.default_rng(0).permutation(3)  # as `plain_batches` draws it
    plain = make_plain(datasets[name], source, augment=UNCHANGED)
    check_batch(plain, tasks)
    np.testing.assert_array_equal(plain["size"], ours["size"][order])
    # Normalised values reach 2.7, where float32 values are 2.4e-7 apart: a few roundings.
    np.testing.assert_allclose(plain["images"], ours["images"][order], rtol=0, atol=1e-6)
    for task in tasks:
        np.testing.assert_array_equal(plain[task.name], ours[task.name][order])


@pytest.mark.parametrize("scale", [0.7, 1.2])
@pytest.mark.parametrize("source", [published, raw])
@pytest.mark.parametrize("name", DATASETS)
def test_the_plain_way_zooms_labels_as_the_recipe_does(name, source, scale, datasets):
    tasks = TASK_SETS[name]
    records = Records(name, datasets[name].prepared, "train", tasks)
    settings = dataclasses.replace(UNCHANGED, scale=(scale, scale))
    plain = make_plain(datasets[name], source, augment=settings)  # the crop holds the whole image
    for row, index in enumerate(np.random.default_rng(0).permutation(3)):
        example = records[index]
        for transform in train_transforms(tasks, (64, 80), settings):
            example = transform(example, np.random.default_rng(0))
        for task in tasks:
            np.testing.assert_array_equal(plain[task.name][row], example[task.name])


def test_the_plain_way_ignores_a_crop_without_people():
    parts = np.zeros((40, 40), np.int32)
    parts[:8, :8] = 3
    parts[30:, 30:] = 255
    photo = np.zeros((40, 40, 3), np.uint8)
    source = [{"images": photo, "semseg": parts % 2, "human_parts": parts}]
    seen = []
    for seed in range(20):
        arguments = {"crop_size": (16, 16), "batch_size": 1, "seed": seed, "augment": UNCHANGED}
        label = next(plain_batches(source, **arguments))["human_parts"]
        seen.append(bool((label == 3).any()))
        assert seen[-1] or (label == 255).all()
    assert len(set(seen)) == 2


@pytest.mark.parametrize("source", [published, raw])
@pytest.mark.parametrize("name", DATASETS)
def test_the_plain_way_fulfils_the_contract(name, source, datasets):
    tasks = TASK_SETS[name]
    for seed in range(5):
        batch = make_plain(datasets[name], source, crop_size=(32, 48), seed=seed)
        check_batch(batch, tasks)
        for task in tasks:
            label = batch[task.name][batch[task.name] != task.ignore]
            if task.class_names and label.size:
                assert label.min() >= 0 and label.max() < task.channels
        if "normals" in batch:
            valid = batch["normals"][(batch["normals"] != 255).all(-1)]
            # 8 bits: half a level is 0.004.
            np.testing.assert_allclose(np.linalg.norm(valid, axis=-1), 1, atol=0.01)


def test_the_plain_way_can_leave_labels_on_a_finer_grid(datasets):
    batch = make_plain(datasets["cityscapes"], crop_size=(16, 24), label_scale=2)
    assert batch["images"].shape == (3, 16, 24, 3)
    assert batch["semseg"].shape == batch["depth"].shape == (3, 32, 48, 1)


def test_workers_are_tried_in_powers_of_two_up_to_the_cores():
    assert input_benchmark.worker_counts(1) == [0, 1]
    assert input_benchmark.worker_counts(2) == [0, 1, 2]
    assert input_benchmark.worker_counts(6) == [0, 1, 2, 4, 6]
    assert input_benchmark.worker_counts(8) == [0, 1, 2, 4, 8]


def test_each_way_has_a_line_and_a_record(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(input_benchmark, "worker_counts", lambda cores: [0, 1])
    output = tmp_path / "out.json"
    input_benchmark.report_input(["nyudv2"], 2, output, examples=2, size=(48, 64))
    document = json.loads(output.read_text())
    assert document["what"] == "input"
    assert document["device"]["cores"] >= 1
    assert {"numpy", "grain", "python"} <= document["versions"].keys()
    ways = [(r["dataset"], r["way"], r["workers"]) for r in document["records"]]
    wanted = [("plain", 0), ("plain on records", 0), ("records", 0), ("records", 1)]
    assert ways == [("nyudv2", *way) for way in wanted]
    plain = document["records"][0]["images_per_core"]
    for record in document["records"]:
        assert len(record["sample_seconds_per_image"]) == 2
        assert record["images_per_second"] > 0
        assert record["of_plain"] == pytest.approx(record["images_per_core"] / plain)
    out = capsys.readouterr().out
    assert "makes\nPASCAL-Context's labels from the .mat files at each reading" in out
    table = [line for line in out.splitlines() if line.startswith("|")]
    assert len(table) == 2 + 4
    assert len({len(line) for line in table}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_processor_time_is_that_of_children_too():
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    child = context.Process(target=_spin, args=(ready, done))
    child.start()
    ready.wait()
    found = input_benchmark._processor_seconds() - time.process_time()
    done.set()
    child.join()
    # User's and system's, each in steps of 10 ms.
    assert found >= 0.3 - 0.02


def _spin(ready, done):
    end = time.process_time() + 0.3
    while time.process_time() < end:
        pass
    ready.set()
    done.wait()


def test_a_table_aligns_its_numbers_to_the_right():
    assert markdown_table(("name", "n"), [("ab", "100"), ("abcdef", "1")]).splitlines() == [
        "| name   |   n |",
        "|:-------|----:|",
        "| ab     | 100 |",
        "| abcdef |   1 |",
    ]
