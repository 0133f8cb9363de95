"""What eval says below the table of scores, and the confusion matrix it draws."""

import dataclasses

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mtmamba_jax import tasks
from mtmamba_jax.evaluation.report import (
    class_ious,
    class_table,
    details,
    gains,
    other_scores,
    write_confusions,
)
from mtmamba_jax.metrics import create_metric
from mtmamba_jax.metrics.scores import compute_scores
from mtmamba_jax.visualization.canvas import Canvas
from mtmamba_jax.visualization.confusion import draw_confusion
from tests.tiny import tiny_config

PARTS = tasks.HUMAN_PARTS
SCORES = {
    "semseg": {"mIoU": 55.82},
    "depth": {"RMSE": 0.5066, "abs_rel": 0.2, "delta1": 80.0},
    "edge": {"maxF": 40.0, "loss": 0.1},
    "normals": {"mErr": 18.63, "median": 9.0},
}
CONSTANTS = {"semseg": 27.91, "depth": 1.0132, "edge": 20.0, "normals": 37.26}


def parts_confusion():
    confusion = np.zeros((7, 7), np.int64)
    confusion[0, :2], confusion[1, :2], confusion[2, 0] = (6, 2), (1, 3), 4
    return confusion


def test_ious_are_of_class_tasks_alone_and_follow_from_the_confusion_matrix():
    chosen = (PARTS, tasks.SALIENCY)
    totals = {t.name: create_metric(t).empty() for t in chosen}
    totals["human_parts"] = {"confusion": parts_confusion()}
    ious = class_ious(chosen, totals)
    assert list(ious) == ["human_parts"]
    assert list(ious["human_parts"].values()) == pytest.approx([600 / 13, 50, 0, 0, 0, 0, 0])


def test_table_of_classes_is_read_downwards_and_marks_what_is_nowhere():
    confusion = parts_confusion()
    ious = create_metric(PARTS).per_class({"confusion": confusion})
    head, *lines = class_table("human_parts", ious, confusion).splitlines()
    assert head == "human_parts, IoU in %; -: neither labelled nor predicted, 0 in the mean"
    assert [" ".join(line.split()) for line in lines] == [
        "background 46.15 torso 0.00 lower arms - lower legs -",
        "head 50.00 upper arms - upper legs -",
    ]
    assert all(len(line) <= 100 for line in lines)


def test_every_class_of_a_published_set_is_in_its_table_once():
    for task in (tasks.SEMSEG_NYUDV2, tasks.SEMSEG_VOC, tasks.SEMSEG_CITYSCAPES):
        ious = {name: float(i) for i, name in enumerate(task.class_names)}
        text = class_table(task.name, ious, np.eye(task.channels))
        for name, value in ious.items():
            assert len([line for line in text.splitlines() if f"{value:6.2f}" in line]) == 1, name
        assert "-:" not in text


def test_many_classes_are_left_to_the_file():
    ious = {f"class {i}": 0.0 for i in range(61)}
    assert class_table("semseg", ious, np.eye(61)) == (
        "semseg: IoU of 61 classes, in the file of scores"
    )


def test_other_scores_have_their_units_and_leave_out_those_of_the_table():
    assert other_scores(tasks.NYUDV2, SCORES).splitlines() == [
        "depth        abs_rel 0.200, delta1 80.000 %",
        "edge         loss 0.100",
        "normals      median 9.000 deg",
    ]


def test_gain_is_against_the_constants_or_the_baselines_of_the_configuration():
    # Twice or half of each constant.
    assert gains(tasks.NYUDV2, SCORES, CONSTANTS, {}, "synthetic") == (
        "delta_m +75.00 % against the best constant predictions"
    )
    same = {"semseg": 55.82, "depth": 0.5066, "edge": 40.0, "normals": 18.63}
    assert gains(tasks.NYUDV2, SCORES, CONSTANTS, same, "synthetic") == (
        "delta_m +0.00 % against tasks.baselines"
    )


