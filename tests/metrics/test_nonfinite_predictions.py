"""Predictions that are NaN or infinite have no score, and reports say how many there are."""

import dataclasses

import numpy as np
import pytest

from mtmamba_jax import metrics
from mtmamba_jax.evaluation.boundaries import choose_benchmark, count_test_set
from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.evaluation.report import format_other_scores, score_table
from mtmamba_jax.tasks import table as tasks
from tests.metrics.scored_sets import KINDS, compiled, cut, random_set, score


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_one_nonfinite_channel_of_a_labelled_pixel_leaves_no_score(task, value):
    logits, label = random_set(task)
    y, x = np.argwhere((label[2] != task.ignore).all(-1))[5]
    logits[2, y, x, 0] = value
    found = score(task, cut(logits, label, (4, 3), 4))
    assert found.pop("nonfinite_pixels") == 1
    assert np.isnan(list(found.values())).all(), found


@pytest.mark.parametrize("value", [2e10, 1e30, -1e30])
def test_a_depth_whose_score_may_overflow_counts_as_infinite(value):
    logits, label = random_set(tasks.DEPTH)
    y, x = np.argwhere(label[0, ..., 0] != tasks.DEPTH.ignore)[0]
    logits[0, y, x] = value
    found = score(tasks.DEPTH, cut(logits, label, (7,), 7))
    assert found.pop("nonfinite_pixels") == 1
    assert np.isnan(list(found.values())).all(), found


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_the_largest_finite_predictions_have_finite_scores(task):
    logits, label = random_set(task)
    logits *= np.float32(1e10 if task.metric == "depth" else 3e38) / np.abs(logits).max()
    found = score(task, cut(logits, label, (7,), 7))
    assert np.isfinite(list(found.values())).all(), found


@pytest.mark.parametrize("task", KINDS.values(), ids=KINDS)
def test_nonfinite_predictions_of_unlabelled_pixels_do_not_matter(task):
    logits, label = random_set(task)
    wanted = score(task, cut(logits, label, (7,), 7))
    logits[(label == task.ignore).all(-1)] = np.nan
    assert score(task, cut(logits, label, (7,), 7)) == wanted


def test_no_class_has_an_iou_if_a_prediction_is_not_finite():
    logits, label = random_set(tasks.HUMAN_PARTS)
    logits[...] = np.nan
    metric, measure = compiled(tasks.HUMAN_PARTS)
    sums = measure(logits, label, np.ones(7, bool))
    assert np.isnan(list(metric.per_class(sums).values())).all()
    assert not sums["confusion"].any()


def test_the_table_of_scores_says_which_task_has_nonfinite_predictions():
    chosen = (tasks.DEPTH, tasks.EDGE)
    scores = {}
    for task in chosen:
        logits, label = random_set(task)
        logits[...] = np.nan if task is tasks.DEPTH else logits
        scores[task.name] = score(task, cut(logits, label, (7,), 7))
    constants = {task.name: 1.0 for task in chosen}
    *_, warning = score_table(chosen, scores, constants).splitlines()
    count = scores["depth"]["nonfinite_pixels"]
    assert warning == (
        f"warning: depth has no score: the prediction is NaN, infinite or too large at {count} "
        "labelled pixels."
    )
    assert "nonfinite" not in format_other_scores(chosen, scores)


def test_odsf_names_an_image_whose_contours_are_nan():
    pytest.importorskip("skimage", reason="the boundary benchmark needs the extra 'data'")
    benchmark = dataclasses.replace(choose_benchmark("synthetic", (tasks.EDGE,)), num_workers=0)
    contours, label = np.full((8, 8), np.nan, np.float32), np.ones((8, 8, 1), np.int32)
    predictions = [Prediction("kitchen_1", {"edge": contours}, {"edge": label})]
    with pytest.raises(RuntimeError, match="edge of image kitchen_1 is NaN or infinite at 64"):
        list(count_test_set(benchmark, predictions))


def test_every_kind_of_metric_is_tried():
    assert set(KINDS) == set(metrics.METRICS)
