"""Metrics reproduce the official figures and hand-computed cases, for any split into batches."""

import dataclasses
import pathlib

import numpy as np
import pytest

from mtmamba_jax import metrics
from mtmamba_jax.benchmarks.programs import random_batch
from mtmamba_jax.devices.sharding import create_mesh, put_batch
from mtmamba_jax.evaluation.evaluate import create_measure_step
from mtmamba_jax.metrics import normals
from mtmamba_jax.tasks import table as tasks
from mtmamba_jax.tasks.readout import to_value
from tests.metrics.scored_sets import (
    KINDS,
    ONE,
    SPLITS,
    column,
    compiled,
    cut,
    random_set,
    score,
)
from tests.resizing import resized_by_opencv

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
PERCENT = ("mIoU", "maxF")
# Our name of each score, and the golden file's.
GOLDEN_SCORES = {
    "semseg": {"mIoU": "mIoU"},
    "human_parts": {"mIoU": "mIoU"},
    "depth": {name: name.lower() for name in ("RMSE", "log_rmse", "abs_rel", "sq_rel")},
    "edge": {"loss": "loss"},
    "normals": {"mErr": "mean"},
    "saliency": {"maxF": "maxF"},
}


def golden_batches(file, task):
    name = "sal" if task.name == "saliency" else task.name
    for index in (0, 1):
        logits, label = (
            file[f"{index}/{name}/{what}"].transpose(0, 2, 3, 1) for what in ("output", "label")
        )
        yield logits, label.astype(task.label_dtype), np.ones(len(logits), bool)


@pytest.mark.parametrize(
    ("dataset", "task"),
    [("nyud", task) for task in tasks.NYUDV2]
    + [("pascalcontext", task) for task in tasks.PASCAL_CONTEXT],
    ids=lambda value: value if isinstance(value, str) else value.name,
)
def test_scores_are_the_official_scores(dataset, task):
    with np.load(GOLDEN / f"metrics_{dataset}.npz") as file:
        ours = score(task, golden_batches(file, task))
        for name, official in GOLDEN_SCORES[task.name].items():
            key = "sal" if task.name == "saliency" else task.name
            expected = file[f"score/{key}/{official}"] * (100.0 if name in PERCENT else 1.0)
            # The official sums are float32: 1e-7 of relative error seen in one of them.
            np.testing.assert_allclose(ours[name], expected, rtol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("dataset", "chosen"), [("nyud", tasks.NYUDV2), ("pascalcontext", tasks.PASCAL_CONTEXT)]
)
def test_every_official_score_is_compared(dataset, chosen):
    compared = {
        f"score/{'sal' if task.name == 'saliency' else task.name}/{official}"
        for task in chosen
        for official in GOLDEN_SCORES[task.name].values()
    }
    with np.load(GOLDEN / f"metrics_{dataset}.npz") as file:
        assert compared == {key for key in file if key.startswith("score/")}


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_scores_do_not_depend_on_the_split_into_batches(task):
    logits, label = random_set(task)
    whole = score(task, cut(logits, label, (7,), 7))
    for sizes, padded_to in SPLITS:
        split = score(task, cut(logits, label, sizes, padded_to))
        assert split.keys() == whole.keys()
        for name, value in split.items():
            # Counts are integers; float32 sums of a batch have rounding errors of some 1e-7.
            np.testing.assert_allclose(value, whole[name], rtol=1e-6, err_msg=f"{name} {sizes}")


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_merge_is_an_associative_64_bit_sum_with_empty_as_identity(task):
    metric, measure = compiled(task)
    logits, label = random_set(task, 3)
    a, b, c = (measure(*batch) for batch in cut(logits, label, (1, 1, 1), 1))
    one, other = metric.merge(metric.merge(a, b), c), metric.merge(c, metric.merge(b, a))
    for name, (shape, dtype) in metric.specs.items():
        # float64 sums of float32 numbers.
        np.testing.assert_allclose(one[name], other[name], rtol=1e-14)
        assert (one[name].shape, one[name].dtype) == (shape, dtype)
        assert a[name].shape == shape
        np.testing.assert_array_equal(metric.merge(metric.empty(), a)[name], a[name])


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_scores_are_nan_without_a_valid_pixel(task):
    logits, label = random_set(task, 2)
    for batch in (
        (logits, np.full_like(label, task.ignore), np.ones(2, bool)),
        (logits, label, np.zeros(2, bool)),
    ):
        scores = score(task, [batch])
        assert all(np.isnan(value) for value in scores.values()), scores
        constant = metrics.create_constant(task)
        counts = constant.merge(constant.empty(), constant.measure(*batch[1:]))
        assert np.isnan(constant.compute(counts)[task.score])


