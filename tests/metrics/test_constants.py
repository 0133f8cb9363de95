"""Best constant predictions: their scores, and that no other constant is better."""

import jax
import numpy as np
import pytest

from mtmamba_jax import metrics
from mtmamba_jax.metrics import normals
from mtmamba_jax.tasks import table as tasks
from tests.metrics.scored_sets import KINDS, ONE, SPLITS, cut, random_set, score


def best_logits(constant, sums):
    """Returns the network's output for one pixel whose prediction is the best constant."""
    match constant.task.metric:
        case "segmentation":
            return np.eye(constant.task.channels)[np.argmax(sums["labelled"])]
        case "depth":
            return [sums["mean"]]
        case "normals":
            return constant._search(sums)[0]
        case "edge":
            return [20.0]
        case "saliency":
            return [0.0, 20.0]


def constant_score(task, labels, mask):
    """Returns the baseline's own score, and the metric's score of its constant."""
    constant = metrics.create_constant(task)
    sums = constant.merge(constant.empty(), jax.jit(constant.measure)(labels, mask))
    logits = np.broadcast_to(best_logits(constant, sums), (*labels.shape[:3], task.channels))
    return constant.compute(sums), score(task, [(logits.astype(np.float32), labels, mask)])


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_the_score_of_the_best_constant_is_the_metrics(task):
    _, label = random_set(task, 5)
    ours, through_metric = constant_score(task, label, np.arange(5) < 4)
    assert list(ours) == [task.score]
    # float32 sums; normals: the spread within a bin, under 0.01 degree of some 50.
    assert ours[task.score] == pytest.approx(through_metric[task.score], rel=2e-4, abs=1e-4)
    if task.metric != "normals":
        assert ours[task.score] == pytest.approx(through_metric[task.score], rel=1e-5)


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_no_other_constant_scores_better(task):
    _, label = random_set(task, 5)
    mask = np.ones(5, bool)
    best = constant_score(task, label, mask)[0][task.score]
    rng = np.random.default_rng(1)
    tries = [*(5 * np.eye(task.channels)), *rng.normal(scale=4, size=(40, task.channels))]
    if task.metric == "depth":
        tries = np.linspace(1, 9, 41)[:, None]
    sign = 1 if task.lower_is_better else -1
    for constant in tries:
        logits = np.broadcast_to(constant, (*label.shape[:3], task.channels)).astype(np.float32)
        other = score(task, [(logits, label, mask)])[task.score]
        # Rounding, as above.
        assert sign * (other - best) > -1e-2, constant


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_the_best_constant_does_not_depend_on_the_split(task):
    logits, label = random_set(task)
    constant = metrics.create_constant(task)
    measure = jax.jit(constant.measure)
    results = []
    for sizes, padded_to in (((7,), 7), *SPLITS):
        counts = constant.empty()
        for _, labels, mask in cut(logits, label, sizes, padded_to):
            counts = constant.merge(counts, measure(labels, mask))
        results.append(constant.compute(counts)[task.score])
    # float32 sums of one batch.
    np.testing.assert_allclose(results, results[0], rtol=1e-5)


def test_the_best_constant_normal_of_a_room_is_its_largest_wall():
    label = np.zeros((1, 10, 10, 3), np.float32)
    label[:, :5] = [0, 0, 1]
    label[:, 5:8] = [0, 1, 0]
    label[:, 8:] = [1, 0, 0]
    ours, through_metric = constant_score(tasks.NORMALS, label, ONE)
    # The direction of half of all normals has the least mean angle: 0.5 * 90 degrees.
    assert ours["mErr"] == pytest.approx(45.0, abs=1e-3)
    assert through_metric["mErr"] == pytest.approx(45.0, abs=1e-3)


def test_the_bins_of_the_sphere_contain_their_centres_and_cover_all_directions():
    side = normals.NormalsConstant.BINS_PER_SIDE
    centres = normals._bin_centres(side)
    np.testing.assert_array_equal(normals._bin_index(centres, side), np.arange(side**2))
    vectors = np.random.default_rng(0).normal(size=(20000, 3))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    near = np.sum(vectors * centres[np.asarray(normals._bin_index(vectors, side))], axis=1)
    # The diagonal of the octahedral map's largest cell, with room to spare.
    assert np.degrees(np.arccos(near.min())) < 2.0


@pytest.mark.parametrize(("mean", "deviation"), [(1.0, 5e-4), (50.0, 0.04), (1e6, 1.0)])
def test_the_best_constant_depth_has_the_deviation_of_labels_that_are_nearly_equal(mean, deviation):
    rng = np.random.default_rng(0)
    labels = (mean + deviation * rng.standard_normal((4, 300, 300, 1))).astype(np.float32)
    exact = labels.astype(float).std()
    constant = metrics.create_constant(tasks.DEPTH)
    measure = jax.jit(constant.measure)
    for sizes in ((4,), (3, 1)):
        sums = constant.empty()
        for _, batch, mask in cut(labels, labels, sizes, 4):
            sums = constant.merge(sums, measure(batch, mask))
        assert constant.compute(sums)["RMSE"] == pytest.approx(exact, rel=1e-4)  # float32 sums


def test_the_best_constant_depth_is_exact_only_if_all_labels_are_equal():
    labels = np.full((3, 300, 300, 1), 1.1, np.float32)
    assert constant_score(tasks.DEPTH, labels, np.ones(3, bool))[0] == {"RMSE": 0.0}
    labels[2, 0, 0] = np.nextafter(np.float32(1.1), np.float32(2))
    assert constant_score(tasks.DEPTH, labels, np.ones(3, bool))[0]["RMSE"] > 0
