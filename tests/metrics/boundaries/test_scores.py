"""Scores of test sets: hand-computed cases, any order of images, and the files of a report."""

import csv
import errno
import json
import os
import pathlib

import numpy as np
import pytest

from mtmamba_jax.metrics.boundaries import report
from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS
from mtmamba_jax.metrics.boundaries.scores import (
    Curve,
    average_precision,
    compute,
    curve,
    sum_counts,
)

LINE = THRESHOLDS


def counts_of(matched, true, predicted):
    """Counts with the same number at every threshold, or one number for each."""
    return np.stack(
        np.broadcast_arrays(matched, true, matched, predicted, LINE.astype(int))[:4], axis=-1
    ).astype(np.int64)


def total(*images):
    return sum_counts(images)


EARLY = counts_of(np.where(LINE < 0.25, 60, 10), 100, np.where(LINE < 0.25, 100, 20))
LATE = counts_of(np.where(LINE < 0.25, 30, 80), 100, np.where(LINE < 0.25, 300, 100))


def test_odsf_pools_counts_at_one_threshold_and_oisf_at_each_images_best():
    scores = compute(total(EARLY, LATE))
    # Below 0.25: 90 of 200 found, of 400 predicted right. Above: 90 of 200, of 120.
    assert scores["odsF"] == pytest.approx(100 * 2 * 90 / (200 + 120))
    assert scores["recall"] == pytest.approx(45.0)
    assert scores["precision"] == pytest.approx(75.0)
    assert scores["threshold"] == 0.25
    assert scores["oisF"] == pytest.approx(100 * 2 * (60 + 80) / (200 + 200))


def test_scores_do_not_depend_on_the_order_of_images():
    assert compute(total(EARLY, LATE)) == compute(total(LATE, EARLY))


def test_scores_of_no_image_are_nan():
    assert all(np.isnan(score) for score in compute(total()).values())


def test_precision_is_1_and_f_is_0_if_nothing_is_predicted():
    points = curve(np.array([[0, 10, 0, 0], [0, 0, 0, 10], [0, 0, 0, 0]]))
    assert points.precision.tolist() == [1, 0, 1]
    assert points.recall.tolist() == [0, 1, 1]
    assert points.f.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    ("recall", "precision", "area"),
    [
        ([1, 0], [0, 1], 0.505),  # a straight line at 101 places
        ([0.5, 0], [1, 1], 0.51),  # nothing reaches further
        ([1, 0.5, 0.5, 0], [1, 0.2, 1, 1], 1.01),  # of one recall the better precision
    ],
)
def test_average_precision_is_the_berkeley_benchmarks_sum(recall, precision, area):
    points = Curve(np.array(precision, float), np.array(recall, float), np.zeros(1))
    assert average_precision(points) == pytest.approx(area)


def test_a_report_holds_scores_and_the_curve(tmp_path):
    sums = total(EARLY, LATE)
    report.write_report(tmp_path / "made", sums, {"dataset": "nyudv2"})
    record = json.loads((tmp_path / "made" / report.SCORES_FILE).read_text())
    assert record == {"dataset": "nyudv2", "images": 2, "scores": compute(sums)}
    with (tmp_path / "made" / report.TABLE_FILE).open(newline="") as file:
        title, *rows = csv.reader(file)
    assert tuple(title) == report.COLUMNS
    np.testing.assert_array_equal(np.array(rows)[:, 4:].astype(int), sums["counts"])
    np.testing.assert_allclose(np.array(rows)[:, 0].astype(float), THRESHOLDS)


@pytest.mark.parametrize(("place", "printed"), [(0, "0.001"), (-1, "0.999")])
def test_the_outermost_thresholds_are_not_printed_as_0_and_1(place, printed):
    matched = np.zeros(len(LINE), int)
    matched[place] = 50
    last = report.score_table(total(counts_of(matched, 100, 100))).splitlines()[-1]
    assert [cell.strip() for cell in last.split("|")[1:-1]] == ["threshold", printed]


def test_a_full_disk_leaves_the_previous_report_intact(tmp_path, monkeypatch):
    report.write_report(tmp_path, total(EARLY), {})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    write = pathlib.Path.write_bytes

    def fill_up(path, contents):
        write(path, contents[:9])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", fill_up)
    with pytest.raises(OSError, match="No space left"):
        report.write_report(tmp_path, total(LATE), {})
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
