"""Defines the tasks: everything that the rest of the code knows about a task is one row here.

Losses, metrics, transforms, heads and drawings read these fields, never the name of a task. To add
a task, add a `Task` and put it in a task set.
"""

import dataclasses
from collections.abc import Sequence

from mtmamba_jax.messages import check_name

IGNORE = 255
"""Label value that losses and metrics ignore (normals: in all three channels), unless a task has
another one: `Task.ignore`."""

OFFICIAL_NAMES = {"saliency": "sal"}
"""The official code's names of tasks, in weights and folders, where they differ from ours."""

Colour = tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class Task:
    """One dense prediction task.

    Attributes:
      name: Key of the task's logits, labels and scores.
      channels: Channels of the network's output.
      loss: Key of `losses.LOSSES`.
      metric: Key of `metrics.METRICS`.
      score: Score of the metric that represents the task in delta_m and in tables.
      lower_is_better: Whether a lower score is better.
      quantity: Kind of quantity: key of `readout.VALUES`, `render.RENDERERS`, `error_maps.ERRORS`,
        `saved_predictions.FORMATS` and `model_card.MEANINGS`.
      unit: Unit of the score and, for depth, of labels and predictions; empty for percentages.
      label_channels: Channels of the label.
      label_dtype: "int32" for class IDs, "float32" for measured quantities.
      ignore: Label value that losses and metrics ignore.
      scale_power: Zooming an image by s multiplies labels by s**scale_power: -1 for distances,
        1 for disparities in pixels.
      negate_x_on_flip: Whether mirroring negates the first channel, a horizontal component.
      ignore_all_background: Whether a label with nothing but background (0) counts as not
        annotated, that is, becomes all ignored.
      limits_crops: Whether random crops are rejected when one class of its label covers most of
        them.
      class_names: Name of each class, for class tasks.
      palette: RGB colour of each class, for class tasks.
    """

    name: str
    channels: int
    loss: str
    metric: str
    score: str
    lower_is_better: bool
    quantity: str
    unit: str = ""
    label_channels: int = 1
    label_dtype: str = "int32"
    ignore: int = IGNORE
    scale_power: int = 0
    negate_x_on_flip: bool = False
    ignore_all_background: bool = False
    limits_crops: bool = False
    class_names: tuple[str, ...] = ()
    palette: tuple[Colour, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of class IDs in a label, 2 for contours; 0 for quantities."""
        return len(self.class_names) or (2 if self.label_dtype == "int32" else 0)


def _voc_palette(count: int) -> tuple[Colour, ...]:
    """Returns PASCAL VOC's colours: bits 0, 1, 2 (then 3, 4, 5, ...) fill R, G, B from the top."""

    def channel(index: int) -> int:
        return sum((index >> 3 * bit & 1) << (7 - bit) for bit in range(8))

    return tuple((channel(i), channel(i >> 1), channel(i >> 2)) for i in range(count))


# Silberman et al., ECCV 2012, in the 40 classes of Gupta et al., CVPR 2013 (their label 1 is 0).
NYUDV2_CLASSES = (
    "wall", "floor", "cabinet", "bed", "chair", "sofa", "table", "door", "window", "bookshelf",
    "picture", "counter", "blinds", "desk", "shelves", "curtain", "dresser", "pillow", "mirror",
    "floor mat", "clothes", "ceiling", "books", "refrigerator", "television", "paper", "towel",
    "shower curtain", "box", "whiteboard", "person", "night stand", "toilet", "sink", "lamp",
    "bathtub", "bag", "other structure", "other furniture", "other prop",
)  # fmt: skip
# Everingham et al., IJCV 2010.
VOC_CLASSES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair",
    "cow", "dining table", "dog", "horse", "motorbike", "person", "potted plant", "sheep", "sofa",
    "train", "tv monitor",
)  # fmt: skip
# Chen et al., CVPR 2014, grouped as multi-task work does.
HUMAN_PART_CLASSES = (
    "background", "head", "torso", "upper arms", "lower arms", "upper legs", "lower legs",
)  # fmt: skip
# Cordts et al., CVPR 2016: the 19 training classes and their published colours.
CITYSCAPES_CLASSES = (
    "road", "sidewalk", "building", "wall", "fence", "pole", "traffic light", "traffic sign",
    "vegetation", "terrain", "sky", "person", "rider", "car", "truck", "bus", "train", "motorcycle",
    "bicycle",
)  # fmt: skip
CITYSCAPES_PALETTE = (
    (128, 64, 128), (244, 35, 232), (70, 70, 70), (102, 102, 156), (190, 153, 153),
    (153, 153, 153), (250, 170, 30), (220, 220, 0), (107, 142, 35), (152, 251, 152),
    (70, 130, 180), (220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100),
    (0, 80, 100), (0, 0, 230), (119, 11, 32),
)  # fmt: skip


def _segmentation(name: str, class_names: tuple[str, ...]) -> Task:
    return Task(
        name=name, channels=len(class_names), loss="cross_entropy", metric="segmentation",
        score="mIoU", lower_is_better=False, quantity="classes", class_names=class_names,
        palette=_class_palette(class_names),
    )  # fmt: skip


def _semseg(class_names: tuple[str, ...]) -> Task:
    # Human parts and saliency do not limit crops: their background would reject nearly all.
    return dataclasses.replace(_segmentation("semseg", class_names), limits_crops=True)


