"""Valid random examples of any task set, deterministic by index."""

import dataclasses

import numpy as np
import pytest

from mtmamba_jax.tasks.table import NYUDV2, PASCAL_CONTEXT, Task

each_task_set = pytest.mark.parametrize(
    "tasks", [NYUDV2, PASCAL_CONTEXT], ids=["nyudv2", "pascal_context"]
)


def rng(seed=0):
    return np.random.default_rng(seed)


def example_of(tasks, size=(20, 28)):
    return RandomExamples(tasks, 1, size)[0]


def freeze(example):
    """Makes an example's arrays read-only, so that a transform that writes to them raises."""
    for value in example.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return example


@dataclasses.dataclass(frozen=True)
class RandomExamples:
    """Random pixels and labels, of which about a tenth is the ignore value."""

    tasks: tuple[Task, ...]
    num_examples: int
    size: tuple[int, int] = (20, 28)
    broken: int | None = None

    def __len__(self):
        return self.num_examples

    def __getitem__(self, index):
        if index == self.broken:
            raise OSError("no such file: 7.png")
        rng = np.random.default_rng(index)
        example = {"image": rng.integers(0, 256, (*self.size, 3), np.uint8), "id": f"e{index}"}
        for task in self.tasks:
            shape = (*self.size, task.label_channels)
            if task.negate_x_on_flip:
                label = rng.normal(size=shape)
                label /= np.linalg.norm(label, axis=-1, keepdims=True)
            elif task.scale_power:
                label = rng.uniform(0.5, 9, shape)
            else:
                label = rng.integers(0, task.channels if task.class_names else 2, shape)
            label[rng.random(self.size) < 0.1] = task.ignore
            example[task.name] = label.astype(task.label_dtype)
        return example
