"""A folder of one's own: read as it was written, refused with the remedy, trained on, scored."""

import pathlib
import pickle
import shutil
import subprocess

import jax
import numpy as np
import pytest
from PIL import Image

from mtmamba_jax import config as configuration
from mtmamba_jax import losses, tasks
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.cli import main as cli
from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.builders.reading import DataError
from mtmamba_jax.data_pipelines.folder import source as folder
from mtmamba_jax.data_pipelines.folder.labels import read_label
from mtmamba_jax.data_pipelines.folder.source import Folder, find_folder
from mtmamba_jax.data_pipelines.pipeline import ExampleError, eval_batches
from mtmamba_jax.data_pipelines.sources import open_source
from mtmamba_jax.data_pipelines.synthetic.source import SyntheticScenes
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.train import train
from tests.tiny import tiny_config

CLASSES = ("background", "person", "chair")
TASKS = tasks.select("custom", classes=CLASSES)
SIZE = (32, 64)
NAMES = [f"a/room{i}" if i % 2 else f"room.{i}" for i in range(8)]  # 0 to 5 train, 6 and 7 val
UNLABELLED = {("depth", 1), ("semseg", 2), ("human_parts", 2), ("normals", 0), ("edge", 7)}


def scenes():
    made = (tasks.SEMSEG_VOC, *TASKS[1:])
    return SyntheticScenes(made, size=SIZE, split="train", num_examples=len(NAMES))


def as_written(index):
    """The example with VOC's classes as ours; 20 columns without any label."""
    example = scenes()[index]
    semseg, own = example["semseg"], np.zeros_like(example["semseg"])
    for number, name in enumerate(CLASSES):
        own[semseg == tasks.VOC_CLASSES.index(name)] = number
    own[0, 0] = 2  # in every image
    example["semseg"] = own
    for task in TASKS:
        example[task.name][:, 44:] = task.ignore
    return example


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def save_label(root, name, index, task, label):
    ignored = (label == task.ignore).all(-1)
    path = root / task.name / name
    if task.name == "depth":
        metres = np.where(ignored, 0, label[..., 0])
        if index % 2:
            save(path.parent / f"{path.name}.npy", metres)
        else:
            save(path.parent / f"{path.name}.png", np.rint(1000 * metres).astype(np.uint16))
    elif task.name == "normals":
        levels = np.rint((label + 1) / 2 * 255)
        levels = np.where(ignored[..., None], 0 if index % 2 else 127, levels)
        save(path.parent / f"{path.name}.png", levels.astype(np.uint8))
    else:
        save(path.parent / f"{path.name}.png", label[..., 0].astype(np.uint8))


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder") / "my_data"
    for index, name in enumerate(NAMES):
        example = as_written(index)
        suffix = (".png", ".PNG")[index % 2]
        save(root / "images" / f"{name}{suffix}", example["image"])
        for task in TASKS:
            if (task.name, index) not in UNLABELLED:
                save_label(root, name, index, task, example[task.name])
    (root / "images" / ".DS_Store").write_bytes(b"")
    (root / "train.txt").write_text("\n".join(NAMES[:6]))
    (root / "val.txt").write_text("\n".join(NAMES[6:]) + "\n\n")
    return root


@pytest.fixture
def copy(written, tmp_path):
    shutil.copytree(written, tmp_path / "my_data")
    return tmp_path / "my_data"


def test_source_gives_what_was_written_and_ignore_where_there_is_no_file(written):
    train_source, val = (Folder(written, split, TASKS) for split in ("train", "val"))
    assert (len(train_source), len(val)) == (6, 2)
    for index, name in enumerate(NAMES):
        found = train_source[index] if index < 6 else val[index - 6]
        check_example(found, TASKS)
        assert found["id"] == name
        wanted = as_written(index)
        np.testing.assert_array_equal(found["image"], wanted["image"])
        for task in TASKS:
            label = wanted[task.name]
            if (task.name, index) in UNLABELLED:
                label = np.full_like(label, task.ignore)
            # 8 bits of a component; half a millimetre, and float32.
            tolerance = {"normals": 0.01, "depth": 0.0005 + 1e-6}.get(task.name, 0)
            np.testing.assert_allclose(found[task.name], label, rtol=0, atol=tolerance)
            if task.name == "depth" and index % 2:
                np.testing.assert_array_equal(found["depth"], label)
    labelled = (train_source[1]["normals"] != tasks.IGNORE).all(-1)
    lengths = np.linalg.norm(train_source[1]["normals"][labelled], axis=-1)
    np.testing.assert_allclose(lengths, 1, atol=1e-6)


