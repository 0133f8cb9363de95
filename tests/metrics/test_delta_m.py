"""delta_m reproduces every row of the paper that prints it."""

import math

import pytest

from mtmamba_jax.metrics.multitask import delta_m, headline
from mtmamba_jax.tasks import table as tasks

# The paper's Table 2, 3, 4 and 5 (NYUDv2): mIoU, RMSE, mErr, odsF and the printed delta_m.
SINGLE_TASK = (54.32, 0.5166, 19.21, 77.30)
PRINTED = [
    ("single-task", SINGLE_TASK, 0.00),
    ("multi-task", (53.72, 0.5239, 19.97, 76.50), -1.87),
    ("1*STM", (54.61, 0.5059, 19.00, 77.40), 0.95),
    ("2*STM", (54.66, 0.4984, 18.81, 78.20), 1.84),
    ("3*STM", (54.75, 0.5054, 18.81, 78.20), 1.55),
    ("MTMamba", (55.82, 0.5066, 18.63, 78.70), 2.38),
    ("MFE to W-MSA", (54.57, 0.5109, 19.95, 76.60), -0.79),
    ("gates to W-MSA", (55.01, 0.4990, 18.73, 78.20), 2.08),
    ("g = 0", (55.37, 0.5087, 18.76, 78.30), 1.77),
    ("g = 1", (54.50, 0.4981, 18.83, 78.20), 1.76),
]
TABLE_ORDER = ("semseg", "depth", "normals", "edge")


@pytest.mark.parametrize(("row", "scores", "printed"), PRINTED, ids=[row[0] for row in PRINTED])
def test_delta_m_is_that_of_the_paper(row, scores, printed):
    ours = delta_m(
        tasks.NYUDV2,
        dict(zip(TABLE_ORDER, scores, strict=True)),
        dict(zip(TABLE_ORDER, SINGLE_TASK, strict=True)),
    )
    # The paper truncates to two digits, as in its cost columns: 1.8488 is printed as 1.84.
    assert math.trunc(100 * ours) / 100 == printed, (row, ours)


def test_delta_m_rejects_missing_and_impossible_baselines_by_name():
    chosen = (tasks.DEPTH, tasks.NORMALS)
    good = {"depth": 0.5, "normals": 19.0}
    with pytest.raises(ValueError, match=r"baseline \(mErr\) for task 'normals'.*for: depth"):
        delta_m(chosen, good, {"depth": 0.5})
    with pytest.raises(ValueError, match=r"score \(RMSE\) for task 'depth'"):
        delta_m(chosen, {"normals": 19.0}, good)
    for bad in (0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"'depth' \(RMSE\) is"):
            delta_m(chosen, good, {**good, "depth": bad})
    with pytest.raises(ValueError, match="at least one task"):
        delta_m((), good, good)


def test_headline_is_the_main_score_of_each_task():
    scores = {"depth": {"RMSE": 0.5, "abs_rel": 0.1}, "normals": {"mErr": 19.0}}
    assert headline((tasks.DEPTH, tasks.NORMALS), scores) == {"depth": 0.5, "normals": 19.0}
