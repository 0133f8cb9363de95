"""Counts of one image: the published tool's figures, brute force, and simple cases."""

import pathlib

import numpy as np
import pytest
from scipy.sparse.csgraph import maximum_bipartite_matching
from scipy.spatial.distance import cdist

from mtmamba_jax.metrics.boundaries.contours import (
    contour_of_regions,
    suppress,
    suppress_across,
    thin,
)
from mtmamba_jax.metrics.boundaries.counts import MAX_DISTANCE, THRESHOLDS, count_matches
from mtmamba_jax.metrics.boundaries.folders import count_prediction
from mtmamba_jax.metrics.boundaries.matching import Matcher, near_pixels
from mtmamba_jax.metrics.boundaries.scores import compute, curve, sum_counts
from tests.metrics.boundaries import scenes

GOLDEN = pathlib.Path(__file__).parents[2] / "golden"
SETS = {"nyudv2": "nyudv2", "pascal_context": "pascal"}
IMAGES = range(4)


@pytest.fixture(params=SETS)
def golden(request):
    with np.load(GOLDEN / f"boundary_{SETS[request.param]}.npz") as file:
        return {"name": request.param, **file}


def score(levels, contour, max_distance=0.05):
    counts = count_matches(suppress(levels), contour, max_distance)
    return compute(sum_counts([counts])), counts


def test_thresholds_and_distances_are_the_published_ones(golden):
    np.testing.assert_allclose(THRESHOLDS, golden["thresholds"], rtol=1e-15)
    assert MAX_DISTANCE[golden["name"]] == golden["max_dist"]


@pytest.mark.parametrize("image", IMAGES)
def test_suppression_matches_the_published_tool(golden, image):
    levels, direction, expected = (
        golden[f"{image}/{name}"] for name in ("prediction", "orientation", "nms")
    )
    given = suppress_across(levels, direction.astype(np.float64))
    np.testing.assert_allclose(given, expected, rtol=0, atol=1e-5)
    # Where E_xy is exactly 0, the tool's direction depends on the sign of a rounding error: 3 of
    # 11520 pixels in the worst of these images.
    differ = np.abs(suppress(levels) - expected) > 1e-5
    assert differ.sum() <= 3


@pytest.mark.parametrize("image", IMAGES)
def test_thinning_leaves_thin_contours_unchanged(golden, image):
    contour = golden[f"{image}/ground_truth"]
    np.testing.assert_array_equal(thin(contour), contour)


def test_counts_and_odsf_match_the_published_tool(golden):
    ours, published = [], 0
    for image in IMAGES:
        strength = suppress(golden[f"{image}/prediction"])
        contour, expected = golden[f"{image}/ground_truth"], golden[f"{image}/counts"]
        counts = count_matches(strength, contour, float(golden["max_dist"]))
        # The tool's assignment misses the maximum matching by up to 4 pixels; pixels whose
        # direction differs (see above) account for up to 2.
        assert (np.abs(counts - expected) <= np.maximum(0.01 * expected, 4)).all()
        ours.append(counts)
        published = published + expected
    ours = sum_counts(ours)
    # Summed over the images, as for odsF.
    assert (np.abs(ours["counts"] - published) <= np.maximum(0.01 * published, 2)).all()
    assert compute(ours)["odsF"] / 100 == pytest.approx(golden["odsF"], abs=0.002)


def test_near_pixels_are_those_within_the_distance():
    rng = np.random.default_rng(0)
    a, b = (rng.random((13, 17)) < 0.3 for _ in range(2))
    for distance in (0.5, 1.0, 2.9, 5.0):  # integers test that the limit is inclusive
        expected = cdist(np.argwhere(a), np.argwhere(b)) <= distance
        np.testing.assert_array_equal(near_pixels(a, b, distance).toarray(), expected)


@pytest.mark.parametrize("density", [0.05, 0.2, 0.5])
def test_matchings_are_maximum_for_any_sequence_of_contours(density):
    rng = np.random.default_rng(int(100 * density))
    truth = rng.random((20, 23)) < density
    candidates = rng.random((20, 23)) < 2 * density
    matcher = Matcher(candidates, truth, 2.5)
    for share in (0.1, 0.9, 0.5, 0.0, 1.0, 0.7):
        predicted = candidates & (rng.random((20, 23)) < share)
        whole = maximum_bipartite_matching(near_pixels(predicted, truth, 2.5), perm_type="column")
        assert matcher.count(predicted) == np.count_nonzero(whole >= 0)


CELLS = contour_of_regions(scenes.cells((40, 50)))
NOISE = np.random.default_rng(0).integers(0, 256, (40, 50), dtype=np.uint8)