def test_summary_counts_the_labels(written):
    source = Folder(written, "train", TASKS)
    assert source.labelled == dict.fromkeys((t.name for t in TASKS), 5) | {"saliency": 6, "edge": 6}
    assert source.summary() == (
        f"{written}: 6 images to train on, all with saliency edge, "
        "5 with semseg human_parts depth normals"
    )


def test_labels_without_an_image_are_said(copy):
    save(copy / "depth" / "stray.npy", np.ones(SIZE, np.float32))
    summary = Folder(copy, "train", TASKS).summary()
    assert summary.endswith("\n  labels without an image: 1, such as depth/stray.npy")


def test_source_is_pickled_without_being_opened_again(copy):
    source = Folder(copy, "train", TASKS)
    (copy / "val.txt").unlink()
    again = pickle.loads(pickle.dumps(source))
    for task in TASKS:
        np.testing.assert_array_equal(again[1][task.name], source[1][task.name])


def test_a_subset_of_the_tasks_needs_no_other_folder(copy):
    for task in TASKS:
        if task.name != "depth":
            shutil.rmtree(copy / task.name)
    assert Folder(copy, "train", (tasks.DEPTH,))[0].keys() == {"image", "id", "depth"}


def test_a_bit_of_a_png_is_a_class(copy):
    label = as_written(0)["saliency"][..., 0]
    save(copy / "saliency" / f"{NAMES[0]}.png", label == 1)
    found = Folder(copy, "train", TASKS)[0]["saliency"][..., 0]
    np.testing.assert_array_equal(found, (label == 1).astype(np.int32))


def test_some_labels_of_two_classes_are_looked_at_when_it_is_opened(copy, monkeypatch):
    read = []

    def background(task, path, size):
        read.append((task.name, path.stem))
        return np.zeros_like(read_label(task, path, size))

    monkeypatch.setattr(folder, "read_label", background)
    monkeypatch.setattr(folder, "_LOOKED_AT", 3)
    Folder(copy, "train", TASKS)
    names = [pathlib.PurePath(f"{NAMES[i]}.png").stem for i in (0, 2, 4)]
    assert read == [(task, name) for task in ("saliency", "edge") for name in names]


def delete(path):
    path.unlink()


def remove_folder(path):
    shutil.rmtree(path)


def rename(name):
    return lambda path: path.rename(path.parent / name)


def rename_all(path):
    for file in [p for p in path.rglob("*") if p.is_file()]:
        file.rename(file.with_name(f"{file.stem}_label{file.suffix}"))


def as_jpeg(path):
    for file in [p for p in path.rglob("*") if p.is_file()]:
        file.rename(file.with_suffix(".jpg"))


def only_val(path):
    for name in NAMES[:6]:
        for file in path.glob(f"{name}.*"):
            file.unlink()


def only_train(path):
    for name in NAMES[6:]:
        for file in path.glob(f"{name}.*"):
            file.unlink()


def empty_folder(path):
    shutil.rmtree(path)
    path.mkdir()


def twice(suffix):
    return lambda path: shutil.copy(path, path.with_suffix(suffix))


def array(value):
    return lambda path: save(path, value)


def pixel(value):
    def corrupt(path):
        values = np.load(path) if path.suffix == ".npy" else np.array(Image.open(path))
        values[1, 1] = value
        save(path, values)

    return corrupt


def text(content):
    return lambda path: path.write_text(content)


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def masks_of_255(path):
    for file in path.rglob("*.png"):
        values = np.array(Image.open(file))
        save(file, np.where(values == 1, 255, 0).astype(np.uint8))