def test_miou_of_a_hand_counted_case():
    task = tasks.HUMAN_PARTS
    logits = column(np.eye(7)[[0, 0, 1, 1, 2, 2]])
    label = column([0, 1, 1, 1, 2, 255], np.int32)
    metric, measure = compiled(task)
    counts = measure(logits, label, ONE)
    # Class 0: 1 of 2; class 1: 2 of 3; class 2: 1 of 1; four classes absent: 0.
    assert metric.compute(counts)["mIoU"] == pytest.approx(100 * (1 / 2 + 2 / 3 + 1) / 7)
    wanted = np.zeros((7, 7), int)
    wanted[0, 0], wanted[1, 0], wanted[1, 1], wanted[2, 2] = 1, 1, 2, 1
    np.testing.assert_array_equal(counts["confusion"], wanted)
    per_class = metric.per_class(counts)
    assert list(per_class) == list(tasks.HUMAN_PART_CLASSES)
    assert per_class["head"] == pytest.approx(200 / 3)
    assert per_class["lower legs"] == 0


def test_a_label_that_is_no_class_is_not_counted():
    logits, label = column(np.eye(7)[[0, 1, 2]]), column([0, -1, 7], np.int32)
    _, measure = compiled(tasks.HUMAN_PARTS)
    counts = measure(logits, label, ONE)["confusion"]
    assert counts[0, 0] == counts.sum() == 1


def test_units_belong_to_scores():
    for task in KINDS.values():
        metric = metrics.create_metric(task)
        assert task.score in metric.units
        assert metric.units.keys() <= metric.compute(metric.empty()).keys()


def test_depth_errors_of_a_hand_computed_case():
    scores = score(tasks.DEPTH, [(column([1, 5, 9]), column([2, 4, 255]), ONE)])
    # 5 / 4 is not below 1.25, and 2 / 1 below no limit. float32 sums.
    assert scores == pytest.approx(
        {
            "RMSE": 1.0,
            "log_rmse": np.sqrt((np.log(2) ** 2 + np.log(5 / 4) ** 2) / 2),
            "abs_rel": (1 / 2 + 1 / 4) / 2,
            "sq_rel": (1 / 2 + 1 / 4) / 2,
            "delta1": 0.0,
            "delta2": 50.0,
            "delta3": 50.0,
        },
        rel=1e-6,
    )


def test_deltas_are_the_percentages_of_ratios_below_powers_of_1_25():
    rng = np.random.default_rng(0)
    true = rng.uniform(1, 9, 4000).astype("f4")
    predicted = (true * np.exp(rng.normal(scale=0.4, size=4000))).astype("f4")
    ratio = np.maximum(predicted / true, true / predicted)
    scores = score(tasks.DEPTH, [(column(predicted), column(true), ONE)])
    for power in (1, 2, 3):
        # No ratio is within float32's rounding of a limit.
        assert scores[f"delta{power}"] == pytest.approx(100 * np.mean(ratio < 1.25**power))
    assert 30 < scores["delta1"] < scores["delta2"] < scores["delta3"] < 95


def test_a_depth_that_is_not_positive_fails_every_delta():
    predicted, true = column([-2, 0, 0, 2]), column([2, 2, 0, 2])
    scores = score(tasks.DEPTH, [(predicted, true, ONE)])
    assert [scores[f"delta{power}"] for power in (1, 2, 3)] == [25.0, 25.0, 25.0]


def test_a_negative_depth_counts_as_zero_metres():
    scores = score(tasks.DEPTH, [(column([-3]), column([2]), ONE)])
    assert scores["RMSE"] == pytest.approx(2.0)
    assert np.isfinite(scores["log_rmse"])


def test_angles_of_hand_computed_normals():
    predicted = column([[0, 0, 7], [0, 3, 0], [0, 0, -1], [0, 0, 0], [1, 1, 1]])
    true = column([[0, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1], [255, 255, 255]])
    # 0, 90 and 180 degrees; a zero vector is 90 degrees from any normal.
    scores = score(tasks.NORMALS, [(predicted, true, ONE)])
    assert scores["mErr"] == pytest.approx(90.0)
    assert [scores[f"within_{most}"] for most in ("11.25", "22.5", "30")] == [25.0] * 3


@pytest.mark.parametrize("length", [1e-35, 1e-30, 1e-6, 1.0, 1e20, 3e38])
def test_the_angle_of_a_normal_does_not_depend_on_its_length(length):
    rng = np.random.default_rng(0)
    true = rng.normal(size=(1, 4, 5, 3)).astype(np.float32)
    true /= np.abs(true).max(-1, keepdims=True)
    predicted = np.float32(length) * true
    true /= np.linalg.norm(true, axis=-1, keepdims=True)
    scores = score(tasks.NORMALS, [(predicted, true, ONE)])
    assert scores["mErr"] == pytest.approx(0, abs=1e-4)
    np.testing.assert_allclose(to_value(tasks.NORMALS, predicted), true, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 4, 999, 1000])
