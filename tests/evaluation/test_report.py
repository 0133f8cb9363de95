"""What eval prints below its table of scores, and the confusion matrices it writes."""

import math

import numpy as np
import pytest
from etils import epath
from PIL import Image

from mtmamba_jax.evaluation.report import (
    class_ious,
    format_class_ious,
    format_details,
    format_gains,
    format_other_scores,
    score_table,
    write_confusions,
)
from mtmamba_jax.metrics import compute_scores, create_metric
from mtmamba_jax.tasks import table as tasks
from tests.tiny import tiny_config

PARTS = tasks.HUMAN_PARTS
SCORES = {
    "semseg": {"mIoU": 55.82},
    "depth": {"RMSE": 0.5066, "abs_rel": 0.2, "delta1": 80.0},
    "edge": {"maxF": 40.0, "loss": 0.1},
    "normals": {"mErr": 18.63, "median": 9.0},
}
CONSTANTS = {"semseg": 27.91, "depth": 1.0132, "edge": 20.0, "normals": 37.26}


def totals_of(task, confusion):
    return {task.name: create_metric(task).empty() | {"confusion": confusion}}


def parts_confusion():
    confusion = np.zeros((7, 7), np.int64)
    confusion[0, :2], confusion[1, :2], confusion[2, 0] = (6, 2), (1, 3), 4
    return confusion


def test_class_ious_come_from_confusion_matrices_of_tasks_with_classes():
    chosen = (PARTS, tasks.SALIENCY)
    totals = {t.name: create_metric(t).empty() for t in chosen}
    totals["human_parts"] = {"confusion": parts_confusion()}
    ious = class_ious(chosen, totals)
    assert list(ious) == ["human_parts"]
    assert list(ious["human_parts"].values()) == pytest.approx([600 / 13, 50, 0, 0, 0, 0, 0])


def test_class_table_is_read_downwards_and_marks_absent_classes():
    confusion = parts_confusion()
    ious = create_metric(PARTS).per_class({"confusion": confusion})
    head, *lines = format_class_ious("human_parts", ious, confusion).splitlines()
    assert head == (
        "human_parts, IoU in %; -: neither labelled nor predicted, 0 in mIoU, not in mIoU_present"
    )
    assert [" ".join(line.split()) for line in lines] == [
        "background 46.15 torso 0.00 lower arms - lower legs -",
        "head 50.00 upper arms - upper legs -",
    ]
    assert all(len(line) <= 100 for line in lines)


def test_every_class_of_a_published_dataset_is_in_its_table_once():
    for task in (tasks.SEMSEG_NYUDV2, tasks.SEMSEG_VOC, tasks.SEMSEG_CITYSCAPES):
        ious = {name: float(i) for i, name in enumerate(task.class_names)}
        text = format_class_ious(task.name, ious, np.eye(task.channels))
        for name, value in ious.items():
            assert len([line for line in text.splitlines() if f"{value:6.2f}" in line]) == 1, name
        assert "-:" not in text


def test_ious_of_many_classes_are_only_in_the_file():
    ious = {f"class {i}": 0.0 for i in range(61)}
    assert format_class_ious("semseg", ious, np.eye(61)) == (
        "semseg: IoU of 61 classes, in the file of scores"
    )
    confusion = np.diag([1] * 59 + [0, 0])
    assert format_class_ious("semseg", ious, confusion).endswith("predicted: class 59, class 60")


def test_a_perfect_prediction_of_some_classes_is_reported_in_both_readings():
    (task,) = tasks.select("custom", ["semseg"], ["background", "crack", "moss"])
    totals = totals_of(task, np.diag([5, 3, 0]))
    scores = compute_scores((task,), totals)
    assert scores["semseg"] == {"mIoU": pytest.approx(200 / 3), "mIoU_present": 100.0}
    *_, table_end, note = score_table((task,), scores, {"semseg": 20.0}).splitlines()
    assert "66.667" in table_end
    assert note.endswith("as published; without them (mIoU_present) it is 100.000.")
    assert "moss            -" in format_class_ious(
        "semseg", class_ious((task,), totals)["semseg"], totals["semseg"]["confusion"]
    )
    everything = compute_scores((task,), totals_of(task, np.ones((3, 3), int)))
    assert everything["semseg"]["mIoU"] == pytest.approx(everything["semseg"]["mIoU_present"])
    assert "mIoU_present" not in score_table((task,), everything, {"semseg": 20.0})