def opencv_normals(path):
    save(path, (255 - np.array(Image.open(path)).astype(int)).clip(1).astype(np.uint8))


A0, A1 = NAMES[0], NAMES[1]
WRONG = (
    ("images", remove_folder, r"has no folder images/\. It holds depth/, edge/, .*Put the images"),
    (
        "images",
        empty_folder,
        r"images holds no image, NAME\.jpg, \.jpeg, \.png\. Put",
    ),
    ("train.txt", delete, r"lacks train\.txt \(images to train on\).*\n  cd .* grep -vxF -f val"),
    ("val.txt", delete, r"lacks val\.txt \(images to score\)"),
    ("train.txt", text(""), r"train\.txt is empty"),
    ("train.txt", text(f"{A0}\n{A1}\n{A0}"), r"names 'room\.0' twice"),
    ("train.txt", text(f"{A0}.png"), r"Write 'room\.0', not 'room\.0\.png'"),
    ("train.txt", text(f"images/{A1}.PNG"), r"Write 'a/room1', not 'images/a/room1\.PNG'"),
    ("train.txt", text(f"{A0}\nroom9"), r"names images that images/ lacks \(1\): room9\. Add the"),
    ("train.txt", text(f"{A0}\n{NAMES[6]}"), r"share images \(1\): room\.6\. Remove them"),
    (f"images/{A0}.png", delete, r"names images that images/ lacks \(1\): room\.0\. Add"),
    (f"images/{A0}.png", rename("room.0.tif"), r"room\.0\.tif has another suffix: save it as"),
    (
        f"images/{A0}.png",
        twice(".jpeg"),
        r"two files of one name: .*room\.0\.jpeg and .*room\.0\.p",
    ),
    (f"images/{A0}.png", cut, r"room\.0\.png is cut off after"),
    (f"images/{A0}.png", array(np.zeros(SIZE, np.uint8)), r"has mode L, expected 8-bit RGB"),
    ("depth", remove_folder, r"no folder depth/ for the labels of task 'depth'.*leave the task"),
    ("depth", empty_folder, r"depth holds no label, NAME\.npy or \.png\. Add some, or leave"),
    ("depth", rename_all, r"depth has 7 files, such as depth/\S+_label\..*label of images/a/room1"),
    ("semseg", as_jpeg, r"labels of another suffix than \.png: semseg/a/room1\.jpg.*JPEG changes"),
    ("depth", only_val, r"no label for any image of train\.txt, so there is nothing to train on"),
    ("depth", only_train, r"no label for any image of val\.txt, so there is nothing to score"),
    (f"depth/{NAMES[3]}.npy", twice(".png"), r"two files of one name: depth/a/room3\.npy and"),
    (f"depth/{NAMES[3]}.npy", pixel(np.nan), r"room3\.npy has 1 values that are NaN.*write 0"),
    (f"depth/{NAMES[3]}.npy", pixel(-1), r"room3\.npy has 1 values that are NaN, infinite or neg"),
    (f"depth/{NAMES[3]}.npy", array(np.ones((9, 9), np.float32)), r"is 9x9 .*its image 32x64"),
    (f"depth/{NAMES[3]}.npy", array(np.ones(SIZE, np.uint16)), r"uint16\): are they millimetres"),
    (f"depth/{A0}.png", array(np.ones(SIZE, np.uint8)), r"has 8 bits, wanted 16: millimetres"),
    (f"semseg/{A0}.png", pixel(3), r"the value 3; expected 0 to 2, the numbers of the run's 3 cl"),
    (f"semseg/{A0}.png", array(np.zeros((*SIZE, 3), np.uint8)), r"has mode RGB.*not colours"),
    (f"semseg/{A0}.png", array(np.zeros((9, 9), np.uint8)), r"is 9x9 .*its image 32x64"),
    (f"human_parts/{A0}.png", pixel(7), r"the value 7; expected 0 to 6"),
    (f"edge/{A0}.png", pixel(128), r"the value 128; expected 0, 1 on boundaries, and 255"),
    ("edge", masks_of_255, r"edge holds no values but 0 and 255 .*Write 1 where now is 255"),
    ("saliency", masks_of_255, r"saliency holds no values but 0 and 255"),
    (f"normals/{A1}.png", array(np.full((*SIZE, 3), 130, np.uint8)), r"holds no unit vectors"),
    (f"normals/{A1}.png", opencv_normals, r"point away from the camera"),
    (f"normals/{A1}.png", cut, r"is cut off"),
)


