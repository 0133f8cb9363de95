"""Runs on a folder of one's own data: missing labels, training, evaluation, mistakes in flags."""

import jax
import numpy as np
import pytest

from mtmamba_jax.checkpoints import load
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.cli import main as cli
from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.data_pipelines.pipeline import eval_batches
from mtmamba_jax.tasks import losses
from mtmamba_jax.training import state
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.training.train import train
from tests.data_pipelines.own_data import CLASSES, NAMES, SIZE, TASKS, UNLABELLED
from tests.pixel_model import build_pixel_model
from tests.tiny import tiny_config


@pytest.mark.parametrize("scheme", losses.SCHEMES)
@pytest.mark.parametrize("reduction", losses.REDUCTIONS)
def test_an_image_without_a_label_adds_nothing_to_the_loss_of_its_task(written, scheme, reduction):
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
    """A work directory and the result of a run of the pixel model on the folder."""
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
    with pytest.MonkeyPatch.context() as patch:
        for module, name in ((state, "build"), (state, "abstract_build"), (load, "abstract_build")):
            patch.setattr(module, name, build_pixel_model)
        yield workdir, train(config, workdir)


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
    (["data.dir=nowhere"], "nowhere is not a folder"),
    (["data.dir={}"], "has labels for semseg, human_parts, saliency, depth, edge, normals: choose"),
    (["data.dir={}", "tasks.names=semseg"], "'semseg' of the set 'custom' has no classes"),
    (["tasks.names=semseg", "tasks.classes=road"], "must have 2 to 255 names, got 1"),
    (["tasks.names=semseg", "tasks.classes=1,2"], "must be names, such as background,crack; got 1"),
    (["tasks.names=depth", "tasks.classes=a,b"], "of task 'semseg', which is not selected"),
    (["tasks.names=depth"], "Config key 'data.dir' is not set"),
]


@pytest.mark.parametrize(("keys", "message"), MISTAKES, ids=lambda v: str(v)[:40])
def test_a_mistake_on_the_command_line_is_answered(
    keys, message, written, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--config.{key.format(written)}" for key in keys]
    assert cli.main(["train", "--config=custom", *arguments]) == 2
    assert message in capsys.readouterr().err
