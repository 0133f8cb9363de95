"""Configurations: what they accept, what they refuse, and how."""

import ast
import pathlib

import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.tasks import select


def test_name_with_folder_and_suffix_is_the_same_config():
    plain = configuration.flatten(configuration.load("synthetic:pascal"))
    assert configuration.flatten(configuration.load("configs/synthetic.py:pascal")) == plain


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("sinthetic", "Unknown config 'sinthetic'. Did you mean 'synthetic'?"),
        ("synthetic:pascl", "no variant 'pascl'. Did you mean 'pascal'?"),
    ],
)
def test_unknown_name_is_refused_with_the_nearest(name, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        configuration.load(name)


def test_recipes_of_mtmamba_plus_are_the_published_ones():
    nyud, pascal, cityscapes = (
        configuration.load(f"{name}:plus") for name in ("nyudv2", "pascal_context", "cityscapes")
    )
    for config in (nyud, pascal, cityscapes):
        assert config.model.name == "mtmamba_plus"
        assert (config.train.steps, config.optimizer.weight_decay) == (40_000, 1e-6)
    assert (nyud.optimizer.learning_rate, nyud.loss.scheme) == (2e-5, "sum")
    weights = [nyud.loss.weights[task] for task in ("semseg", "depth", "normals", "edge")]
    assert weights == [1, 1, 10, 50]
    plain = configuration.load("cityscapes")
    for config in (plain, cityscapes):
        assert (config.optimizer.learning_rate, config.optimizer.weight_decay) == (1e-4, 1e-6)
        assert config.train.steps == 40_000
    assert (pascal.optimizer.learning_rate, pascal.loss.scheme) == (8e-5, "log")
    assert set(pascal.loss.weights.values()) == {1.0}
    assert configuration.load("nyudv2").model.name == "mtmamba"


def test_override_keeps_types():
    config = configuration.load("synthetic")
    configuration.override(
        config,
        {
            "train.steps": "7",
            "optimizer.learning_rate": "1",
            "data.size": "[32, 64]",
            "tasks.names": "depth,edge",
            "tasks.classes": "floor, traffic light",
            "model.scan_implementation": "xla",
            "tasks.baselines.depth": "0.5",
        },
    )
    assert config.train.steps == 7
    assert config.optimizer.learning_rate == 1.0
    assert config.data.size == (32, 64)
    assert config.tasks.names == ("depth", "edge")
    assert config.tasks.classes == ("floor", "traffic light")
    assert config.model.scan_implementation == "xla"
    assert config.tasks.baselines.depth == 0.5


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.step", "7", "Unknown config key 'train.step'. Did you mean 'train.steps'?"),
        ("train", "7", "Unknown config key 'train'"),
        ("train.steps", "many", "'train.steps' wants an int such as"),
        ("model.encoder", "3", "'model.encoder' wants a str"),
    ],
)
def test_wrong_override_is_refused(key, value, message):
    config = configuration.load("synthetic")
    with pytest.raises(ValueError) as error:
        configuration.override(config, {key: value})
    assert message in str(error.value)


def test_saved_config_reads_back_equal(tmp_path):
    config = configuration.load("synthetic:pascal")
    configuration.override(config, {"tasks.baselines.edge": "3.5"})
    configuration.save(config, tmp_path / "config.json")
    read = configuration.read(tmp_path / "config.json")
    assert configuration.flatten(read) == configuration.flatten(config)
    assert configuration.differences(read, config) == []


def test_differences_name_what_is_learned_and_not_how_it_is_watched():
    saved, wanted = configuration.load("synthetic"), configuration.load("synthetic")
    configuration.override(wanted, {"train.log_every": "3", "optimizer.power": "1"})
    assert configuration.differences(saved, wanted) == ["optimizer.power: 0.9 -> 1.0"]


def test_every_config_key_is_read_somewhere():
    """A key that nothing reads is a setting that silently does nothing."""
    root = pathlib.Path(__file__).parents[1]
    read = set()
    for folder in ("mtmamba_jax", "data_pipelines"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
    whole = ("model", "augment", "loss.weights", "tasks.baselines")  # passed on as a group
    for key in configuration.flatten(configuration.load("common")):
        if not key.startswith(whole):
            assert key.split(".")[-1] in read, key


@pytest.mark.parametrize("task_set", ["nyudv2", "pascal_context", "cityscapes", "custom"])
def test_classes_of_ones_own_take_the_place_of_the_sets(task_set, tmp_path):
    config = configuration.load("synthetic")
    configuration.override(
        config, {"tasks.set": task_set, "tasks.names": "semseg", "tasks.classes": "floor,crack"}
    )
    configuration.save(config, tmp_path / "config.json")
    (semseg,) = configuration.tasks(configuration.read(tmp_path / "config.json"))
    assert semseg.class_names == ("floor", "crack")
    assert semseg.channels == 2
    assert (0, 0, 0) not in semseg.palette  # that of ignored pixels


def test_palette_has_a_colour_for_each_class():
    names = [f"class {i}" for i in range(255)]
    (semseg,) = select("custom", ["semseg"], names)
    assert len(set(semseg.palette)) == 255
    (semseg,) = select("custom", ["semseg"], ["background", *names[1:]])
    assert len(set(semseg.palette)) == 255
    assert semseg.palette[0] == (0, 0, 0)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ((), "has no classes of its own"),
        (("crack",), "wants 2 to 255 names, got 1. What is not of that class is one too"),
        (tuple(map(str, range(256))), "wants 2 to 255 names, got 256. 255 in a label means not"),
        (("crack", "floor", "crack"), "names 'crack' twice"),
        (("crack", 3), "wants names, such as background,crack; got 3"),
    ],
)
def test_classes_that_cannot_be_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        select("custom", ["semseg"], classes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable as JSON"),
        ("[1]", "must hold a JSON object of keys"),
        ('{"train.steps": "many"}', "another type of value at 'train.steps'"),
        ('{"train.stps": 1}', "Did you mean 'train.steps'"),
    ],
)
def test_damaged_file_is_named_with_what_is_wrong(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        configuration.read(path)
    assert str(path) in str(error.value)
