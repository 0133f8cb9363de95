"""Every key's valid values are declared in one table, and other values are refused."""

import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.config.ranges import check_ranges
from mtmamba_jax.configs import common
from mtmamba_jax.tasks.table import TASK_SETS

WRONG = [
    ("optimizer.learning_rate", "-1", "in (0, 1]; got -1.0"),
    ("optimizer.learning_rate", "0", "in (0, 1]; got 0.0"),
    ("optimizer.learning_rate", "1e999", "in (0, 1]; got inf"),
    ("optimizer.learning_rate", "nan", "in (0, 1]; got nan"),
    ("optimizer.learning_rate", "1e39", "in (0, 1]; got 1e+39."),
    ("optimizer.beta_1", "-0.1", "in [0, 1); got -0.1"),
    ("optimizer.beta_2", "1.5", "in [0, 1); got 1.5"),
    ("optimizer.beta_2", "0.999999999", "in [0, 1); got 0.999999999, which float32 makes 1"),
    ("optimizer.epsilon", "0.0", "in (0, 1]; got 0.0"),
    ("optimizer.epsilon", "1e-60", "in (0, 1]; got 1e-60, which float32 makes 0"),
    ("optimizer.epsilon", "1e-45", "in (0, 1]; got 1e-45, which float32 makes 0"),
    ("optimizer.epsilon", "1.17e-38", "in (0, 1]; got 1.17e-38, which float32 makes 0"),
    ("optimizer.weight_decay", "-1.0", "in [0, 100]; got -1.0"),
    ("optimizer.weight_decay", "1e30", "in [0, 100]; got 1e+30"),
    ("optimizer.power", "-3.0", "in [0, 100]; got -3.0"),
    ("optimizer.warmup_steps", "-1", "in [0, 2**31); got -1"),
    ("loss.weights.depth", "-1.0", "in [0, 1e6]; got -1.0"),
    ("loss.weights.depth", "1e38", "in [0, 1e6]; got 1e+38"),
    ("tasks.baselines.depth", "-1.0", "in (0, 1e6]; got -1.0"),
    ("tasks.baselines.depth", "1e-40", "in (0, 1e6]; got 1e-40, which float32 makes 0"),
    ("data.cache_gib", "-1.0", "in [0, 65536]; got -1.0"),
    ("data.num_workers", "100000", "in [0, 1024]; got 100000"),
    ("data.size", "96,0", "two integers in [1, 65536], such as 448,576; got [96, 0]"),
    ("data.size", "96.5,128", "two integers in [1, 65536], such as 448,576; got [96.5, 128]"),
    ("data.size", "96,2147483647", "two integers in [1, 65536], such as 448,576; got [96, 21"),
    ("data.label_scale", "1000", "in [1, 64]; got 1000"),
    ("model.state_size", "2147483647", "in [1, 65536]; got 2147483647"),
    ("mesh.data", "0", "-1 or in [1, 2**31); got 0"),
    ("augment.scale", "(2.0,1.0)", "two ascending numbers in [0.01, 10], such as 0.5,2.0; got [2"),
    ("augment.scale", "1e30,1e31", "two ascending numbers in [0.01, 10], such as 0.5,2.0; got [1"),
    ("augment.scale", "1e-30,1", "two ascending numbers in [0.01, 10], such as 0.5,2.0; got [1"),
    ("augment.contrast", "(0.5,1e999)", "two ascending numbers in (0, 10]"),
    ("augment.contrast", "1e-40,1", "two ascending numbers in (0, 10]"),
    ("augment.saturation", "(1.0,)", "two ascending numbers in (0, 10]"),
    ("augment.hue", "91", "in [0, 90]; got 91"),
    ("augment.flip_probability", "1.5", "in [0, 1]; got 1.5"),
    ("augment.brightness", "-1.0", "in [0, 255]; got -1.0"),
    ("augment.crop_tries", "0", "in [1, 1000]; got 0"),
    ("init.run", "", "a path; got ''"),
    ("init.run", " ", "a path; got ' '"),
    ("data.dir", "a\0b", "a path; got 'a\\x00b'"),
]


@pytest.mark.parametrize(("key", "value", "message"), WRONG)
def test_a_value_out_of_range_is_refused_with_key_value_and_range(key, value, message):
    with pytest.raises(ValueError) as error:
        configuration.load("synthetic", {key: value})
    assert f"Config key '{key}' must be {message}" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_run_that_could_learn_nothing_is_refused():
    weights = {f"loss.weights.{task.name}": "0.0" for task in TASK_SETS["nyudv2"]}
    with pytest.raises(ValueError, match=r"loss\.weights of all tasks of the run are 0"):
        configuration.load("synthetic", weights)
    configuration.load("synthetic", weights | {"loss.weights.depth": "1.0"})


@pytest.mark.parametrize("task_set", ["nyudv2", "pascal_context"])
def test_a_task_named_twice_is_refused(task_set):
    overrides = {"tasks.set": task_set, "tasks.names": "semseg,normals,semseg"}
    with pytest.raises(ValueError, match=r"tasks\.names names 'semseg' twice"):
        configuration.load("synthetic", overrides)


@pytest.mark.parametrize("key", common.KEYS, ids=lambda key: key.name)
def test_every_key_has_a_meaning_and_refuses_values_of_no_range(key):
    assert key.meaning
    if key.valid not in ("a path", "distinct names"):  # not one of these: a form that is checked
        values = configuration.load("common").flat()
        name = key.name.replace("TASK", "depth")
        with pytest.raises(ValueError, match=name):
            check_ranges(values | {name: float("nan")})


def test_ends_of_a_range_are_valid_as_their_brackets_say():
    overrides = {
        "optimizer.learning_rate": "1",
        "optimizer.epsilon": "1.1755e-38",
        "optimizer.beta_2": "0.0",
        "augment.hue": "90",
        "augment.scale": "0.01,10",
        "mesh.data": "-1",
        "seed": f"{2**31 - 1}",
    }
    configuration.load("synthetic", overrides)