def test_gain_on_the_paper_leaves_out_maxf_and_takes_odsf():
    lines = gains(tasks.NYUDV2, SCORES, CONSTANTS, {}, "nyudv2").splitlines()
    # (55.82 / 54.32 - 1 + 1 - 0.5066 / 0.5166 + 1 - 18.63 / 19.21) / 3, of its Table 2.
    assert lines[1] == (
        "delta_m +2.57 % against the paper's single-task models (Swin-Large), of semseg, depth, "
        "normals alone: edge has no odsF"
    )
    with_odsf = SCORES | {"edge": {"maxF": 40.0, "odsF": 78.70}}
    lines = gains(tasks.NYUDV2, with_odsf, CONSTANTS, {}, "nyudv2").splitlines()
    # The paper cuts it to 2.38.
    assert lines[1] == "delta_m +2.38 % against the paper's single-task models (Swin-Large)"
    alone = gains((tasks.EDGE,), SCORES, CONSTANTS, {}, "nyudv2").splitlines()
    assert alone[1].endswith("none, no score here is the paper's")


def test_a_baseline_that_cannot_be_divided_by_gives_a_reason_in_place_of_a_gain():
    text = gains(tasks.NYUDV2, SCORES, CONSTANTS | {"edge": 0.0}, {}, "synthetic")
    assert text.startswith("delta_m against the best constant predictions: none. ")
    assert "'edge' (maxF) is 0.0" in text


def test_details_have_no_empty_part():
    config = tiny_config()
    totals = {"human_parts": {"confusion": parts_confusion()}}
    scores = compute_scores((PARTS,), totals)
    text = details(config, (PARTS,), totals, scores, {"human_parts": 5.0})
    table, gain = text.split("\n\n")
    assert table.startswith("human_parts, IoU")
    assert gain.startswith("delta_m ")


def cells(picture, count):
    """The colour near the corner of each cell, where no number is."""
    pixels = np.asarray(picture)
    side = {True: 24, False: 11}[count <= 60]
    top = pixels.shape[0] - 16 - side * count
    left = top - 44  # what is above the names of columns, which take as much room as those of rows
    return pixels[top + 3 :: side, left + 3 :: side][:count, :count].astype(int)


def test_confusion_is_drawn_by_the_share_of_each_row():
    found = cells(draw_confusion("human_parts", PARTS.class_names, parts_confusion()), 7)
    # 75 % and 25 % from white to (8, 69, 148); a row without a pixel is grey; LANCZOS rounds.
    np.testing.assert_allclose(found[0, 0], (69.75, 115.5, 174.75), atol=3)
    np.testing.assert_allclose(found[0, 1], (193.25, 208.5, 228.25), atol=3)
    np.testing.assert_allclose(found[1, 1], found[0, 0], atol=3)
    np.testing.assert_allclose(found[2, 0], (8, 69, 148), atol=3)
    np.testing.assert_allclose(found[2, 1:], 255, atol=3)
    np.testing.assert_allclose(found[3:], 232, atol=3)


def test_confusion_of_many_classes_is_drawn_small():
    names = [f"class {i}" for i in range(255)]
    picture = draw_confusion("semseg", names, np.eye(255, dtype=np.int64))
    assert max(picture.size) < 3000
    found = cells(picture, 255)
    np.testing.assert_allclose(found[np.arange(255), np.arange(255)], [(8, 69, 148)] * 255, atol=30)
    assert found[0, 1:].min() > 225


def test_confusions_are_written_for_class_tasks_alone(tmp_path):
    chosen = (PARTS, tasks.DEPTH)
    totals = {t.name: create_metric(t).empty() for t in chosen}
    paths = write_confusions(epath.Path(tmp_path), chosen, totals, "_latest")
    assert [path.name for path in paths] == ["confusion_human_parts_latest.png"]
    wanted = draw_confusion("human_parts", PARTS.class_names, np.zeros((7, 7), int))
    with Image.open(paths[0]) as written:
        np.testing.assert_array_equal(np.asarray(written), np.asarray(wanted))


def test_names_longer_than_others_make_room():
    long = dataclasses.replace(PARTS, class_names=("a rather long name", *PARTS.class_names[1:]))
    short, wide = (
        draw_confusion("parts", task.class_names, np.zeros((7, 7), int)) for task in (PARTS, long)
    )
    assert wide.width > short.width
    assert wide.height > short.height


def test_upward_text_begins_at_its_place_with_its_middle_there():
    canvas = Canvas(40, 100, detail=2)
    canvas.upward_text("HHHH", (20, 90), 12)
    inked = np.argwhere(np.asarray(canvas.finish()).min(-1) < 128)
    # Within the font's side bearings.
    assert 85 <= inked[:, 0].max() <= 90
    assert 40 < inked[:, 0].min() < 65
    assert abs((inked[:, 1].min() + inked[:, 1].max()) / 2 - 20) <= 1.5