def test_median_angle_is_within_half_a_bin_of_the_exact_one(number):
    rng = np.random.default_rng(number)
    # Up to 180 degrees, mostly small, and one of exactly 180.
    degrees = np.minimum(rng.gamma(1.2, 25, number), 180.0)
    degrees[-1] = 180.0
    turned = np.radians(degrees)
    predicted = np.stack([np.sin(turned), 0 * turned, np.cos(turned)], axis=1)
    true = np.broadcast_to([0.0, 0.0, 1.0], predicted.shape)
    scores = score(tasks.NORMALS, [(column(predicted), column(true), ONE)])
    exact = np.percentile(degrees, 50, method="lower")
    # 2e-5 is float32's rounding of an angle near 180 degrees.
    assert abs(scores["median"] - exact) <= normals.BIN_WIDTH / 2 + 2e-5
    for most in (11.25, 22.5, 30.0):
        assert scores[f"within_{most:g}"] == pytest.approx(100 * np.mean(degrees < most))


def test_edge_f_of_a_hand_counted_case():
    logits = column([3.0, 0.0, 0.0, -3.0, 5.0])
    label = column([1, 1, 0, 0, 255], np.int32)
    # Best between probability 0.05 and 0.5: three predicted, both contour pixels among them.
    assert score(tasks.EDGE, [(logits, label, ONE)])["maxF"] == pytest.approx(100 * 2 * 2 / (3 + 2))


def test_published_saliency_f_does_not_separate_what_the_second_sigmoid_flattens():
    # Probabilities 0.90 and 0.99: sigmoid(p) is 0.711 and 0.729, and no threshold lies between.
    probability = np.array([0.99, 0.90])
    logits = column(np.stack([np.zeros(2), np.log(probability / (1 - probability))], axis=1))
    scores = score(tasks.SALIENCY, [(logits, column([1, 0], np.int32), ONE)])
    # float32 division.
    assert scores["maxF"] == pytest.approx(100 * 1.3 / (0.3 * 1 + 2))
    assert scores["maxF_exact"] == pytest.approx(100.0)


def test_perfect_predictions_score_perfectly():
    perfect = {"mIoU": 100.0, "RMSE": 0.0, "mErr": 0.0, "maxF": 100.0}
    for task in KINDS.values():
        _, label = random_set(task)
        label[label == task.ignore] = 0 if task.metric != "normals" else 1
        if task.label_dtype == "int32":
            logits = 20.0 * (np.eye(task.channels)[label[..., 0]] if task.channels > 1 else label)
            logits = logits - 10.0
        else:
            logits = label
        if task.metric == "normals":
            label = label / np.linalg.norm(label, axis=-1, keepdims=True)
        ours = score(task, [(logits.astype(np.float32), label, np.ones(7, bool))])
        # A float32 angle of 0 rounds to some 1e-6 degrees.
        assert ours[task.score] == pytest.approx(perfect[task.score], abs=1e-4), task.name


@pytest.mark.parametrize("task_set", ["nyudv2", "pascal_context", "cityscapes"])
def test_labels_of_higher_resolution_are_compared_with_upsampled_logits(task_set):
    chosen = tasks.TASK_SETS[task_set]
    batch = random_batch(chosen, 4, (6, 9), label_scale=2)
    rng = np.random.default_rng(1)
    logits = {t.name: rng.normal(size=(4, 6, 9, t.channels)).astype("f4") for t in chosen}
    mesh = create_mesh(4)
    counts = create_measure_step(chosen, mesh)(put_batch(logits, mesh), put_batch(batch, mesh))
    for task in chosen:
        metric, label = metrics.create_metric(task), batch[task.name]
        found = metric.compute(metric.merge(metric.empty(), counts[task.name]))
        enlarged = resized_by_opencv(logits[task.name], label.shape[1:3])
        wanted = score(task, [(enlarged, label, batch["mask"])])
        # float32 rounding: interpolation and sums over 864 pixels in another order.
        assert found == pytest.approx(wanted, rel=1e-5)


def test_every_task_has_a_metric_with_its_score():
    used = {task.metric for chosen in tasks.TASK_SETS.values() for task in chosen}
    assert used == set(metrics.METRICS)
    for task in KINDS.values():
        metric = metrics.create_metric(task)
        assert task.score in metric.compute(metric.empty())


def test_unknown_metrics_and_mismatched_shapes_are_rejected():
    with pytest.raises(
        ValueError, match=r"Unknown metric of task 'depth' 'dept'. Did you mean 'depth'\?"
    ):
        metrics.create_metric(dataclasses.replace(tasks.DEPTH, metric="dept"))
    metric = metrics.create_metric(tasks.DEPTH)
    with pytest.raises(ValueError, match="Resize the logits to the label's size first"):
        metric.measure(np.zeros((1, 4, 4, 1)), np.zeros((1, 8, 8, 1)), ONE)
