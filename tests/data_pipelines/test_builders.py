"""From published files or archives to records: counts, archives, interruptions, TFDS."""

import errno
import io
import os
import pathlib
import random
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile

import numpy as np
import pytest
import tensorflow_datasets as tfds

from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.builders import archives, opening
from mtmamba_jax.data_pipelines.builders.files import DataError
from mtmamba_jax.data_pipelines.builders.sample_trees import WRITERS
from mtmamba_jax.data_pipelines.locks import locked
from mtmamba_jax.data_pipelines.pipeline import train_batches
from mtmamba_jax.data_pipelines.records import DATASETS, Records, create_builder
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.tasks import NYUDV2, PASCAL_CONTEXT, TASK_SETS
from tests.data_pipelines.dummy_trees import copy_tree, prepare, visible

ROOT = pathlib.Path(__file__).parents[2]


NAMES = ("nyudv2", "cityscapes")
SPLITS = {"train": 190, "val": 64}
SHARDS = 4  # three of 64, one of 62: each takes a while
SIZE = (16, 32)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Some datasets' published layouts, and the names of their examples, by name."""
    root = tmp_path_factory.mktemp("trees")
    return {name: (root / name, WRITERS[name](root / name, SPLITS, SIZE)) for name in NAMES}


@pytest.fixture(scope="module")
def tree(trees):
    return trees["nyudv2"][0]


def records_of(data_dir):
    return {
        path.name: path.read_bytes() for path in pathlib.Path(data_dir).rglob("*.array_record*")
    }


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
def test_records_are_in_the_published_order_and_keep_the_contract(name, trees, all_prepared):
    for split, names in trees[name][1].items():
        records = Records(name, all_prepared / name, split, TASK_SETS[name])
        assert tuple(records[i]["id"] for i in range(len(records))) == names
        check_example(records[0], TASK_SETS[name])


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
    assert found.stdout.startswith("0191 16 32 3")
    assert "num_examples=190" in found.stdout


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
    assert builder.info.splits["train"].num_examples == 190


@pytest.mark.parametrize("name", NAMES)
def test_worker_processes_write_the_same_bytes(name, trees, all_prepared, tmp_path):
    prepare(name, trees[name][0], tmp_path, num_workers=2)
    assert records_of(tmp_path) == records_of(all_prepared / name)


