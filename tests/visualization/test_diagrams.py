"""Diagrams of scores: the confusion matrix and the precision-recall curve."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from mtmamba_jax.metrics.boundaries.counts import THRESHOLDS
from mtmamba_jax.metrics.boundaries.scores import sum_counts
from mtmamba_jax.tasks import table as tasks
from mtmamba_jax.visualization.confusion import draw_confusion
from mtmamba_jax.visualization.figures import render_figure, write_figure
from mtmamba_jax.visualization.precision_recall import draw_precision_recall

PARTS = tasks.HUMAN_PARTS
CONFUSION = np.zeros((7, 7), np.int64)
CONFUSION[0, :2], CONFUSION[1, :2], CONFUSION[2, 0] = (6, 2), (1, 3), 4


def cells(figure):
    """Returns the colours of the cells, 0..255, [label prediction 3]."""
    (image,) = figure.axes[0].images
    return 255 * image.to_rgba(image.get_array())[..., :3]


def test_confusion_is_drawn_as_the_share_of_each_row():
    figure = draw_confusion("human_parts", PARTS.class_names, CONFUSION)
    axes = figure.axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_array_equal(shares[0], [0.75, 0.25, 0, 0, 0, 0, 0])
    np.testing.assert_array_equal(shares[1], [0.25, 0.75, 0, 0, 0, 0, 0])
    assert shares.mask[3:].all() and not shares.mask[:3].any()
    assert axes.images[0].get_clim() == (0, 1)
    found = cells(figure)
    np.testing.assert_allclose(found[2, 0], (8, 48, 107))  # all of the row: the darkest blue
    assert found[0, 0].sum() < found[0, 1].sum() < found[0, 2].sum()
    np.testing.assert_allclose(found[3:], 232)  # classes without a label are grey
    numbers = {text.get_position(): text.get_text() for text in axes.texts}
    # (column, row): percent
    expected = {(0, 0): "75", (1, 0): "25", (0, 1): "25", (1, 1): "75", (0, 2): "100"}
    assert numbers == expected
    for labels in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [label.get_text() for label in labels] == list(PARTS.class_names)
    assert axes.get_title("left") == "human_parts, % of each label"


def test_confusion_of_many_classes_has_small_cells_without_numbers(tmp_path):
    count = 70
    names = [f"class {i}" for i in range(count)]
    figure = draw_confusion("semseg", names, np.eye(count, dtype=np.int64))
    assert not figure.axes[0].texts
    write_figure(tmp_path / "figure.png", figure)
    with Image.open(tmp_path / "figure.png") as image:
        assert 10 * count < max(image.size) < 12 * count
    found = cells(figure)
    np.testing.assert_allclose(found[np.arange(count), np.arange(count)], [(8, 48, 107)] * count)
    assert found[0, 1:].min() > 240


@pytest.mark.slow
def test_confusion_of_the_most_classes_fits_an_image():
    figure = draw_confusion("semseg", [f"class {i}" for i in range(255)], np.eye(255, dtype=int))
    assert max(figure.get_size_inches() * figure.dpi) < 3000


def test_long_class_names_make_room_for_themselves(tmp_path):
    sizes = []
    for longest in ("a rather long class name", PARTS.class_names[0]):
        task = dataclasses.replace(PARTS, class_names=(longest, *PARTS.class_names[1:]))
        path = tmp_path / "figure.png"
        write_figure(path, draw_confusion("parts", task.class_names, np.zeros((7, 7), int)))
        with Image.open(path) as image:
            sizes.append(image.size)
    assert sizes[0][0] > sizes[1][0]
    assert sizes[0][1] > sizes[1][1]


def sums_of(matched, predicted):
    """Sums over one image with 100 true pixels."""
    counts = np.stack([matched, np.full(101, 100), matched, predicted], axis=-1)
    return sum_counts([counts.astype(np.int64)])


def test_precision_recall_curve_has_a_dot_at_odsf():
    low = THRESHOLDS < 0.25
    axes = draw_precision_recall(sums_of(np.where(low, 90, 60), np.where(low, 200, 80))).axes[0]
    (dot,) = [line for line in axes.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(dot.get_xydata(), [[0.6, 0.75]])
    (curve,) = [line for line in axes.lines if line.get_xydata().shape == (101, 2)]
    np.testing.assert_allclose(curve.get_xydata()[[0, -1]], [[0.9, 0.45], [0.6, 0.75]])
    assert axes.get_title().startswith("odsF 66.67 ")


def test_an_empty_prediction_is_drawn_without_a_curve():
    figure = draw_precision_recall(sums_of(np.zeros(101), np.zeros(101)))
    assert any(line.get_xydata().size == 0 for line in figure.axes[0].lines)
    assert render_figure(figure).shape == (520, 520, 3)