def test_other_scores_have_units_and_exclude_the_main_score():
    assert format_other_scores(tasks.NYUDV2, SCORES).splitlines() == [
        "depth        abs_rel 0.200, delta1 80.000 %",
        "edge         loss 0.100",
        "normals      median 9.000 deg",
    ]


def test_gain_is_relative_to_configured_baselines_or_else_to_constants():
    # Each score is twice or half of its constant.
    assert format_gains(tasks.NYUDV2, SCORES, CONSTANTS, {}, "synthetic") == (
        "delta_m +75.00 % against the best constant predictions"
    )
    same = {"semseg": 55.82, "depth": 0.5066, "edge": 40.0, "normals": 18.63}
    assert format_gains(tasks.NYUDV2, SCORES, CONSTANTS, same, "synthetic") == (
        "delta_m +0.00 % against tasks.baselines"
    )


def test_gain_over_the_paper_uses_odsf_and_never_maxf():
    broken = SCORES | {"depth": dict.fromkeys(SCORES["depth"], math.nan)}
    assert format_gains(tasks.NYUDV2, broken, CONSTANTS, {}, "synthetic") == (
        "delta_m none against the best constant predictions: depth has no score"
    )
    lines = format_gains(tasks.NYUDV2, SCORES, CONSTANTS, {}, "nyudv2").splitlines()
    # (55.82 / 54.32 - 1 + 1 - 0.5066 / 0.5166 + 1 - 18.63 / 19.21) / 3, of its Table 2.
    assert lines[1] == (
        "delta_m +2.57 % against the paper's single-task models (Swin-Large), of semseg, depth, "
        "normals only: edge has no odsF"
    )
    with_odsf = SCORES | {"edge": {"maxF": 40.0, "odsF": 78.70}}
    lines = format_gains(tasks.NYUDV2, with_odsf, CONSTANTS, {}, "nyudv2").splitlines()
    # The paper truncates it to 2.38.
    assert lines[1] == "delta_m +2.38 % against the paper's single-task models (Swin-Large)"
    edge_only = format_gains((tasks.EDGE,), SCORES, CONSTANTS, {}, "nyudv2").splitlines()
    assert edge_only[1].endswith("none, no score here is the paper's")


@pytest.mark.parametrize(
    ("task", "constant", "reason"),
    [
        ("edge", 0.0, "its best constant prediction has maxF 0 because no label is positive"),
        ("depth", 0.0, "its best constant prediction has RMSE 0 because all its labels are equal"),
        ("normals", np.nan, "no pixel of the test set is labelled for it"),
    ],
)
def test_a_constant_that_delta_m_cannot_divide_by_is_left_out_with_the_cause(
    task, constant, reason
):
    text = format_gains(tasks.NYUDV2, SCORES, CONSTANTS | {task: constant}, {}, "synthetic")
    kept = ", ".join(each.name for each in tasks.NYUDV2 if each.name != task)
    assert text.startswith("delta_m +")
    assert f"against the best constant predictions, of {kept} only ({task}: {reason}" in text
    (only,) = (each for each in tasks.NYUDV2 if each.name == task)
    text = format_gains((only,), SCORES, {task: constant}, {}, "synthetic")
    assert text.startswith("delta_m none against the best constant predictions (")


def test_details_have_no_empty_parts():
    config = tiny_config()
    totals = totals_of(PARTS, parts_confusion())
    scores = compute_scores((PARTS,), totals)
    text = format_details(config, (PARTS,), totals, scores, {"human_parts": 5.0})
    table, others, gain = text.split("\n\n")
    assert table.startswith("human_parts, IoU")
    assert others == "human_parts  mIoU_present 32.051 %"
    assert gain.startswith("delta_m ")


def test_confusion_matrices_are_written_for_tasks_with_classes_only(tmp_path):
    chosen = (PARTS, tasks.DEPTH)
    totals = {t.name: create_metric(t).empty() for t in chosen}
    paths = write_confusions(epath.Path(tmp_path), chosen, totals, "_latest")
    assert [path.name for path in paths] == ["confusion_human_parts_latest.png"]
    with Image.open(paths[0]) as image:
        assert image.format == "PNG"
        assert min(image.size) > 200