@pytest.mark.parametrize(
    ("place", "corrupt", "message"), WRONG, ids=[f"{i}-{w[0]}" for i, w in enumerate(WRONG)]
)
def test_what_is_wrong_is_named_with_what_to_do(copy, place, corrupt, message):
    corrupt(copy / place)
    with pytest.raises(DataError, match=f"(?s){message}"):
        for split in ("train", "val"):
            source = Folder(copy, split, TASKS)
            for index in range(len(source)):
                source[index]


def test_all_that_names_tell_is_said_at_once(copy):
    (copy / "val.txt").unlink()
    remove_folder(copy / "depth")
    rename_all(copy / "edge")
    (copy / "train.txt").write_text("\n".join([*NAMES[:6], *(f"room{i}" for i in range(90))]))
    with pytest.raises(DataError, match=r"4 things are wrong in") as error:
        Folder(copy, "train", TASKS)
    message = str(error.value)
    for part in ("lacks val.txt", "no folder depth/", "edge has 7 files", "lacks (90)"):
        assert part in message
    assert "room19, ..." in message
    assert "room20" not in message


@pytest.mark.parametrize("missing", [("train",), ("val",), ("train", "val")])
def test_the_command_that_is_proposed_makes_the_lists(copy, missing):
    (copy / "images" / ".DS_Store").unlink()
    for split in missing:
        (copy / f"{split}.txt").unlink()
    with pytest.raises(DataError) as error:
        Folder(copy, "train", TASKS)
    (command,) = [line for line in str(error.value).splitlines() if line.startswith("  cd ")]
    subprocess.run(command, shell=True, check=True)
    lists = [(copy / f"{split}.txt").read_text().split() for split in ("train", "val")]
    assert sorted(lists[0] + lists[1]) == sorted(NAMES)
    if len(missing) == 1:
        assert len(lists[1]) == 2


def test_scoring_needs_no_training_list(copy):
    (copy / "train.txt").unlink()
    assert len(Folder(copy, "val", TASKS)) == 2


def test_the_folder_must_be_given_and_be_there(tmp_path):
    data = configuration.load("custom", {"tasks.names": "depth"}).data
    with pytest.raises(DataError, match=r"'data\.dir' is not set.*--config\.data\.dir=my_data"):
        open_source(data, TASKS, "train")
    with pytest.raises(DataError, match="is no folder"):
        find_folder(tmp_path / "none")


def test_a_bad_file_met_in_training_names_the_file(copy):
    pixel(3)(copy / "semseg" / f"{NAMES[5]}.png")
    batches = eval_batches(Folder(copy, "train", TASKS), TASKS, size=SIZE, batch_size=2)
    with pytest.raises(ExampleError, match=r"a/room5\.png holds the value 3"):
        list(batches)
    batches.close()