def start(name, source, data_dir, *, workers=0, seconds=0.0, step=()):
    """Starts `killed_prepare` in a process group of its own."""
    arguments = (name, source, data_dir, workers, seconds, *step)
    command = [sys.executable, "-m", "tests.data_pipelines.killed_prepare", *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_while_it_writes_goes_on(name, workers, trees, all_prepared, tmp_path):
    seed = random.randrange(2**32)
    rng = random.Random(seed)
    staging = tmp_path / name / ".1.0.0.unfinished"

    def done():
        return [path for path in staging.glob("*-*-*") if path.suffix != ".partial"]

    counts = []
    seconds = 0.005 * max(1, workers)  # 0.3 for a shard
    for wanted in sorted(rng.sample(range(1, SHARDS), 2)):
        process = start(name, trees[name][0], tmp_path, workers=workers, seconds=seconds)
        while process.poll() is None and len(done()) < wanted:
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.1))
        if process.poll() is not None:  # on a machine that is busy with others
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
@pytest.mark.parametrize("name", NAMES)
def test_a_run_killed_while_it_extracts_or_puts_in_place_or_tidies_up_goes_on(
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


def test_what_a_killed_run_had_to_discard_is_gone_after_the_next(tree, prepared, tmp_path):
    discarded = tmp_path / "nyudv2" / ".1.0.0.discarded" / "extracted"
    discarded.mkdir(parents=True)
    prepare("nyudv2", tree, tmp_path)
    assert not discarded.parent.exists()


def test_a_disk_without_links_gets_copies(tree, prepared, tmp_path, monkeypatch):
    def link(source, target):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", link)
    prepare("nyudv2", tree, tmp_path)
    assert records_of(tmp_path) == records_of(prepared)


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
    with pytest.raises(DataError, match=r"names 190 examples.* has 795\..*--allow_partial"):
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


def test_a_second_process_is_kept_out_till_all_is_in_place(tree, tmp_path, monkeypatch):
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


def test_a_full_disk_is_told_before_writing(tree, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(OSError, match=r"needs about .* MB below .*Free some, or .*--data_dir"):
        prepare("nyudv2", tree, tmp_path)


FILL_UP = """
import resource, signal, sys
from tests.data_pipelines.dummy_trees import prepare
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
limit, *arguments = sys.argv[1:]
resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
prepare("nyudv2", *arguments)
"""


def fill_up(limit, source, data_dir):
    """Returns what preparing says where files cannot be larger than `limit` bytes.

    A limit on the size of files, as a small disk cannot be mounted everywhere.
    """
    command = [sys.executable, "-c", FILL_UP, *map(str, (limit, source, data_dir))]
    found = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert visible(data_dir) == []
    assert not list(data_dir.rglob("*.partial"))
    return found.stderr


def test_a_disk_that_fills_up_while_writing_is_told_and_leaves_nothing_half(tree, tmp_path):
    message = fill_up(100_000, tree, tmp_path)
    assert "OSError: Writing records failed" in message
    assert "free some or give another --data_dir" in message


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_a_disk_that_fills_up_while_extracting_is_told_and_leaves_nothing_half(
    suffix, small_tree, tmp_path
):
    archive = pack(tmp_path / f"NYUDv2{suffix}", small_tree)
    message = fill_up(1000, archive, tmp_path / "data")
    assert f"Extracting {archive} below" in message
    assert "Free some of the disk, or give another --data_dir" in message


def test_a_zip_is_known_to_need_the_room_of_what_is_in_it(tmp_path, monkeypatch):
    archive = tmp_path / "NYUDv2.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("depth/1.npy", bytes(10_000_000))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000))
    with pytest.raises(OSError, match=r"Extracting .*NYUDv2\.zip needs about 10 MB"):
        prepare("nyudv2", archive, tmp_path / "data")


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
    mode = "w:gz" if archive.suffix == ".gz" else "w"
    with zipfile.ZipFile(archive, "w") if is_zip else tarfile.open(archive, mode) as opened:
        for path in sorted(tree.rglob("*")) if tree else ():
            if path.is_file():
                add(opened, str(path.relative_to(tree.parent)), path.read_bytes())
        for name, content in extra:
            add(opened, name, content)
    return archive


@pytest.fixture(scope="module")
def small_tree(tmp_path_factory):
    return copy_tree("nyudv2", tmp_path_factory.mktemp("small") / "NYUDv2")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
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


def offset_of(archive, index):
    with tarfile.open(archive) as opened:
        return opened.getmembers()[index].offset


def cut_between_members(archive):
    archive.write_bytes(archive.read_bytes()[: offset_of(archive, 3)])


def cut_in_the_header(archive):
    archive.write_bytes(archive.read_bytes()[: offset_of(archive, 3) + 100])


def cut_in_the_end(archive):
    """Leaves one of the two blocks of zeros."""
    with tarfile.open(archive) as opened:
        opened.getmembers()
        end = opened.offset
    archive.write_bytes(archive.read_bytes()[: end + 512])


def break_a_header(archive):
    data = bytearray(archive.read_bytes())
    data[offset_of(archive, 3) + 20] ^= 255
    archive.write_bytes(bytes(data))


def pack_by_deflate64(archive):
    """Says in both headers of every file that it is packed in a way that zipfile does not know."""
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        start = data.find(signature)
        while start >= 0:
            data[start + offset] = 9
            start = data.find(signature, start + 4)
    archive.write_bytes(bytes(data))


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
        ("NYUDv2.tar", cut, DAMAGED),
        ("NYUDv2.tar", cut_between_members, DAMAGED),
        ("NYUDv2.tar", cut_in_the_header, DAMAGED),
        ("NYUDv2.tar", cut_in_the_end, DAMAGED),
        ("NYUDv2.tar", break_a_header, DAMAGED),
        ("NYUDv2.tar", lambda archive: archive.write_bytes(b""), DAMAGED),
        ("NYUDv2.tar", web_page, r"is a web page.*Download it in a browser"),
        ("NYUDv2.tar", repack(("../evil", b"x")), rf"'\.\./evil', which leads out.*{STRANGE}"),
        ("NYUDv2.zip", pack_by_deflate64, r"cannot be unpacked here .* with another program"),
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


def write_trainextra(folder):
    """Writes what Cityscapes' other archives hold, where it comes before the wanted."""
    path = folder / "leftImg8bit" / "train_extra" / "augsburg" / "augsburg_leftImg8bit.png"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not wanted")


def test_cityscapes_takes_its_three_archives_beside_others(tmp_path):
    tree = copy_tree("cityscapes", tmp_path / "tree")
    prepare("cityscapes", tree, tmp_path / "from_tree")
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    write_trainextra(tmp_path / "extra")
    pack(downloads / "leftImg8bit_trainextra.zip", tmp_path / "extra" / "leftImg8bit")
    (downloads / "gtCoarse.zip").write_bytes(b"not wanted")
    for part in ("leftImg8bit", "gtFine", "disparity"):
        pack(downloads / f"{part}_trainvaltest.zip", tree / part)
    prepare("cityscapes", downloads, tmp_path / "from_zips")
    assert records_of(tmp_path / "from_zips") == records_of(tmp_path / "from_tree")


@pytest.mark.parametrize("together", [True, False])
def test_cityscapes_is_found_beside_folders_of_its_other_archives(together, tmp_path):
    tree = copy_tree("cityscapes", tmp_path / "tree")
    downloads = tmp_path / "downloads"
    write_trainextra(downloads / "a_trainextra")
    if together:  # with folders of all names
        for part in ("gtFine", "disparity"):
            (downloads / "a_trainextra" / part / "train_extra").mkdir(parents=True)
    for part in ("leftImg8bit", "gtFine", "disparity"):
        shutil.copytree(tree / part, downloads / f"{part}_trainvaltest" / part)
    layouts = opening.open_layouts(
        create_builder("cityscapes").LAYOUT,
        "cityscapes",
        downloads,
        tmp_path / "staging",
        allow_partial=True,
    )
    assert [len(layout) for layout in layouts] == [2, 2]


def test_folders_that_may_not_be_read_are_passed_over(small_tree, tmp_path, monkeypatch):
    shutil.copytree(small_tree, tmp_path / "source" / "NYUDv2")
    private = tmp_path / "source" / "A"
    private.mkdir()
    scandir = os.scandir

    def refuse(path="."):  # who runs the tests may be allowed all
        if path == private:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    prepare("nyudv2", tmp_path / "source", tmp_path / "data")
    assert records_of(tmp_path / "data")


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


@pytest.fixture(params=NAMES)
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


def test_one_two_and_four_hosts_see_each_record_once_an_epoch(batches):
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
