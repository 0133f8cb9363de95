"""A data source of procedural scenes: furnished rooms with people, and exact labels for each task.

It needs no files, and example i is the same on every machine.
"""

from collections.abc import Sequence

import numpy as np

from mtmamba_jax.data_pipelines.synthetic import arrangement, labels, shading
from mtmamba_jax.data_pipelines.synthetic.geometry import cast
from mtmamba_jax.messages import check_name, nearest
from mtmamba_jax.tasks.table import DEPTH, SEMSEG_NYUDV2, SEMSEG_VOC, Task

SPLITS = ("train", "test")
_NAMES = ("semseg", "depth", "normals", "edge", "human_parts", "saliency")


class SyntheticScenes:
    """A random-access source (for Grain) of raw examples, as described in `batch.py`.

    Labels are exact at the pixel centres. Depth is in metres along the camera's axis. The only
    ignored pixels are those of `human_parts` in an image without people.

    The semantic classes are those of the given semseg task: NYUDv2's 40 or VOC's 21. PASCAL's tasks
    (VOC semseg, human_parts, saliency) get close views of people, other tasks whole rooms.

    Args:
      tasks: Tasks to label.
      size: Height and width in pixels.
      split: "train" or "test". No scene is in both.
      num_examples: Length of the source. The examples do not depend on it.

    Raises:
      ValueError: If a task has no synthetic label, the split is unknown, or the size or length is
        less than 1.
    """

    def __init__(self, tasks: Sequence[Task], size: Sequence[int], split: str, num_examples: int):
        for task in tasks:
            _check_task(task)
        check_name("split", split, SPLITS)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"Synthetic scenes need a size (height, width) of 1 or more, got {size}."
            )
        if num_examples < 1:
            raise ValueError(
                f"Synthetic scenes need num_examples of 1 or more, got {num_examples}."
            )
        self.tasks, self.size = tuple(tasks), (int(size[0]), int(size[1]))
        self.split, self.num_examples = split, num_examples
        people = SEMSEG_NYUDV2 not in tasks and any(
            task == SEMSEG_VOC or task.name in ("human_parts", "saliency") for task in tasks
        )
        self._view = arrangement.people_view if people else arrangement.room_view

    def __len__(self) -> int:
        return self.num_examples

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"Index {index} is out of range for {self.num_examples} scenes.")
        # Every (split, index) seeds its own generator, so the splits share no scene.
        rng = np.random.default_rng([0, SPLITS.index(self.split), int(index)])
        setting = self._view(rng, self.size)
        camera, kinds, primitives = setting.camera, setting.scene.kinds, setting.scene.primitives()
        hits = cast(primitives, camera)
        objects = primitives.object[hits.primitive]
        image = shading.photograph(hits, primitives, camera, setting.lamp, rng)
        example: dict[str, np.ndarray | str] = {"image": image, "id": f"{self.split}/{index:06d}"}
        for task in self.tasks:
            match task.name:
                case "semseg":
                    label = labels.semantic_classes(kinds, objects, task.class_names)
                case "depth":
                    label = hits.depth[..., None]
                case "normals":
                    label = labels.camera_normals(hits, camera)
                case "edge":
                    label = labels.boundaries(objects)
                case "human_parts":
                    label = labels.human_parts(primitives.part[hits.primitive], task.ignore)
                case "saliency":
                    label = labels.saliency(kinds, objects)
            example[task.name] = label
        return example


def _check_task(task: Task) -> None:
    if task.name not in _NAMES:
        raise ValueError(
            f"Synthetic scenes have no label for task {task.name!r}."
            f"{nearest(task.name, _NAMES)} Valid: {', '.join(_NAMES)}."
        )
    if task.name == "semseg" and task not in (SEMSEG_NYUDV2, SEMSEG_VOC):
        raise ValueError(
            f"Synthetic scenes have no label for task 'semseg' with {task.channels} classes "
            f"({', '.join(task.class_names[:3])}, ...). Valid: NYUDv2's 40 classes, VOC's 21."
        )
    if task.name == "depth" and task.unit != DEPTH.unit:
        raise ValueError(f"Synthetic scenes have depth in metres, not in {task.unit}.")
