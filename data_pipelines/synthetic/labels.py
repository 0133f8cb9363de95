"""Computes exact labels from what the camera sees, one function per task."""

import numpy as np
from jaxtyping import Float32, Int, Int32

from mtmamba_jax.data_pipelines.synthetic.geometry import Camera, Hits

FIXTURES = ("wall", "floor", "ceiling", "floor mat", "picture", "whiteboard", "door", "window",
        "curtain", "blinds")  # fmt: skip
"""Kinds that belong to the room and are never salient."""

_FURNISHINGS = ("desk", "bed", "cabinet", "dresser", "night stand", "refrigerator", "counter",
        "bookshelf", "shelves", "books", "lamp", "pillow", "box")  # fmt: skip

KINDS = {
    **{kind: (kind, "background") for kind in (*FIXTURES, *_FURNISHINGS)},
    **{kind: (kind, kind) for kind in ("chair", "sofa", "person")},
    **{kind: ("other prop", kind) for kind in ("bottle", "potted plant", "cat", "dog")},
    "dining table": ("table", "dining table"),
    "coffee table": ("table", "background"),
    "television": ("television", "tv monitor"),
}
"""The NYUDv2 class and the VOC class of each kind of object."""


def semantic_classes(
    kinds: list[str], objects: Int[np.ndarray, "h w"], class_names: tuple[str, ...]
) -> Int32[np.ndarray, "h w 1"]:
    """Returns class IDs, given the kind of each object and the object number of each pixel.

    The classes are `tasks.table.NYUDV2_CLASSES` or `tasks.table.VOC_CLASSES`.
    """
    column = 0 if "wall" in class_names else 1
    ids = np.array([class_names.index(KINDS[kind][column]) for kind in kinds], np.int32)
    return ids[objects][..., None]


def boundaries(objects: Int[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w 1"]:
    """Returns 1 where the pixel to the right or below shows another object, else 0.

    The edges are one pixel wide. Each wall, the floor and the ceiling are separate objects; the
    parts of an object are not.
    """
    edge = np.zeros(objects.shape, np.int32)
    edge[:, :-1] |= objects[:, :-1] != objects[:, 1:]
    edge[:-1] |= objects[:-1] != objects[1:]
    return edge[..., None]


def human_parts(parts: Int32[np.ndarray, "h w"], ignore: int) -> Int32[np.ndarray, "h w 1"]:
    """Returns part IDs; all of an image without people is `ignore`, as in the published data."""
    if not parts.any():
        parts = np.full_like(parts, ignore)
    return parts[..., None]


def saliency(kinds: list[str], objects: Int[np.ndarray, "h w"]) -> Int32[np.ndarray, "h w 1"]:
    """Returns 1 on salient pixels, else 0.

    All people and the most prominent other object are salient: the object whose pixels have the
    largest sum of a Gaussian weight around the image centre (standard deviation: a quarter of each
    side). The room and its fixtures (`FIXTURES`) never are.
    """
    height, width = objects.shape
    y = (np.arange(height) + 0.5) / height - 0.5
    x = (np.arange(width) + 0.5) / width - 0.5
    weight = np.exp(-8 * (y[:, None] ** 2 + x**2))
    prominence = np.bincount(objects.ravel(), weight.ravel(), minlength=len(kinds))
    people = np.array([kind == "person" for kind in kinds])
    prominence[people | np.array([kind in FIXTURES for kind in kinds])] = 0
    salient = people.copy()
    if prominence.max() > 0:
        salient[np.argmax(prominence)] = True
    return salient[objects].astype(np.int32)[..., None]


def camera_normals(hits: Hits, camera: Camera) -> Float32[np.ndarray, "h w 3"]:
    """Returns unit normals in the camera's frame: x right, y up, z towards the viewer."""
    normals = hits.normals @ camera.axes.T.astype(np.float32)
    return normals / np.linalg.norm(normals, axis=-1, keepdims=True)