def _class_palette(class_names: Sequence[str]) -> tuple[Colour, ...]:
    """Returns VOC's colours, with black, the colour of ignored pixels, for background only."""
    first = 0 if "background" in class_names[:1] else 1
    return _voc_palette(first + len(class_names))[first:]


SEMSEG_NYUDV2 = _semseg(NYUDV2_CLASSES)
SEMSEG_VOC = _semseg(VOC_CLASSES)
SEMSEG_CITYSCAPES = dataclasses.replace(_semseg(CITYSCAPES_CLASSES), palette=CITYSCAPES_PALETTE)
# Most photos show no person and were not annotated.
HUMAN_PARTS = dataclasses.replace(
    _segmentation("human_parts", HUMAN_PART_CLASSES), ignore_all_background=True
)
DEPTH = Task(
    name="depth", channels=1, loss="l1", metric="depth", score="RMSE", lower_is_better=True,
    quantity="depth", unit="m", label_dtype="float32", scale_power=-1,
)  # fmt: skip
# Cityscapes: (v - 1) / 256 pixels of the raw image, from a file's 16-bit v. 0 is no measurement.
DISPARITY = dataclasses.replace(DEPTH, unit="px", scale_power=1)
NORMALS = Task(
    name="normals", channels=3, loss="normals_l1", metric="normals", score="mErr",
    lower_is_better=True, quantity="normals", unit="deg", label_channels=3, label_dtype="float32",
    negate_x_on_flip=True,
)  # fmt: skip
EDGE = Task(
    name="edge", channels=1, loss="edge_bce", metric="edge", score="maxF", lower_is_better=False,
    quantity="probability",
)  # fmt: skip
SALIENCY = Task(
    name="saliency", channels=2, loss="balanced_cross_entropy", metric="saliency", score="maxF",
    lower_is_better=False, quantity="saliency", class_names=("background", "salient"),
    palette=((0, 0, 0), (255, 255, 255)),
)  # fmt: skip

# The official code has normals before edge. Cross-task blocks concatenate the tasks, so `convert`
# reorders the weights of its files.
NYUDV2 = (SEMSEG_NYUDV2, DEPTH, EDGE, NORMALS)
PASCAL_CONTEXT = (SEMSEG_VOC, HUMAN_PARTS, SALIENCY, EDGE, NORMALS)
CITYSCAPES = (SEMSEG_CITYSCAPES, DISPARITY)
# For custom data: all tasks; the configuration names semseg's classes. Unlike HUMAN_PARTS, a label
# with nothing but background counts here: images that were not annotated have no label.
CUSTOM = (
    _semseg(()),
    _segmentation("human_parts", HUMAN_PART_CLASSES),
    SALIENCY,
    # 255 m can be measured; no depth is negative.
    dataclasses.replace(DEPTH, ignore=-IGNORE),
    EDGE,
    NORMALS,
)
TASK_SETS = {
    "nyudv2": NYUDV2,
    "pascal_context": PASCAL_CONTEXT,
    "cityscapes": CITYSCAPES,
    "custom": CUSTOM,
}
"""Task sets by name, a key of the configuration."""


def select(
    task_set: str, names: Sequence[str] = (), classes: Sequence[str] = ()
) -> tuple[Task, ...]:
    """Returns the tasks of a set, in its order.

    Args:
      task_set: Key of `TASK_SETS`.
      names: Tasks to keep; empty for all.
      classes: Class names of semseg, instead of the set's.

    Raises:
      ValueError: If the set or a task is unknown (the message lists the valid names), if a task is
        named twice, if `classes` are invalid or given without semseg, or if semseg has no classes.
    """
    check_name("task set", task_set, TASK_SETS)
    tasks = {task.name: task for task in TASK_SETS[task_set]}
    for name in names:
        check_name("task", name, tasks)
    _check_distinct("tasks.names", names)
    chosen = {name: task for name, task in tasks.items() if not names or name in names}
    if classes:
        if "semseg" not in chosen:
            raise ValueError(
                "tasks.classes names the classes of task 'semseg', which is not selected. "
                f"Selected: {', '.join(chosen)}."
            )
        _check_classes(classes)
        chosen["semseg"] = _semseg(tuple(classes))
    for task in chosen.values():
        if not task.channels:
            raise ValueError(
                f"Task {task.name!r} of the set {task_set!r} has no classes. Name them in the "
                "order of their IDs in the labels: --config.tasks.classes=background,crack."
            )
    return tuple(chosen.values())


def _check_distinct(key: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise ValueError(f"{key} names {twice[0]!r} twice. Name each once; got {', '.join(names)}.")


def _check_classes(classes: Sequence[str]) -> None:
    wrong = [name for name in classes if not isinstance(name, str) or not name.strip()]
    if wrong:
        raise ValueError(
            f"tasks.classes must be names, such as background,crack; got {wrong[0]!r}."
        )
    _check_distinct("tasks.classes", classes)
    if not 2 <= len(classes) <= IGNORE:
        why = (
            "Pixels outside that class need one too: background,crack."
            if len(classes) == 1
            else f"{IGNORE} in a label means ignored."
        )
        raise ValueError(f"tasks.classes must have 2 to {IGNORE} names, got {len(classes)}. {why}")
