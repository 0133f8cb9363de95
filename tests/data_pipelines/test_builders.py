"""From published files or archives to records: counts, archives, interruptions, TFDS."""

import io
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tarfile
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.builders import archives
from mtmamba_jax.data_pipelines.builders.files import DataError
from mtmamba_jax.data_pipelines.locks import locked
from mtmamba_jax.data_pipelines.pipeline import train_batches
from mtmamba_jax.data_pipelines.records import DATASETS, Records, create_builder
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.tasks import NYUDV2, PASCAL_CONTEXT
from tests.data_pipelines.dummy_trees import copy_tree, prepare, visible

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """150 training examples, three shards: the dummy tree's three under many names."""
    tree = copy_tree("nyudv2", tmp_path_factory.mktemp("tree") / "NYUDv2")
    names = [f"t{i:03d}" for i in range(150)]
    for i, name in enumerate(names):
        for part in ("images", "segmentation", "edge", "normals", "depth"):
            suffix = ".npy" if part == "depth" else ".png"
            os.link(tree / part / f"000{i % 3 + 1}{suffix}", tree / part / f"{name}{suffix}")
    (tree / "gt_sets" / "train.txt").write_text("\n".join(names))
    return tree


def records_of(data_dir):
    return {
        path.name: path.read_bytes() for path in pathlib.Path(data_dir).rglob("*.array_record*")
    }


@pytest.fixture(scope="module")
def prepared(tree, tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("prepared")
    prepare("nyudv2", tree, data_dir)
    return data_dir


def test_records_are_in_the_published_order_and_keep_the_contract(prepared):
    for split, names in (
        ("train", [f"t{i:03d}" for i in range(150)]),
        ("val", ["0001", "0002", "0003"]),
    ):
        records = Records("nyudv2", prepared, split, NYUDV2)
        assert [records[i]["id"] for i in range(len(records))] == names
        check_example(records[0], NYUDV2)


def test_records_read_only_the_labels_asked_for(prepared):
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
    assert found.stdout.startswith("0001 40 56 3")
    assert "num_examples=150" in found.stdout


@pytest.mark.parametrize("name", DATASETS)
def test_builders_describe_their_features_licence_and_source(name, tmp_path):
    info = create_builder(name, tmp_path).info
    assert "@inproceedings" in info.citation
    assert info.description
    assert info.homepage.startswith("https://")
    assert info.redistribution_info.license
    for key, feature in info.features.items():
        assert feature.doc.desc, key


def test_tfds_prepares_by_its_own_manual_folder(tree, tmp_path):
    builder = create_builder("nyudv2", tmp_path, allow_partial=True)
    config = tfds.download.DownloadConfig(manual_dir=str(tree))
    builder.download_and_prepare(download_config=config)
    assert builder.info.splits["train"].num_examples == 150


def test_worker_processes_write_the_same_bytes(tree, prepared, tmp_path):
    prepare("nyudv2", tree, tmp_path, num_workers=2)
    assert records_of(tmp_path) == records_of(prepared)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tree, prepared, tmp_path):
    command = [sys.executable, "-m", "tests.data_pipelines.killed_prepare"]
    arguments = ["nyudv2", str(tree), str(tmp_path)]
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    kills = 0
    while kills < 3:
        process = subprocess.Popen([*command, *arguments], cwd=ROOT, start_new_session=True)
        try:
            process.wait(timeout=rng.uniform(0.6, 2))
            break
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
            kills += 1
            assert records_of(tmp_path / "nyudv2" / "1.0.0") == {}
    subprocess.run([*command, *arguments], cwd=ROOT, check=True)
    assert records_of(tmp_path) == records_of(prepared), f"seed {seed}"
    assert [path.name for path in (tmp_path / "nyudv2").iterdir()] == ["1.0.0"]


def test_a_finished_shard_is_not_made_again_unless_its_files_changed(tmp_path):
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


def test_counts_other_than_the_published_are_refused_or_warned_of(tree, tmp_path, capsys):
    with pytest.raises(DataError, match=r"names 150 examples.* has 795\..*--allow_partial"):
        prepare("nyudv2", tree, tmp_path, allow_partial=False)
    assert visible(tmp_path) == []
    prepare("nyudv2", tree, tmp_path)
    assert "warning" in capsys.readouterr().out


