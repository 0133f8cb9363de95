"""Rendered maps, panels and legends."""

import cv2
import numpy as np
import pytest

from mtmamba_jax.benchmarks.programs import random_batch
from mtmamba_jax.evaluation.resizing import enlarge
from mtmamba_jax.evaluation.saved_predictions import FORMATS
from mtmamba_jax.tasks.readout import label_value, to_value
from mtmamba_jax.tasks.table import (
    CITYSCAPES,
    DEPTH,
    DISPARITY,
    EDGE,
    NORMALS,
    NYUDV2,
    PASCAL_CONTEXT,
    SALIENCY,
    SEMSEG_NYUDV2,
)
from mtmamba_jax.visualization.legend import add_legend
from mtmamba_jax.visualization.panels import example_panel
from mtmamba_jax.visualization.render import IGNORED, image_grid, overlay, render_map

ALL = {task: task.name for task in (*NYUDV2, *PASCAL_CONTEXT, *CITYSCAPES)}


@pytest.mark.parametrize("task", ALL, ids=lambda task: f"{task.name}-{task.channels}")
def test_predictions_and_labels_of_every_task_are_rendered(task):
    random = np.random.default_rng(0)
    value = to_value(task, random.normal(size=(6, 9, task.channels)))
    assert value.dtype == (np.uint8 if task.class_names and task.loss == "cross_entropy" else "f4")
    assert render_map(task, value).shape == (6, 9, 3)
    label = np.ones((6, 9, task.label_channels), task.label_dtype)
    label[0] = task.ignore
    picture = render_map(task, label_value(task, label))
    assert picture.dtype == np.uint8
    assert (picture[0] == (224, 224, 192)).all(), "ignored pixels are cream"
    assert (picture[1:] > 0).any()


def test_depth_maps_rendered_like_another_share_its_colour_range():
    near, far = np.full((2, 4), 1.0, np.float32), np.full((2, 4), 3.0, np.float32)
    true = np.hstack([near, far])
    drawn = render_map(DEPTH, true)
    np.testing.assert_array_equal(render_map(DEPTH, near, like=true), drawn[:, :4])
    np.testing.assert_array_equal(render_map(DEPTH, far, like=true), drawn[:, 4:])
    assert (drawn[:, :4] != drawn[:, 4:]).any()


def test_classes_have_their_palette_colours():
    logits = np.zeros((1, 3, 40))
    logits[0, np.arange(3), [0, 7, 39]] = 1
    picture = render_map(SEMSEG_NYUDV2, to_value(SEMSEG_NYUDV2, logits))
    assert [tuple(colour) for colour in picture[0]] == [
        SEMSEG_NYUDV2.palette[i] for i in (0, 7, 39)
    ]


def test_normals_have_unit_length_and_depth_keeps_metres():
    vectors = np.array([[[3.0, 0.0, 4.0], [0.0, -2.0, 0.0]]])
    np.testing.assert_allclose(to_value(NORMALS, vectors)[0, 0], [0.6, 0, 0.8], rtol=1e-6)
    np.testing.assert_allclose(to_value(DEPTH, np.full((2, 2, 1), 3.5)), 3.5)


@pytest.mark.parametrize("task", [NORMALS, EDGE, SALIENCY], ids=lambda task: task.name)
def test_rendered_levels_equal_those_of_saved_predictions(task):
    value = np.linspace(0, 1, 99, dtype=np.float32).reshape(1, 33, 3)
    value = 2 * value - 1 if task is NORMALS else value[..., 0]
    saved = np.frombuffer(FORMATS[task.quantity].encode(value), np.uint8)
    levels = cv2.imdecode(saved, cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(render_map(task, value), levels)


@pytest.mark.parametrize("task", [DEPTH, DISPARITY], ids=lambda task: task.unit)
def test_near_is_yellow_and_far_is_blue(task):
    nearness = np.linspace(1, 2, 100, dtype=np.float32)[None]
    picture = render_map(task, nearness**task.scale_power)
    assert picture[0, 0].argmax() == 2
    assert picture[0, -1].argmin() == 2


def test_enlarging_is_bilinear_with_half_pixel_centres_and_seamless_across_strips():
    ramp = np.linspace(0, 7, 8)[:, None, None] * np.ones((1, 5, 1))
    large = enlarge(DEPTH, ramp.astype(np.float32), (800, 50))
    # A linear ramp stays linear between the first and last centres.
    rows = np.clip((np.arange(800) + 0.5) / 100 - 0.5, 0, 7)
    np.testing.assert_allclose(large, np.repeat(rows[:, None], 50, 1), atol=1e-5)


def test_panel_draws_finer_labels_at_the_size_of_the_image():
    tasks = (SEMSEG_NYUDV2, NORMALS)
    batch = random_batch(tasks, 1, (6, 9), label_scale=3)
    fine = {key: value[0] for key, value in batch.items()}
    coarse = fine | {name: fine[name][::3, ::3] for name in ("semseg", "normals")}
    logits = {task.name: np.zeros((6, 9, task.channels)) for task in tasks}
    np.testing.assert_array_equal(
        example_panel(tasks, fine, logits), example_panel(tasks, coarse, logits)
    )


def test_grid_holds_every_image_and_overlay_keeps_the_size():
    picture = np.full((20, 30, 3), 200, np.uint8)
    sheet = image_grid([{"one": picture, "two": picture}, {"three": picture}], cell=60)
    assert sheet.shape[1] > 2 * 60
    assert sheet.shape[0] > 2 * 40
    thin = image_grid([{"thin": np.zeros((1, 700, 3), np.uint8)}])
    assert thin.shape[1] > 320
    assert overlay(picture, picture).shape == picture.shape


def test_legend_names_the_classes_of_the_maps_most_frequent_first():
    sheet = np.full((10, 400, 3), 7, np.uint8)
    value = np.array([[3, 3, 3, 0]], np.uint8)
    label = np.array([[3, 0, 255, 255]], np.int32)
    drawn = add_legend(sheet, (DEPTH, SEMSEG_NYUDV2), {"semseg": [value, label]})
    np.testing.assert_array_equal(drawn[:10], sheet)

    def columns(colour):  # where a patch of it is: text has single grey pixels
        return np.flatnonzero((drawn[10:] == colour).all(-1).sum(0) > 5)

    first, second, last = map(columns, (*(SEMSEG_NYUDV2.palette[i] for i in (3, 0)), IGNORED))
    assert all(found.size for found in (first, second, last))
    assert first.max() < second.min() < second.max() < last.min()
    others = [colour for i, colour in enumerate(SEMSEG_NYUDV2.palette) if i not in (0, 3)]
    assert not any(columns(colour).size for colour in others)


def test_legend_grows_with_the_number_of_classes_and_is_absent_without_classes():
    sheet = np.zeros((10, 400, 3), np.uint8)
    every = np.arange(40, dtype=np.uint8)[None]
    heights = [
        len(add_legend(sheet, (SEMSEG_NYUDV2,), {"semseg": [value]})) - 10
        for value in (every[:, :1], every)
    ]
    assert 20 < heights[0] < 50 < 5 * heights[0] < heights[1]
    assert add_legend(sheet, (DEPTH,), {}) is sheet
