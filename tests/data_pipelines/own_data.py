"""A folder of one's own data, written for the tests from synthetic scenes."""

import numpy as np
from PIL import Image

from mtmamba_jax.data_pipelines.synthetic.source import SyntheticScenes
from mtmamba_jax.tasks import table as tasks

CLASSES = ("background", "person", "chair")
TASKS = tasks.select("custom", classes=CLASSES)
SIZE = (32, 64)
NAMES = [f"a/room{i}" if i % 2 else f"room.{i}" for i in range(8)]  # 0 to 5 train, 6 and 7 val
UNLABELLED = {("depth", 1), ("semseg", 2), ("human_parts", 2), ("normals", 0), ("edge", 7)}


def scenes():
    made = (tasks.SEMSEG_VOC, *TASKS[1:])
    return SyntheticScenes(made, size=SIZE, split="train", num_examples=len(NAMES))


def as_written(index):
    """Returns an example as it is written: our classes, 20 columns without labels."""
    example = scenes()[index]
    semseg, own = example["semseg"], np.zeros_like(example["semseg"])
    for number, name in enumerate(CLASSES):
        own[semseg == tasks.VOC_CLASSES.index(name)] = number
    own[0, 0] = 2  # in every image
    example["semseg"] = own
    for task in TASKS:
        example[task.name][:, 44:] = task.ignore
    return example


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)


def save_label(root, name, index, task, label):
    ignored = (label == task.ignore).all(-1)
    path = root / task.name / name
    if task.name == "depth":
        metres = np.where(ignored, 0, label[..., 0])
        if index % 2:
            save(path.parent / f"{path.name}.npy", metres)
        else:
            save(path.parent / f"{path.name}.png", np.rint(1000 * metres).astype(np.uint16))
    elif task.name == "normals":
        levels = np.rint((label + 1) / 2 * 255)
        levels = np.where(ignored[..., None], 0 if index % 2 else 127, levels)
        save(path.parent / f"{path.name}.png", levels.astype(np.uint8))
    else:
        save(path.parent / f"{path.name}.png", label[..., 0].astype(np.uint8))


def write_folder(root):
    for index, name in enumerate(NAMES):
        example = as_written(index)
        suffix = (".png", ".PNG")[index % 2]
        save(root / "images" / f"{name}{suffix}", example["image"])
        for task in TASKS:
            if (task.name, index) not in UNLABELLED:
                save_label(root, name, index, task, example[task.name])
    (root / "images" / ".DS_Store").write_bytes(b"")
    (root / "train.txt").write_text("\n".join(NAMES[:6]))
    (root / "val.txt").write_text("\n".join(NAMES[6:]) + "\n\n")