@pytest.mark.parametrize(
    ("levels", "contour"),
    [
        (scenes.soft_prediction(CELLS), CELLS),
        (NOISE, CELLS),
        (NOISE, np.random.default_rng(1).random((40, 50)) < 0.35),
    ],
    ids=["contours of cells", "noise predicted", "noise everywhere"],
)
def test_counts_are_those_of_matching_from_scratch_at_every_threshold(levels, contour):
    strength = suppress(levels)
    counts = count_matches(strength, contour, MAX_DISTANCE["nyudv2"])
    plain = scenes.matches_from_scratch(strength, contour, MAX_DISTANCE["nyudv2"])
    np.testing.assert_array_equal(counts[:, 0], plain)


def test_a_perfect_prediction_scores_100():
    contour = thin(contour_of_regions(np.indices((40, 50)).sum(0) > 44))
    # Faded pixels still exceed the lowest threshold, except on the border itself.
    contour[[0, -1]] = contour[:, [0, -1]] = False
    scores, _ = score(np.where(contour, 255, 0).astype(np.uint8), contour)
    assert scores["odsF"] == scores["oisF"] == 100.0
    assert scores["precision"] == scores["recall"] == 100.0


def test_an_empty_prediction_scores_0():
    contour = np.zeros((30, 30), bool)
    contour[15] = True
    scores, counts = score(np.zeros((30, 30), np.uint8), contour)
    assert scores["odsF"] == scores["oisF"] == scores["recall"] == 0.0
    np.testing.assert_array_equal(counts, [[0, 30, 0, 0]] * 101)


def test_unlabelled_pixels_have_no_contour_and_count_for_nothing():
    label = np.ones((60, 60), np.uint8)
    label[20:30] = 255
    levels = np.zeros((60, 60), np.uint8)
    levels[25] = 255
    counts = count_prediction(levels, label, "regions", 0.05, ignore=255)
    assert not counts.any()


def test_without_a_true_contour_every_prediction_is_wrong():
    levels = np.zeros((30, 30), np.uint8)
    levels[15] = 255
    _, counts = score(levels, np.zeros((30, 30), bool))
    assert not counts[:, :3].any()
    assert not curve(counts[:99]).f.any()
    assert counts[0, 3] > 20


@pytest.mark.parametrize(("shift", "found"), [(2, True), (3, False)])
def test_a_contour_is_found_up_to_the_maximum_distance(shift, found):
    contour, levels = np.zeros((40, 30), bool), np.zeros((40, 30), np.uint8)
    contour[15], levels[15 + shift] = True, 255
    _, counts = score(levels, contour, max_distance=2.5 / 50)  # the diagonal is 50 pixels
    matched, true, _, predicted = counts[0]
    assert true == 30
    assert matched == (predicted if found else 0)


def test_a_true_pixel_matches_at_most_one_predicted_pixel():
    strength, contour = np.zeros((40, 30)), np.zeros((40, 30), bool)
    strength[18, ::2] = strength[22, ::2] = 0.5
    contour[20] = True
    straight = count_matches(strength, contour, 2.0 / 50)
    assert straight[0].tolist() == [15, 30, 15, 30]
    slanted = count_matches(strength, contour, 2.3 / 50)  # sqrt(5): one to the side
    assert slanted[0].tolist() == [30, 30, 30, 30]


def test_a_contour_must_exceed_the_threshold():
    strength, contour = np.zeros((30, 30)), np.zeros((30, 30), bool)
    strength[15, 15], contour[15, 15] = 0.5, True
    counts = count_matches(strength, contour, 0.05)
    np.testing.assert_array_equal(counts[:, 3], THRESHOLDS < 0.5)


def test_a_line_read_as_a_region_has_a_contour_on_both_sides():
    regions = np.zeros((9, 9), np.uint8)
    regions[:, 3:6] = 255
    contour = contour_of_regions(regions)
    np.testing.assert_array_equal(np.flatnonzero(contour[4]), [2, 5])


def test_a_contour_lies_up_and_left_of_the_border_between_regions():
    regions = np.zeros((4, 4), int)
    regions[2, 2] = 1
    expected = np.zeros((4, 4), bool)
    expected[1:3, 1:3] = True  # the pixel and its upper, left and upper left neighbours
    np.testing.assert_array_equal(contour_of_regions(regions), expected)


MAP, CONTOUR = np.zeros((8, 9)), np.zeros((8, 9), bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: suppress(MAP), r"uint8 \[h w\].*got float64 \[8, 9\]. Write round"),
        (lambda: suppress(np.zeros((1, 9), np.uint8)), r"2x2 or larger; got .*\[1, 9\]"),
        (
            lambda: count_matches(MAP > 0, CONTOUR, 0.1),
            "got bool.*`suppress` computes",
        ),
        (lambda: count_matches(MAP, CONTOUR[1:], 0.1), r"\[8, 9\]; got bool \[7, 9\]"),
        (lambda: count_matches(MAP, MAP, 0.1), r"got float64 \[8, 9\]"),
        (lambda: count_matches(MAP, CONTOUR, 2.5), r"got 2.5. Published: 0.011"),
    ],
)
def test_invalid_maps_are_reported(call, message):
    with pytest.raises(ValueError, match=message):
        call()
