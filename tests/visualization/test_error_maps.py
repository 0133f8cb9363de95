"""Error maps, for each kind of task."""

import numpy as np
import pytest

from mtmamba_jax.tasks.readout import label_value, to_value
from mtmamba_jax.tasks.table import (
    CITYSCAPES,
    DEPTH,
    DISPARITY,
    EDGE,
    HUMAN_PARTS,
    NORMALS,
    NYUDV2,
    PASCAL_CONTEXT,
    SALIENCY,
)
from mtmamba_jax.visualization.error_maps import ERRORS, render_error_map
from mtmamba_jax.visualization.render import IGNORED, RENDERERS

ALL = {task: task.name for task in (*NYUDV2, *PASCAL_CONTEXT, *CITYSCAPES)}


def test_every_quantity_has_an_error_map():
    assert ERRORS.keys() == RENDERERS.keys()


@pytest.mark.parametrize("task", ALL, ids=lambda task: f"{task.name}-{task.channels}")
def test_ignored_pixels_have_their_usual_colour_even_if_all_are_ignored(task):
    random = np.random.default_rng(0)
    predicted = to_value(task, random.normal(size=(6, 9, task.channels)))
    label = np.ones((6, 9, task.label_channels), task.label_dtype)
    label[0] = task.ignore
    _, picture = render_error_map(task, predicted, label_value(task, label))
    assert (picture.dtype, picture.shape) == (np.uint8, (6, 9, 3))
    assert (picture[0] == IGNORED).all()
    assert not (picture[1:] == IGNORED).all(-1).any()
    _, picture = render_error_map(
        task, predicted, label_value(task, np.full_like(label, task.ignore))
    )
    assert (picture == IGNORED).all()


def test_wrong_classes_are_red_and_their_share_excludes_ignored_pixels():
    meaning, picture = render_error_map(
        HUMAN_PARTS, np.array([[1, 2, 3, 0]], np.uint8), np.array([[1, 2, 4, 255]])
    )
    assert meaning == "red: wrong (33 %)"
    assert (picture[0, :2] == 238).all()
    assert tuple(picture[0, 2]) == (214, 39, 40)


@pytest.mark.parametrize("task", [DEPTH, DISPARITY], ids=lambda task: task.unit)
def test_depth_errors_run_from_white_to_dark_with_range_and_unit_in_the_title(task):
    true = np.full((1, 101), 5.0, np.float32)
    predicted = true + np.linspace(-2, 0, 101, dtype=np.float32)
    meaning, picture = render_error_map(task, predicted, true)
    # The 98th percentile of 0 to 2.
    assert meaning == f"error, 0 to 1.960 {task.unit}"
    brightness = picture[0].astype(int).sum(-1)
    assert (np.diff(brightness) >= 0).all()
    assert tuple(picture[0, -1]) == (255, 255, 255)
    assert tuple(picture[0, 0]) == tuple(picture[0, 2]) == (70, 0, 16)


def test_large_error_ranges_are_written_in_full():
    meaning, _ = render_error_map(
        DISPARITY, np.full((1, 9), 124.4, "f4"), np.ones((1, 9), np.float32)
    )
    assert meaning == "error, 0 to 123.4 px"


def test_normal_errors_are_darkest_from_sixty_degrees_on():
    degrees = np.array([0, 30, 59, 60, 180])
    turned = np.radians(degrees)
    predicted = np.stack([np.sin(turned), 0 * turned, np.cos(turned)], -1)[None].astype("f4")
    meaning, picture = render_error_map(NORMALS, predicted, np.array([[[0, 0, 1]] * 5], np.float32))
    assert meaning == "error, 0 to 60 deg"
    assert tuple(picture[0, 0]) == (255, 255, 255)
    # The middle of the colormap, which has steps of 1 / 255.
    np.testing.assert_allclose(picture[0, 1].astype(int), (239, 90, 70), atol=2)
    assert tuple(picture[0, 2]) != (70, 0, 16)
    assert (picture[0, 3:] == (70, 0, 16)).all()


@pytest.mark.parametrize("task", [EDGE, SALIENCY], ids=lambda task: task.name)
def test_probability_errors_do_not_depend_on_their_sign(task):
    probability = np.array([[0.0, 0.25, 0.75, 1.0]], np.float32)
    meaning, of_nothing = render_error_map(task, probability, np.zeros((1, 4), np.int32))
    _, of_all = render_error_map(task, 1 - probability, np.ones((1, 4), np.int32))
    assert meaning == "error, 0 to 1"
    np.testing.assert_array_equal(of_nothing, of_all)
    assert tuple(of_nothing[0, 0]) == (255, 255, 255)
    assert tuple(of_nothing[0, 3]) == (70, 0, 16)
