"""Builders convert published files to records, survive interruptions and serve TFDS."""

import errno
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.datasets import DATASETS
from mtmamba_jax.data_pipelines.pipeline import train_batches
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.data_pipelines.records import Records, create_builder
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.files.locks import locked
from mtmamba_jax.tasks.table import NYUDV2, PASCAL_CONTEXT, TASK_SETS
from tests.data_pipelines.dummy_trees import (
    copy_tree,
    fill_up,
    pack,
    prepare,
    records_of,
    visible,
)
from tests.data_pipelines.sample_trees import WRITERS

ROOT = pathlib.Path(__file__).parents[2]


NAMES = ("nyudv2", "cityscapes")
SPLITS = {"train": 190, "val": 64}
SHARDS = 4  # three of 64 examples and one of 62, so that each takes a while
SIZE = (16, 32)
# Cityscapes differs in its archives and in the compression of its records.
SLOW_CITYSCAPES = pytest.param("cityscapes", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """The published files and the IDs of two datasets, by name."""
    root = tmp_path_factory.mktemp("trees")
    return {name: (root / name, WRITERS[name](root / name, SPLITS, SIZE)) for name in NAMES}


@pytest.fixture(scope="module")
def tree(trees):
    return trees["nyudv2"][0]


@pytest.fixture(scope="module")
def all_prepared(trees, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prepared")
    for name in NAMES:
        prepare(name, trees[name][0], data_dir / name)
    return data_dir


@pytest.fixture(scope="module")
def prepared(all_prepared):
    return all_prepared / "nyudv2"


@pytest.mark.parametrize("name", NAMES)
def test_records_keep_the_published_order_and_the_batch_contract(name, trees, all_prepared):
    for split, names in trees[name][1].items():
        records = Records(name, all_prepared / name, split, TASK_SETS[name])
        assert tuple(records[i]["id"] for i in range(len(records))) == names
        check_example(records[0], TASK_SETS[name])


def test_records_decode_only_the_requested_labels(prepared):
    records = Records("nyudv2", prepared, "train", NYUDV2[:1])
    assert set(records[0]) == {"image", "id", "semseg"}


def test_tfds_reads_the_records_without_this_package(prepared):
    code = (
        "import sys, tensorflow_datasets as tfds\n"
        "builder = tfds.builder_from_directory(sys.argv[1])\n"
        "record = builder.as_data_source('val')[0]\n"
        "assert not any(name.startswith(('mtmamba_jax', 'tensorflow.')) for name in sys.modules)\n"
        "print(record['id'].decode(), *record['image'].shape, builder.info.splits['train'])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(prepared / "nyudv2" / "1.0.0")],
        check=True,
        capture_output=True,
        text=True,
        cwd=prepared,
    )
    assert found.stdout.startswith("0191 16 32 3")
    assert "num_examples=190" in found.stdout


@pytest.mark.parametrize("name", DATASETS)
def test_builders_describe_their_features_license_and_source(name, tmp_path):
    info = create_builder(name, tmp_path).info
    assert "@inproceedings" in info.citation
    assert info.description
    assert info.homepage.startswith("https://")
    assert info.redistribution_info.license
    for key, feature in info.features.items():
        assert feature.doc.desc, key


def test_tfds_prepares_from_its_manual_dir(tree, tmp_path):
    builder = create_builder("nyudv2", tmp_path, allow_partial=True)
    config = tfds.download.DownloadConfig(manual_dir=str(tree))
    builder.download_and_prepare(download_config=config)
    assert builder.info.splits["train"].num_examples == 190


@pytest.mark.parametrize("name", ["nyudv2", SLOW_CITYSCAPES])
def test_worker_processes_write_the_same_bytes(name, trees, all_prepared, tmp_path):
    prepare(name, trees[name][0], tmp_path, num_workers=2)
    assert records_of(tmp_path) == records_of(all_prepared / name)


def start(name, source, data_dir, *, workers=0, seconds=0.0, step=()):
    """Starts `killed_prepare` in its own process group."""
    arguments = (name, source, data_dir, workers, seconds, *step)
    command = [sys.executable, "-m", "tests.data_pipelines.killed_prepare", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


@pytest.mark.parametrize(
    ("name", "workers"),
    [
        ("nyudv2", 2),
        pytest.param("nyudv2", 0, marks=pytest.mark.slow),
        pytest.param("cityscapes", 0, marks=pytest.mark.slow),
        pytest.param("cityscapes", 2, marks=pytest.mark.slow),
    ],
)
def test_a_conversion_killed_while_writing_resumes(name, workers, trees, all_prepared, tmp_path):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    staging = tmp_path / name / ".1.0.0.unfinished"

    def done():
        return [path for path in staging.glob("*-*-*") if path.suffix != ".partial"]

    counts = []
    seconds = 0.005 * max(1, workers)  # 0.3 s per shard
    for wanted in sorted(rng.sample(range(1, SHARDS), 2)):
        process = start(name, trees[name][0], tmp_path, workers=workers, seconds=seconds)
        while process.poll() is None and len(done()) < wanted:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is not None:  # finished early, on a busy machine
            assert process.returncode == 0, f"seed {seed}"
            break
        os.killpg(process.pid, 9)
        process.wait()
        counts.append(len(done()))
        assert records_of(tmp_path / name / "1.0.0") == {}, f"seed {seed}"
    assert any(0 < count < SHARDS for count in counts), f"seed {seed}: killed at {counts}"
    kept = {path.name: path.stat().st_ino for path in done()}
    prepare(name, trees[name][0], tmp_path)
    assert records_of(tmp_path) == records_of(all_prepared / name), f"seed {seed}"
    inodes = {path.stat().st_ino for path in tmp_path.rglob("*.array_record*")}
    assert inodes.issuperset(kept.values()), f"seed {seed}: made again"
    assert [path.name for path in (tmp_path / name).iterdir()] == ["1.0.0"], f"seed {seed}"


@pytest.fixture(scope="module")
def packed(trees, tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return {name: pack(folder / f"{name}.tar.gz", trees[name][0]) for name in NAMES}


@pytest.mark.parametrize(("step", "calls"), [("extract", 762), ("link", SHARDS), ("delete", 762)])
@pytest.mark.parametrize("name", ["nyudv2", SLOW_CITYSCAPES])
def test_a_conversion_killed_while_extracting_linking_or_deleting_resumes(
    name, step, calls, packed, all_prepared, tmp_path
):
    seed = random.randrange(2**32)
    count = random.Random(seed).randint(1, calls)
    process = start(name, packed[name], tmp_path, step=(step, count))
    assert process.wait() == -9, f"seed {seed}"
    assert (tmp_path / name / "1.0.0").exists() == (step == "delete"), f"seed {seed}"
    prepare(name, packed[name], tmp_path).discard_staging()
    assert records_of(tmp_path) == records_of(all_prepared / name), f"seed {seed}"
    assert [path.name for path in (tmp_path / name).iterdir()] == ["1.0.0"], f"seed {seed}"


def test_the_next_run_deletes_what_a_killed_run_discarded(tree, prepared, tmp_path):
    discarded = tmp_path / "nyudv2" / ".1.0.0.discarded" / "extracted"
    discarded.mkdir(parents=True)
    prepare("nyudv2", tree, tmp_path)
    assert not discarded.parent.exists()


def test_shards_are_copied_where_there_are_no_hard_links(tree, prepared, tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    prepare("nyudv2", tree, tmp_path)
    assert records_of(tmp_path) == records_of(prepared)


def test_a_finished_shard_is_rewritten_only_if_its_files_changed(tmp_path):
    tree = copy_tree("nyudv2", tmp_path / "tree")
    broken = tree / "edge" / "0002.png"
    (tree / "gt_sets" / "train.txt").write_text("0001\n")
    content = broken.read_bytes()
    broken.write_bytes(b"")
    with pytest.raises(DataError):
        prepare("nyudv2", tree, tmp_path / "data")
    (staged,) = (tmp_path / "data" / "nyudv2" / ".1.0.0.unfinished").glob("train-*")
    before = staged.stat().st_mtime_ns
    with pytest.raises(DataError):
        prepare("nyudv2", tree, tmp_path / "data")
    assert staged.stat().st_mtime_ns == before
    os.utime(tree / "edge" / "0001.png")
    broken.write_bytes(content)
    prepare("nyudv2", tree, tmp_path / "data")
    assert len(records_of(tmp_path / "data")) == 2


def test_fewer_examples_than_published_are_an_error_or_a_warning(tree, tmp_path, capsys):
    with pytest.raises(DataError, match=r"has 190 examples.* has 795\..*--allow_partial"):
        prepare("nyudv2", tree, tmp_path, allow_partial=False)
    assert visible(tmp_path) == []
    prepare("nyudv2", tree, tmp_path)
    assert "warning" in capsys.readouterr().out


def test_a_second_process_cannot_prepare_the_same_dataset(tree, tmp_path):
    builder = create_builder("nyudv2", tmp_path, source=tree, allow_partial=True)
    with (
        locked(builder.staging_folder() / "lock", "prepares", wait=False),
        pytest.raises(OSError, match=r"Another process prepares .* Wait for it"),
    ):
        builder.download_and_prepare()


def test_the_lock_is_held_until_the_dataset_is_in_place(tree, tmp_path, monkeypatch):
    builder = create_builder("nyudv2", tmp_path, source=tree, allow_partial=True)
    lock = builder.staging_folder() / "lock"

    def discard():
        assert builder.is_prepared()
        with pytest.raises(OSError, match="Another process"), locked(lock, "", wait=False):
            pass

    monkeypatch.setattr(builder, "discard_staging", discard)
    builder.download_and_prepare()
    with locked(lock, "", wait=False):
        pass


def test_a_full_disk_is_reported_before_writing(tree, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs about .* MB below .*Free some, or .*--data_dir"):
        prepare("nyudv2", tree, tmp_path)


def test_a_disk_that_fills_up_while_writing_is_reported_and_leaves_nothing_incomplete(
    tree, tmp_path
):
    message = fill_up(100_000, tree, tmp_path)
    assert "OSError: Writing records failed" in message
    assert "free some space or give another --data_dir" in message


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", r"nowhere does not exist\. Give the folder or archive of nyudv2"),
        (
            "empty",
            r"is not nyudv2 as published: it has no folder images, .*\*NYUD\*",
        ),
    ],
)
def test_a_source_without_the_dataset_is_refused(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        prepare("nyudv2", tmp_path / source, tmp_path / "data")


def test_missing_records_or_labels_are_refused_with_the_remedy(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"not prepared in .*prepare --dataset=nyudv2"):
        Records("nyudv2", tmp_path, "train", NYUDV2)
    with pytest.raises(ValueError, match=r"no label for task 'semseg' with 21 channels.*nyudv2"):
        Records("nyudv2", prepared, "train", PASCAL_CONTEXT)


@pytest.mark.parametrize("inside", ["nyudv2", "nyudv2/1.0.0"])
def test_a_data_dir_inside_the_right_one_is_refused_with_the_right_one(prepared, inside):
    with pytest.raises(ValueError, match=rf"is in {prepared}, .*--config\.data\.dir={prepared}\."):
        Records("nyudv2", prepared / inside, "train", NYUDV2)


def test_an_unprepared_split_is_refused(tmp_path):
    prepare("pascal_context", copy_tree("pascal_context", tmp_path / "tree"), tmp_path / "data")
    with pytest.raises(ValueError, match=r"without the split 'train': it has val"):
        Records("pascal_context", tmp_path / "data", "train", PASCAL_CONTEXT)


@pytest.fixture(params=["nyudv2", SLOW_CITYSCAPES])
def batches(request, all_prepared):
    name = request.param
    source = Records(name, all_prepared / name, "train", TASK_SETS[name])

    def batches(count, **changed):
        arguments = {
            "crop_size": SIZE,
            "batch_size": 4,
            "seed": 0,
            "augment": AugmentSettings(),
        }
        iterator = train_batches(source, TASK_SETS[name], **(arguments | changed))
        found = [next(iterator) for _ in range(count)]
        iterator.close()
        return found

    batches.names = [source[i]["id"] for i in range(len(source))]
    return batches


def test_one_two_and_four_hosts_read_each_record_once_per_epoch(batches):
    # 190 examples are 47.5 batches of 4: two epochs are 95 batches.
    for count in (1, 2, 4):
        shares = [
            [
                str(identity)
                for batch in batches(95, process_index=index, process_count=count)
                for identity in batch["id"]
            ]
            for index in range(count)
        ]
        seen = sorted(name for share in shares for name in share)
        assert seen == sorted(batches.names * 2)


@pytest.mark.parametrize("num_workers", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_records_give_the_same_batches_with_any_number_of_workers(batches, num_workers):
    expected, found = batches(6, start_step=3), batches(6, start_step=3, num_workers=num_workers)
    for one, other in zip(expected, found, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_a_restored_iterator_over_records_resumes_exactly(batches):
    whole = batches(8)
    for one, other in zip(whole[5:], batches(3, start_step=5), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