@pytest.mark.parametrize("scheme", losses.SCHEMES)
@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_an_image_without_a_label_adds_nothing_to_its_task(written, scheme, reduction):
    batches = eval_batches(Folder(written, "train", TASKS), TASKS, size=SIZE, batch_size=6)
    batch = next(batches)
    batches.close()
    rng = np.random.default_rng(0)
    logits = {t.name: rng.normal(size=(6, *SIZE, t.channels)).astype(np.float32) for t in TASKS}
    weights = {t.name: 1.0 for t in TASKS}

    def loss(chosen, logits, rows):
        return losses.multitask_loss(
            chosen,
            {name: value[rows] for name, value in logits.items()},
            {t.name: batch[t.name][rows] for t in TASKS} | {"mask": batch["mask"][rows]},
            weights=weights,
            scheme=scheme,
            reduction=reduction,
        )

    every = np.arange(6)
    _, found = loss(TASKS, logits, every)
    gradients = jax.device_get(jax.grad(lambda x: loss(TASKS, x, every)[0])(logits))
    for task in TASKS:
        without = [i for t, i in UNLABELLED if t == task.name and i < 6]
        rest = np.setdiff1d(every, without)
        # The sum is taken in another order.
        np.testing.assert_allclose(
            found[task.name].mean, loss((task,), logits, rest)[1][task.name].mean, 1e-6
        )
        assert not np.any(gradients[task.name][without])
        assert np.all(np.any(gradients[task.name][rest], axis=(1, 2, 3)))


@pytest.fixture(scope="module")
def run(written, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    config = tiny_config(
        tasks__set="custom",
        tasks__names="semseg,depth",
        tasks__classes=",".join(CLASSES),
        data__name="folder",
        data__dir=str(written),
        train__steps="3",
        train__eval_every="3",
    )
    return workdir, train(config, workdir)


def test_a_folder_is_trained_on_and_scored(run):
    workdir, result = run
    assert result.scores.keys() == {"semseg", "depth"}
    assert all(np.isfinite(list(scores.values())).all() for scores in result.scores.values())
    assert [path.name for path in result.panels] == ["room.6.png", "a_room7.png"]
    trained = [line for line in read_metrics(workdir) if line["kind"] == "train"]
    assert len(trained) == 3
    assert all(line["loss/depth"] > 0 for line in trained)


def test_eval_and_predict_keep_the_classes_of_the_run(run, written, tmp_path, capsys):
    workdir, _ = run
    saved = RunDirectory(workdir).read_config()
    assert saved.tasks.selected[0].class_names == CLASSES
    assert cli.main(["eval", f"--workdir={workdir}"]) == 0
    assert f"{written}: 2 images to score, all with semseg depth" in capsys.readouterr().out
    photo = written / "images" / f"{NAMES[0]}.png"
    arguments = ["predict", f"--workdir={workdir}", str(photo), f"--output={tmp_path}", "--overlay"]
    assert cli.main(arguments) == 0
    semseg = np.load(tmp_path / "room.0" / "semseg.npy")
    assert semseg.shape == SIZE
    assert semseg.max() < len(CLASSES)


MISTAKES = [
    ([], r"'data.dir' and 'tasks.names' are not set"),
    (["data.dir=nowhere"], "nowhere is no folder"),
    (["data.dir={}"], "has labels for semseg, human_parts, saliency, depth, edge, normals: take"),
    (["data.dir={}", "tasks.names=semseg"], "'semseg' of the set 'custom' has no classes"),
    (["tasks.names=semseg", "tasks.classes=road"], "must have 2 to 255 names, got 1"),
    (["tasks.names=semseg", "tasks.classes=1,2"], "must be names, such as background,crack; got 1"),
    (["tasks.names=depth", "tasks.classes=a,b"], "of task 'semseg', which is not selected"),
    (["tasks.names=depth"], "Config key 'data.dir' is not set"),
]


@pytest.mark.parametrize(("keys", "message"), MISTAKES, ids=lambda v: str(v)[:40])
def test_mistake_on_the_command_line_is_answered(
    keys, message, written, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--config.{key.format(written)}" for key in keys]
    assert cli.main(["train", "--config=custom", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_folder_without_a_folder_of_labels_says_which_there_may_be(copy):
    for task in TASKS:
        remove_folder(copy / task.name)
    with pytest.raises(ValueError, match=r"has no folder of labels.*: semseg, human_parts"):
        configuration.load("custom", {"data.dir": str(copy)})


def test_documented_tasks_are_those_of_the_set():
    text = (pathlib.Path(__file__).parents[2] / "README.md").read_text()
    section = text.split("## Your own data")[1].split("\n## ")[0]
    for task in tasks.CUSTOM:
        assert f"{task.name}/" in section or f"`{task.name}/`" in section
