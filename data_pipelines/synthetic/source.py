"""Synthetic scenes: ray-cast furnished rooms with people in them, and exact labels for every task.

The embedded default data set: it needs no file, and example i is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mtmamba_jax import tasks as tasks_lib
from mtmamba_jax.data_pipelines.synthetic import arrangement, labels, shading
from mtmamba_jax.data_pipelines.synthetic.geometry import cast
from mtmamba_jax.messages import check_name, nearest

SPLITS = ("train", "test")
_SEMANTICS = (tasks_lib.SEMSEG_NYUDV2, tasks_lib.SEMSEG_VOC)
_NAMES = ("semseg", "depth", "normals", "edge", "human_parts", "saliency")


class SyntheticScenes:
    """A random-access source (for grain) of raw examples; see `batch` for the labels' values.

    An example is a dict: `image` uint8 [h w 3] RGB, a label for each task, `id` ("train/000012").
    `semseg`, `edge`, `human_parts`, `saliency`: int32 [h w 1]; `depth`: float32 [h w 1], metres
    along the camera's axis; `normals`: float32 [h w 3], unit, x right, y up, z to the viewer.
    Labels are the pixels' centres'; only `human_parts` without people holds the ignore value.

    The semantic classes are those of the semseg task given (NYUDv2's 40 or VOC's 21). PASCAL's
    tasks (VOC semseg, human_parts, saliency) show people from close by, the others whole rooms.

    Args:
      tasks: rows of the task table, for instance `tasks.NYUDV2`.
      size: height and width in pixels.
      split: "train" or "test"; no scene is in both.
      num_examples: length of the source. Examples do not depend on it.
      seed: another seed is another set of scenes.

    Raises:
      ValueError: a task without a synthetic label, an unknown split, a size or length below 1.
    """

    def __init__(
        self,
        tasks: Sequence[tasks_lib.Task],
        size: tuple[int, int],
        split: str,
        num_examples: int,
        seed: int = 0,
    ):
        for task in tasks:
            _check_task(task)
        check_name("split", split, SPLITS)
        if len(size) != 2 or min(size) < 1:
            raise ValueError(
                f"Synthetic scenes need a size (height, width) of 1 or more, got {size}."
            )
        if num_examples < 1 or seed < 0:
            raise ValueError(
                "Synthetic scenes need num_examples of 1 or more and a seed of 0 or more, "
                f"got {num_examples} and {seed}."
            )
        self.tasks, self.size = tuple(tasks), (int(size[0]), int(size[1]))
        self.split, self.num_examples, self.seed = split, num_examples, seed
        close_by = (
            any(
                task == tasks_lib.SEMSEG_VOC or task.name in ("human_parts", "saliency")
                for task in tasks
            )
            and tasks_lib.SEMSEG_NYUDV2 not in tasks
        )
        self._view = arrangement.people_view if close_by else arrangement.room_view

    def __len__(self) -> int:
        return self.num_examples

    def __repr__(self) -> str:
        names = "+".join(task.name for task in self.tasks)
        return (
            f"SyntheticScenes({names}, size={self.size}, split={self.split!r}, "
            f"num_examples={self.num_examples}, seed={self.seed})"
        )

    def __getitem__(self, index: int) -> dict[str, np.ndarray | str]:
        if not 0 <= index < self.num_examples:
            raise IndexError(f"Index {index} is out of range for {self.num_examples} scenes.")
        # Each (seed, split, index) seeds a generator of its own, so the splits share no scene.
        rng = np.random.default_rng([self.seed, SPLITS.index(self.split), int(index)])
        setting = self._view(rng, self.size)
        scene, camera = setting.scene, setting.camera
        primitives = scene.primitives()
        hits = cast(primitives, camera)
        objects = scene.objects()[hits.primitive]
        image = shading.photograph(hits, primitives, scene.materials(), camera, setting.lamp, rng)
        example: dict[str, np.ndarray | str] = {"image": image, "id": f"{self.split}/{index:06d}"}
        for task in self.tasks:
            match task.name:
                case "semseg":
                    label = labels.semantics(scene.kinds, objects, task.class_names)
                case "depth":
                    label = hits.depth[..., None]
                case "normals":
                    label = labels.camera_normals(hits, camera)
                case "edge":
                    label = labels.boundaries(objects)
                case "human_parts":
                    label = labels.human_parts(scene.parts()[hits.primitive], task.ignore)
                case "saliency":
                    label = labels.saliency(scene.kinds, objects)
            example[task.name] = label
        return example


def _check_task(task: tasks_lib.Task) -> None:
    if task.name not in _NAMES:
        raise ValueError(
            f"Synthetic scenes have no label for task {task.name!r}."
            f"{nearest(task.name, _NAMES)} Valid: {', '.join(_NAMES)}."
        )
    if task.name == "semseg" and task not in _SEMANTICS:
        raise ValueError(
            f"Synthetic scenes have no label for task 'semseg' with {task.channels} classes "
            f"({', '.join(task.class_names[:3])}, ...). Valid: the 40 of NYUDv2, the 21 of VOC."
        )
    if task.name == "depth" and task.unit != tasks_lib.DEPTH.unit:
        raise ValueError(f"Synthetic scenes have depth in metres, not in {task.unit}.")