def test_a_second_process_is_kept_out(tree, tmp_path):
    builder = create_builder("nyudv2", tmp_path, source=tree, allow_partial=True)
    with (
        locked(builder.staging_folder() / "lock", "prepares", wait=False),
        pytest.raises(OSError, match=r"Another process prepares .* Wait for it"),
    ):
        builder.download_and_prepare()


def test_a_full_disk_is_told_before_writing(tree, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs about .* MB below .*Free some, or .*--data_dir"):
        prepare("nyudv2", tree, tmp_path)


def test_a_disk_that_fills_up_while_writing_is_told_and_leaves_nothing_half(tree, tmp_path):
    # A limit on the size of files, as a small disk cannot be mounted everywhere.
    code = (
        "import resource, signal, sys\n"
        "from tests.data_pipelines.dummy_trees import prepare\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))\n"
        "prepare('nyudv2', *sys.argv[1:])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tree), str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert "OSError: Writing records failed" in found.stderr
    assert "free some or give another --data_dir" in found.stderr
    assert visible(tmp_path) == []
    assert not list(tmp_path.rglob("*.partial"))


def add(opened, name, content):
    if isinstance(opened, zipfile.ZipFile):
        opened.writestr(name, content)
    else:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        opened.addfile(member, io.BytesIO(content))


def pack(archive, tree=None, extra=()):
    """Packs a tree under its own name, and then (name, content) pairs."""
    is_zip = archive.suffix == ".zip"
    with zipfile.ZipFile(archive, "w") if is_zip else tarfile.open(archive, "w:gz") as opened:
        for path in sorted(tree.rglob("*")) if tree else ():
            if path.is_file():
                add(opened, str(path.relative_to(tree.parent)), path.read_bytes())
        for name, content in extra:
            add(opened, name, content)
    return archive


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory):
    return copy_tree("nyudv2", tmp_path_factory.mktemp("small") / "NYUDv2")


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_an_archive_or_a_folder_with_one_gives_what_its_tree_gives(small_tree, tmp_path, suffix):
    prepare("nyudv2", small_tree, tmp_path / "from_tree")
    (tmp_path / "downloads").mkdir()
    archive = pack(tmp_path / "downloads" / f"NYUDv2{suffix}", small_tree)
    (tmp_path / "downloads" / "holiday.zip").write_bytes(b"not ours")
    for source in (archive, archive.parent):
        data_dir = tmp_path / f"from_{source.name}"
        prepare("nyudv2", source, data_dir)
        assert records_of(data_dir) == records_of(tmp_path / "from_tree")
        assert not (data_dir / "nyudv2" / ".1.0.0.unfinished").exists()


def cut(archive):
    data = archive.read_bytes()
    archive.write_bytes(data[: len(data) // 2])


def flip(archive):
    data = bytearray(archive.read_bytes())
    data[len(data) // 3] ^= 255
    archive.write_bytes(bytes(data))


def web_page(archive):
    archive.write_text("<!DOCTYPE html><html>Google Drive: quota exceeded</html>")


def repack(*extra):
    return lambda archive: pack(archive, extra=extra)


def link(archive):
    with tarfile.open(archive, "w:gz") as opened:
        member = tarfile.TarInfo("NYUDv2/images")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc"
        opened.addfile(member)


DAMAGED = r"is damaged or cut off after \d+ bytes .*\. Download it again"
STRANGE = r"It is not the published archive; do not use it"


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("NYUDv2.tar.gz", cut, DAMAGED),
        ("NYUDv2.zip", cut, DAMAGED),
        ("NYUDv2.tar.gz", flip, DAMAGED),
        ("NYUDv2.zip", flip, DAMAGED),
        ("NYUDv2.tar.gz", lambda archive: archive.write_bytes(b""), DAMAGED),
        ("NYUDv2.tar.gz", web_page, r"is a web page.*Download it in a browser"),
        ("NYUDv2.zip", web_page, r"is a web page.*Download it in a browser"),
        ("NYUDv2.tar.gz", repack(("../evil", b"x")), rf"'\.\./evil', which leads out.*{STRANGE}"),
        ("NYUDv2.tar.gz", repack(("/evil", b"x")), rf"'/evil', which leads out.*{STRANGE}"),
        ("NYUDv2.zip", repack(("a/../../evil", b"x")), rf"which leads out.*{STRANGE}"),
        ("NYUDv2.zip", repack(("C:\\evil", b"x")), rf"which leads out.*{STRANGE}"),
        ("NYUDv2.tar.gz", link, rf"neither file nor folder\. {STRANGE}"),
        ("NYUDv2.zip", repack(("README", b"x")), r"no folder images, segmentation.*of nyudv2"),
    ],
)
def test_a_bad_archive_is_named_with_what_to_do(small_tree, tmp_path, name, change, message):
    archive = pack(tmp_path / name, small_tree)
    change(archive)
    with pytest.raises(DataError, match=message) as raised:
        prepare("nyudv2", archive, tmp_path / "data")
    assert "NYUDv2" in str(raised.value)
    assert visible(tmp_path / "data") == []
    assert not (tmp_path / "evil").exists()
    assert not list((tmp_path / "data").rglob("*.partial"))


def test_an_extracted_archive_is_not_extracted_again(small_tree, tmp_path):
    archive = pack(tmp_path / "NYUDv2.zip", small_tree)
    folder = archives.extract(archive, tmp_path / "extracted")
    before = folder.stat().st_mtime_ns
    assert archives.extract(archive, tmp_path / "extracted") == folder
    assert folder.stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", r"nowhere does not exist\. Give the folder or archive of nyudv2"),
        ("empty", r"no folder images, .* of nyudv2\. Wanted, there or below"),
    ],
)
def test_a_source_without_the_dataset_is_refused(tmp_path, source, message):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=message):
        prepare("nyudv2", tmp_path / source, tmp_path / "data")


