"""Exact labels of what the camera sees; one function for each task."""

from __future__ import annotations

import numpy as np

from mtmamba_jax.data_pipelines.synthetic.geometry import Camera, Hits

# kind of thing -> its NYUDv2 and its VOC class. VOC has no name for the room itself, nor for beds.
KINDS = {
    "wall": ("wall", "background"),
    "floor": ("floor", "background"),
    "ceiling": ("ceiling", "background"),
    "chair": ("chair", "chair"),
    "sofa": ("sofa", "sofa"),
    "dining table": ("table", "dining table"),
    "coffee table": ("table", "background"),
    "desk": ("desk", "background"),
    "bed": ("bed", "background"),
    "cabinet": ("cabinet", "background"),
    "dresser": ("dresser", "background"),
    "night stand": ("night stand", "background"),
    "refrigerator": ("refrigerator", "background"),
    "counter": ("counter", "background"),
    "bookshelf": ("bookshelf", "background"),
    "shelves": ("shelves", "background"),
    "books": ("books", "background"),
    "lamp": ("lamp", "background"),
    "pillow": ("pillow", "background"),
    "box": ("box", "background"),
    "bottle": ("other prop", "bottle"),
    "potted plant": ("other prop", "potted plant"),
    "television": ("television", "tv monitor"),
    "cat": ("other prop", "cat"),
    "dog": ("other prop", "dog"),
    "floor mat": ("floor mat", "background"),
    "picture": ("picture", "background"),
    "whiteboard": ("whiteboard", "background"),
    "door": ("door", "background"),
    "window": ("window", "background"),
    "curtain": ("curtain", "background"),
    "blinds": ("blinds", "background"),
    "person": ("person", "person"),
}

FLAT = ("wall", "floor", "ceiling", "floor mat", "picture", "whiteboard", "door", "window",
        "curtain", "blinds")  # fmt: skip
"""Kinds that belong to the room and are never salient."""


def semantics(kinds: list[str], objects: np.ndarray, class_names: tuple[str, ...]) -> np.ndarray:
    """Class ids int32 [h w 1] from the object map [h w], in NYUDv2's or VOC's classes."""
    column = 0 if "wall" in class_names else 1
    ids = np.array([class_names.index(KINDS[kind][column]) for kind in kinds], np.int32)
    return ids[objects][..., None]


def boundaries(objects: np.ndarray) -> np.ndarray:
    """Edges int32 [h w 1]: 1 where the object differs from that of the pixel to the right or below.

    One pixel wide. Each wall, the floor and the ceiling are objects; a thing's own parts are not.
    """
    edge = np.zeros(objects.shape, np.int32)
    edge[:, :-1] |= objects[:, :-1] != objects[:, 1:]
    edge[:-1] |= objects[:-1] != objects[1:]
    return edge[..., None]


def human_parts(parts: np.ndarray, ignore: int) -> np.ndarray:
    """Part ids int32 [h w 1]; an image without people is all `ignore`, as in the published data."""
    if not parts.any():
        parts = np.full_like(parts, ignore)
    return parts[..., None]


def saliency(kinds: list[str], objects: np.ndarray) -> np.ndarray:
    """1 on salient pixels, int32 [h w 1].

    Salient are all people and the most prominent other thing: the one with the largest sum over
    its pixels of a Gaussian weight around the image's middle (deviation: a quarter of each side).
    The room and what is fixed to it (`FLAT`) never are.
    """
    height, width = objects.shape
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    weight = np.exp(-8 * (y[:, None] ** 2 + x**2))
    prominence = np.bincount(objects.ravel(), weight.ravel(), minlength=len(kinds))
    people = np.array([kind == "person" for kind in kinds])
    prominence[people | np.array([kind in FLAT for kind in kinds])] = 0
    salient = people.copy()
    if prominence.max() > 0:
        salient[np.argmax(prominence)] = True
    return salient[objects].astype(np.int32)[..., None]


def camera_normals(hits: Hits, camera: Camera) -> np.ndarray:
    """Unit normals float32 [h w 3] in the camera's frame: x right, y up, z towards the viewer."""
    normals = hits.normals @ camera.axes.T.astype(np.float32)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)
