"""The paper's Tables 2 to 6 as printed (Lin et al., ECCV 2024, section 4.3), all on NYUDv2."""

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the paper's tables.

    Attributes:
      name: Name of the row in this project.
      title: Title as printed.
      tables: Numbers of the tables that contain the row.
      model: Key of `models.mtmamba.MODELS`.
      variants: Variants of `configs/ablations.py` to train: one, or one per task for the row of
        single-task models.
      encoder: Key of `models.swin.SWIN_SIZES`.
      scores: Score of each task: mIoU in percent, RMSE in metres, mErr in degrees, odsF in percent.
      gain: delta_m over the first row in percent, if printed.
      parameters: Number of parameters in millions, if printed.
      flops: Multiply-adds in 10^9, if printed.
    """

    name: str
    title: str
    tables: tuple[int, ...]
    model: str
    variants: tuple[str, ...]
    encoder: str
    scores: Mapping[str, float]
    gain: float | None = None
    parameters: float | None = None
    flops: float | None = None

    @property
    def single_task(self) -> bool:
        """Whether each task has its own model."""
        return len(self.variants) > 1


DATASET = "nyudv2"
"""Dataset of all rows."""
SCORES = {"semseg": "mIoU", "depth": "RMSE", "normals": "mErr", "edge": "odsF"}
"""The score that the paper reports for each task."""


def _row(
    name, title, tables, model, scores, gain=None, costs=(), *, encoder="swin_large", variants=()
) -> Row:
    by_task = dict(zip(SCORES, scores, strict=True))
    return Row(name, title, tables, model, variants or (name,), encoder, by_task, gain, *costs)


SINGLE_TASK = tuple(f"single_task_{task}" for task in SCORES)
ROWS = (
    _row("single_task", "Single-task 2*Swin", (2,), "swin_decoder",
         (54.32, 0.5166, 19.21, 77.30), 0.00, (888.77, 1074.79), variants=SINGLE_TASK),
    _row("multi_task", "Multi-task 2*Swin", (2,), "swin_decoder",
         (53.72, 0.5239, 19.97, 76.50), -1.87, (303.18, 466.35)),
    _row("stm_1", "1*STM", (2,), "stm_1",
         (54.61, 0.5059, 19.00, 77.40), 0.95, (252.51, 354.13)),
    _row("stm_2", "2*STM", (2,), "stm_2",
         (54.66, 0.4984, 18.81, 78.20), 1.84, (276.48, 435.47)),
    _row("stm_3", "3*STM", (2,), "stm_3",
         (54.75, 0.5054, 18.81, 78.20), 1.55, (300.45, 516.82)),
    _row("mtmamba", "2*STM+1*CTM", (2, 3, 4, 5, 6), "mtmamba",
         (55.82, 0.5066, 18.63, 78.70), 2.38, (307.99, 540.81)),
    _row("attention_mfe", "MFE -> W-MSA", (3,), "attention_mfe",
         (54.57, 0.5109, 19.95, 76.60), -0.79, (451.81, 884.61)),
    _row("attention_gate", "Linear -> W-MSA", (4,), "attention_gate",
         (55.01, 0.4990, 18.73, 78.20), 2.08, (345.33, 659.29)),
    _row("gate_0", "g = 0", (5,), "gate_0", (55.37, 0.5087, 18.76, 78.30), 1.77),
    _row("gate_1", "g = 1", (5,), "gate_1", (54.50, 0.4981, 18.83, 78.20), 1.76),
    _row("swin_tiny", "Swin-Tiny", (6,), "mtmamba",
         (49.25, 0.5299, 19.74, 76.90), encoder="swin_tiny"),
    _row("swin_small", "Swin-Small", (6,), "mtmamba",
         (51.93, 0.5246, 19.45, 77.80), encoder="swin_small"),
    _row("swin_base", "Swin-Base", (6,), "mtmamba",
         (53.62, 0.5126, 19.28, 77.70), encoder="swin_base"),
)  # fmt: skip
"""Rows in the paper's order."""