def test_records_that_are_not_there_are_refused_with_the_command(prepared, tmp_path):
    with pytest.raises(ValueError, match=r"not prepared in .*prepare --dataset=nyudv2"):
        Records("nyudv2", tmp_path, "train", NYUDV2)
    with pytest.raises(ValueError, match=r"no label for task 'semseg' with 21 channels.*nyudv2"):
        Records("nyudv2", prepared, "train", PASCAL_CONTEXT)


def test_a_split_that_was_not_prepared_is_refused(tmp_path):
    prepare("pascal_context", copy_tree("pascal_context", tmp_path / "tree"), tmp_path / "data")
    with pytest.raises(ValueError, match=r"without the split 'train': it holds val"):
        Records("pascal_context", tmp_path / "data", "train", PASCAL_CONTEXT)


@pytest.fixture
def batches(prepared):
    source = Records("nyudv2", prepared, "train", NYUDV2)

    def batches(count, **changed):
        arguments = {
            "crop_size": (32, 32),
            "batch_size": 4,
            "seed": 0,
            "augment": AugmentSettings(),
        }
        iterator = train_batches(source, NYUDV2, **(arguments | changed))
        found = [next(iterator) for _ in range(count)]
        iterator.close()
        return found

    return batches


def test_one_two_and_four_hosts_see_each_record_once_an_epoch(batches):
    # 150 examples are 37.5 batches of 4: two epochs are 75 batches.
    for count in (1, 2, 4):
        shares = [
            [
                str(identity)
                for batch in batches(75, process_index=index, process_count=count)
                for identity in batch["id"]
            ]
            for index in range(count)
        ]
        seen = sorted(name for share in shares for name in share)
        assert seen == sorted([f"t{i:03d}" for i in range(150)] * 2)


@pytest.mark.parametrize("num_workers", [1, 4])
def test_records_give_the_same_batches_with_any_number_of_workers(batches, num_workers):
    expected, found = batches(6, start_step=3), batches(6, start_step=3, num_workers=num_workers)
    for one, other in zip(expected, found, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])


def test_a_restored_iterator_over_records_continues_exactly(batches):
    whole = batches(8)
    for one, other in zip(whole[5:], batches(3, start_step=5), strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
