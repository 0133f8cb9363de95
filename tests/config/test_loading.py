"""Configurations: what they accept, what they refuse, and how."""

import ast
import pathlib

import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.checkpoints.run_directory import RunDirectory
from mtmamba_jax.tasks.table import select


def test_path_of_a_config_is_the_same_config():
    path = pathlib.Path(__file__).parents[2] / "configs" / "synthetic.py"
    assert configuration.load(f"{path}:pascal") == configuration.load("synthetic:pascal")


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
    config = configuration.load(
        "synthetic",
        {
            "train.steps": "7",
            "optimizer.learning_rate": "1",
            "data.size": "[32, 64]",
            "tasks.names": "semseg,depth",
            "tasks.classes": "floor, traffic light",
            "model.scan_implementation": "xla",
            "tasks.baselines.depth": "0.5",
            "tasks.baselines.semseg": "40",
        },
    )
    assert config.train.steps == 7
    assert config.optimizer.learning_rate == 1.0
    assert config.data.size == (32, 64)
    assert config.tasks.names == ("semseg", "depth")
    assert config.tasks.classes == ("floor", "traffic light")
    assert config.model.scan_implementation == "xla"
    assert config.tasks.baselines == {"depth": 0.5, "semseg": 40.0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("train.step", "7", "Unknown config key 'train.step'. Did you mean 'train.steps'?"),
        ("train", "7", "Unknown config key 'train'"),
        ("train.steps", "many", "'train.steps' wants an int, got 'many'"),
        ("model.encoder", "3", "Unknown value of config key 'model.encoder', '3'."),
        ("tasks.baselines.dept", "3", "Did you mean 'tasks.baselines.depth'?"),
        ("data.size", "32", "'data.size' must be two integers in [1, 65536]"),
    ],
)
def test_wrong_override_is_refused(key, value, message):
    with pytest.raises(ValueError) as error:
        configuration.load("synthetic", {key: value})
    assert message in str(error.value)


OWN = """
from mtmamba_jax.configs import synthetic

VARIANTS = ("", "long")


def get_config(variant=""):
    config = synthetic.get_config()
    config.train.steps = 900 if variant == "long" else 9
    return config
"""


