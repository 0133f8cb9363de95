"""Scoring a test set's contours: which images, labels and pixels are scored, and how."""

import dataclasses

import numpy as np
import pytest

from mtmamba_jax.evaluation.boundaries import choose_benchmark, count_test_set
from mtmamba_jax.evaluation.evaluate import Prediction
from mtmamba_jax.metrics.boundaries.contours import contour_of_regions
from mtmamba_jax.metrics.boundaries.folders import count_prediction
from mtmamba_jax.tasks.table import CITYSCAPES, IGNORE, NYUDV2
from tests.metrics.boundaries import scenes

SIZE = (48, 60)


def predictions(*names):
    """Returns thick contours of Voronoi cells as labels, with soft predictions of them."""
    found = []
    for seed, name in enumerate(names):
        contour = contour_of_regions(scenes.cells(SIZE, 6, seed))
        label = contour[..., None].astype(np.int32)
        value = scenes.soft_prediction(contour, seed).astype(np.float32) / 255
        found.append(Prediction(name, {"edge": value}, {"edge": label}))
    return found


def count(dataset, made, **settings):
    benchmark = choose_benchmark(dataset, NYUDV2, num_workers=0, **settings)
    return list(count_test_set(benchmark, made))


@pytest.mark.parametrize(
    ("dataset", "labels", "label_kind", "distance"),
    [
        ("nyudv2", False, "regions", 0.011),
        ("nyudv2", True, "regions", 0.011),
        ("pascal_context", False, "contours", 0.0075),
        ("pascal_context", True, "regions", 0.0075),
        ("synthetic", False, "contours", 0.0075),
    ],
)
def test_contours_are_read_and_matched_as_published(
    dataset, labels, label_kind, distance, tmp_path
):
    found = choose_benchmark(dataset, NYUDV2, labels=tmp_path if labels else None)
    assert (found.label_kind, found.max_distance) == (label_kind, distance)


def test_an_unpublished_distance_is_reported_as_such():
    described = {name: choose_benchmark(name, NYUDV2).describe() for name in ("nyudv2", "folder")}
    assert described["folder"].endswith("0.0075 of the diagonal (none is published for folder)")
    assert described["nyudv2"].endswith("0.011 of the diagonal")


def test_images_excluded_by_published_figures_are_skipped_on_pascal_context_only():
    made = predictions("2008_000002", "2008_000008")
    everything = count("pascal_context", made, include_all=True)
    assert len(everything) == len(count("synthetic", made)) == 2
    (one,) = count("pascal_context", made)
    np.testing.assert_array_equal(one, everything[1])


def test_images_without_a_label_are_skipped():
    made = predictions("a", "b")
    bare = np.full_like(made[0].labels["edge"], IGNORE)
    bare = dataclasses.replace(made[0], labels={"edge": bare})
    found = count("folder", [bare, made[1]])
    np.testing.assert_array_equal(found, count("folder", made)[1:])


@pytest.mark.parametrize("label_kind", ["contours", "regions"])
def test_unlabelled_pixels_hold_no_contour_and_do_not_count(label_kind):
    levels, label = np.zeros(SIZE, np.uint8), np.zeros(SIZE, np.uint8)
    levels[20:23, :25] = 255
    label[20:23, :30] = 1
    bare = count_prediction(levels, label, label_kind, 0.02)
    assert bare[50, 0] >= 20  # of 25: the first fade at the border
    levels[:, 45:48] = 255
    label[:, 40:] = IGNORE
    np.testing.assert_array_equal(count_prediction(levels, label, label_kind, 0.02, IGNORE), bare)


def test_a_run_without_edges_has_nothing_to_score():
    with pytest.raises(ValueError, match="not have: it has semseg, depth"):
        choose_benchmark("cityscapes", CITYSCAPES)