def test_a_users_config_file_is_loaded_by_its_path(tmp_path):
    path = tmp_path / "synthetic.py"  # a name that configs/ has too
    path.write_text(OWN)
    assert configuration.load(str(path)).train.steps == 9
    assert configuration.load(f"{path}:long", {"seed": "3"}).train.steps == 900
    assert configuration.run_name(f"{path}:long") == "synthetic_long"
    with pytest.raises(ValueError, match=r"no variant 'lng'\. Did you mean 'long'"):
        configuration.load(f"{path}:lng")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (OWN.replace("train.steps = 900", "train.stps = 900"), "Did you mean 'train.steps'"),
        (OWN.replace("return config", "pass"), "must return an ml_collections.ConfigDict"),
        (f"import missing_thing\n{OWN}", "No module named 'missing_thing'"),
        (OWN.replace("return config", "import missing_thing"), "No module named 'missing_thing'"),
        (OWN.replace("config = synthetic", "config = s"), ":8: NameError: name 's'"),
        (OWN.replace("= 900", "= 1 / 0"), ":9: ZeroDivisionError: division by zero"),
        (OWN.replace("= 900", "= 900 / 2"), r":9: TypeError: .*450\.0 .*cannot be casted to type"),
        (OWN.replace("900 if", "if"), ":9: SyntaxError: invalid syntax"),
        (OWN.replace("return config", "raise ValueError('a\\nb')"), ":10: ValueError: a b"),
        (OWN.replace("return config", "exit(3)"), ":10: SystemExit: 3"),
        (OWN.replace('variant=""', ""), r"get_config\(\) takes no variant, got 'long'"),
        (OWN.replace('("", "long")', '"long"'), "TypeError: VARIANTS must be a tuple of"),
        (OWN.replace("get_config(v", "config(v"), r"there is no function get_config\(\)"),
    ],
)
def test_a_mistake_in_a_config_file_is_one_line_that_names_the_file(code, message, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN)
    configuration.load(f"{path}:long")  # which is not used in the place of the other
    path.write_text(code)
    with pytest.raises(ValueError, match=message) as error:
        configuration.load(f"{path}:long")
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_key_that_a_config_file_sets_to_none_can_be_overridden(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(OWN.replace("train.steps = 900", "seed = None"))
    with pytest.raises(ValueError, match=r"'seed' must be in \[0, 2\*\*31\); got None"):
        configuration.load(f"{path}:long")
    assert configuration.load(f"{path}:long", {"seed": "3"}).seed == 3


@pytest.mark.parametrize("name", ["a:b/synthetic.py", "a.py:b/c.py", "MINE.PY"])
def test_the_path_of_a_config_ends_with_its_last_suffix(name, tmp_path):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(OWN)
    assert configuration.load(str(path)).train.steps == 9
    assert configuration.load(f"{path}:long").train.steps == 900
    assert configuration.variants(str(path)) == ("", "long")
    assert configuration.run_name(f"{path}:long") == f"{path.stem}_long"


def test_a_config_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no file .*mine\.py"):
        configuration.load(f"{tmp_path}/mine.py")


def test_saved_config_reads_back_equal(tmp_path):
    overrides = {"tasks.names": "edge", "tasks.baselines.edge": "3.5"}
    config = configuration.load("synthetic:pascal", overrides)
    RunDirectory(tmp_path).write_config(config)
    read = RunDirectory(tmp_path).read_config()
    assert read == config
    assert configuration.differences(read, config) == []


def test_differences_name_what_is_learned_and_not_how_it_is_watched():
    saved = configuration.load("synthetic")
    wanted = configuration.load("synthetic", {"train.log_every": "3", "optimizer.power": "1"})
    assert configuration.differences(saved, wanted) == ["optimizer.power: 0.9 -> 1.0"]


def test_every_config_key_is_read_somewhere():
    """A key that nothing reads is a setting that silently does nothing."""
    root = pathlib.Path(__file__).parents[2]
    read = set()
    for folder in ("mtmamba_jax", "data_pipelines"):
        for path in (root / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
    whole = ("model", "augment", "loss.weights", "tasks.baselines")  # passed on as a group
    for key in configuration.load("common").flat():
        if not key.startswith(whole):
            assert key.split(".")[-1] in read, key


@pytest.mark.parametrize("task_set", ["nyudv2", "pascal_context", "cityscapes", "custom"])
def test_given_classes_replace_those_of_the_set(task_set, tmp_path):
    config = configuration.load(
        "synthetic",
        {"tasks.set": task_set, "tasks.names": "semseg", "tasks.classes": "floor,crack"},
    )
    RunDirectory(tmp_path).write_config(config)
    (semseg,) = RunDirectory(tmp_path).read_config().tasks.selected
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
        ((), "has no classes. Name them in the order"),
        (("crack",), "must have 2 to 255 names, got 1. Pixels outside that class need one too"),
        (tuple(map(str, range(256))), "must have 2 to 255 names, got 256. 255 in a label means"),
        (("crack", "floor", "crack"), "names 'crack' twice"),
        (("crack", 3), "must be names, such as background,crack; got 3"),
    ],
)
def test_invalid_classes_are_refused(classes, message):
    with pytest.raises(ValueError, match=message):
        select("custom", ["semseg"], classes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "must hold a JSON object of keys"),
        ('{"train.steps": "many"}', "value of the wrong type at 'train.steps'"),
        ('{"train.stps": 1}', "Did you mean 'train.steps'"),
    ],
)
def test_a_damaged_config_file_is_named_with_the_fault(tmp_path, text, message):
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        RunDirectory(tmp_path).read_config()
    assert str(path) in str(error.value)
