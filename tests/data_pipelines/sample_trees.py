"""Writes small random datasets with the file structure of the published ones.

File formats, value ranges and the entropy of photos and labels match the published files. The
images show random regions with texture and noise.
"""

import json
import pathlib
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
import scipy.io

from mtmamba_jax.data_pipelines.builders.pascal_context.classes import HUMAN_PART_GROUPS
from mtmamba_jax.data_pipelines.synthetic.labels import boundaries
from mtmamba_jax.tasks.table import IGNORE, NYUDV2_CLASSES, VOC_CLASSES

Names = dict[str, tuple[str, ...]]
"""IDs of the examples of each split, in order."""

_PERSON = VOC_CLASSES.index("person")
_PARTS = tuple(part for parts in HUMAN_PART_GROUPS.values() for part in parts)
_CONTEXT_CLASSES = 459
_LABEL_IDS = 34
# zlib's default level, as in the published files.
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 6)


def write_nyudv2(
    folder: pathlib.Path,
    splits: Mapping[str, int],
    size: tuple[int, int] = (425, 560),
    seed: int = 0,
) -> Names:
    """Writes NYUDv2 as described in `builders/nyudv2/files.py`.

    Args:
      folder: Folder to write to, created if needed.
      splits: Number of examples of "train" and "val".
      size: Height and width of the images.
      seed: Seed of the random generator.
    """
    names = _number(splits, "{:04d}")
    for split, index, name in _each(names):
        rng = _generator(seed, split, index)
        regions = _regions(rng, size, 30)
        classes = rng.integers(0, len(NYUDV2_CLASSES) + 1, regions.max() + 1)
        depth = np.clip(_planes(rng, regions, 3.0, 1.0), 0.7, 10)
        depth[_smooth(rng, size, 8) > 2] = 0  # not measured
        _write_image(folder / "images" / f"{name}.png", _photo(rng, regions, noise=3.0))
        _write_image(folder / "segmentation" / f"{name}.png", classes[regions].astype(np.uint8))
        _write_image(folder / "edge" / f"{name}.png", _borders(regions) * np.uint8(255))
        _write_image(folder / "normals" / f"{name}.png", _normals(rng, regions))
        np.save(_with_folder(folder / "depth" / f"{name}.npy"), depth)
    for split, split_names in names.items():
        _write_list(folder / "gt_sets" / f"{split}.txt", split_names)
    return names


def write_pascal_context(
    folder: pathlib.Path,
    splits: Mapping[str, int],
    size: tuple[int, int] = (500, 500),
    seed: int = 0,
) -> Names:
    """Writes PASCAL-Context as described in `builders/pascal_context/files.py`.

    Photos alternate between the published shapes, landscape or portrait, 4:3 or 3:2, and every
    other one shows people. Arguments are those of `write_nyudv2`, except that `size` is the largest
    height and width.
    """
    names = _number(splits, "2008_{:06d}")
    objects = {split: {} for split in names}
    for split, index, name in _each(names):
        rng = _generator(seed, split, index)
        shape = ((3 / 4, 1), (1, 3 / 4), (2 / 3, 1), (3 / 4, 1))[index % 4]
        pixels = tuple(round(side * share) for side, share in zip(size, shape, strict=True))
        regions = _regions(rng, pixels, 12)
        count = regions.max() + 1
        semseg = rng.integers(0, len(VOC_CLASSES), count)[regions]
        semseg[_borders(regions)] = IGNORE
        context = rng.integers(1, _CONTEXT_CLASSES + 1, count)[regions]
        kind = ("VOC12", "pascal-context")[index % 2]
        photo = _photo(rng, regions, noise=4.0)
        saliency = np.clip(127.5 + 80 * _smooth(rng, pixels, 6), 0, 255)
        _write_image(folder / "JPEGImages" / f"{name}.jpg", photo)
        _write_image(folder / "semseg" / kind / f"{name}.png", semseg.astype(np.uint8))
        _write_image(folder / "normals_distill" / f"{name}.png", _normals(rng, regions))
        _write_image(folder / "sal_distill" / f"{name}.png", saliency.astype(np.uint8))
        _write_mat(
            folder / "pascal-context" / "trainval" / f"{name}.mat",
            {"LabelMap": context.astype(np.uint16)},
        )
        classes = [_PERSON] * int(rng.integers(1, 4)) if index % 2 == 0 else []
        classes.append(VOC_CLASSES.index("dog"))
        objects[split][name] = classes
        _write_mat(
            folder / "human_parts" / f"{name}.mat",
            {"anno": _annotation(rng, name, pixels, classes)},
        )
    for split, split_names in names.items():
        _write_list(folder / "ImageSets" / "Context" / f"{split}.txt", split_names)
        parts = _with_folder(folder / "ImageSets" / "Parts" / f"{split}.txt")
        parts.write_text(json.dumps(objects[split], indent=1) + "\n")
    return names


def write_cityscapes(
    folder: pathlib.Path,
    splits: Mapping[str, int],
    size: tuple[int, int] = (1024, 2048),
    seed: int = 0,
) -> Names:
    """Writes Cityscapes as described in `builders/cityscapes/files.py`; see `write_nyudv2`."""
    cities = {"train": ("aachen", "bochum"), "val": ("frankfurt", "lindau")}
    names = {
        split: tuple(
            sorted(
                f"{cities[split][i % 2]}/{cities[split][i % 2]}_{i:06d}_000019" for i in range(n)
            )
        )
        for split, n in splits.items()
    }
    for split, index, name in _each(names):
        rng = _generator(seed, split, index)
        regions = _regions(rng, size, 100)
        ids = rng.permutation(np.arange(regions.max() + 1) % _LABEL_IDS)
        place = f"{split}/{name}"
        image = folder / "leftImg8bit" / f"{place}_leftImg8bit.png"
        labels = folder / "gtFine" / f"{place}_gtFine_labelIds.png"
        _write_image(image, _photo(rng, regions, noise=1.5))
        _write_image(labels, ids[regions].astype(np.uint8))
        _write_image(folder / "disparity" / f"{place}_disparity.png", _disparity(rng, size))
    return names


WRITERS: dict[str, Callable[..., Names]] = {
    "nyudv2": write_nyudv2,
    "pascal_context": write_pascal_context,
    "cityscapes": write_cityscapes,
}
"""Functions by the name of the dataset."""


def _number(splits: Mapping[str, int], pattern: str) -> Names:
    """Returns names that are numbered consecutively across the splits."""
    names, start = {}, 1
    for split, count in splits.items():
        names[split] = tuple(pattern.format(start + i) for i in range(count))
        start += count
    return names


def _each(names: Names):
    """Yields (split, index, name) of each example."""
    for split, split_names in names.items():
        for index, name in enumerate(split_names):
            yield split, index, name


def _generator(seed: int, split: str, index: int) -> np.random.Generator:
    return np.random.default_rng([seed, ("train", "val").index(split), index])


def _smooth(rng: np.random.Generator, size: tuple[int, int], cells: int) -> np.ndarray:
    """Returns smooth noise with standard deviation about 1, `cells` bumps across: float32 [h w]."""
    coarse = rng.normal(size=(cells + 1, cells + 1)).astype(np.float32)
    return cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)


def _regions(rng: np.random.Generator, size: tuple[int, int], count: int) -> np.ndarray:
    """Returns the index of each pixel's region, at most `count` with curved borders: int [h w]."""
    height, width = size
    sites = np.full(size, 255, np.uint8)
    sites.reshape(-1)[rng.choice(height * width, min(count, height * width // 4), False)] = 0
    _, nearest = cv2.distanceTransformWithLabels(
        sites, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    y, x = np.mgrid[:height, :width].astype(np.float32)
    for cells in (8, 32):
        x += _smooth(rng, size, cells) * width / (4 * cells)
        y += _smooth(rng, size, cells) * height / (4 * cells)
    bent = cv2.remap(
        nearest.astype(np.uint16), x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT
    )
    return np.unique(bent, return_inverse=True)[1].reshape(size)


def _borders(regions: np.ndarray) -> np.ndarray:
    return boundaries(regions)[..., 0].astype(bool)


def _photo(rng: np.random.Generator, regions: np.ndarray, noise: float) -> np.ndarray:
    """Returns an RGB image of the regions with texture and sensor noise (standard deviation)."""
    size = regions.shape
    colours = rng.uniform(30, 220, (regions.max() + 1, 3)).astype(np.float32)
    texture = sum(_smooth(rng, size, cells) * 40 / cells**0.5 for cells in (4, 16, 64, 128))
    photo = colours[regions] + texture[..., None]
    photo += rng.standard_normal(photo.shape, np.float32) * np.float32(noise)
    return np.clip(np.rint(photo), 0, 255).astype(np.uint8)


def _planes(
    rng: np.random.Generator, regions: np.ndarray, mean: float, deviation: float
) -> np.ndarray:
    """Returns a map in which each region is a plane with its own slope: float32 [h w]."""
    height, width = regions.shape
    terms = rng.normal(size=(3, regions.max() + 1)).astype(np.float32) * deviation
    y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    return (
        np.float32(mean) + terms[0][regions] + (terms[1][regions] * x + terms[2][regions] * y) / 2
    )


def _normals(rng: np.random.Generator, regions: np.ndarray) -> np.ndarray:
    """Returns an RGB image of unit normals, one per region with smooth variation."""
    size = regions.shape
    vectors = rng.normal(size=(regions.max() + 1, 3)).astype(np.float32)
    vectors[:, 2] = np.abs(vectors[:, 2]) + 0.3  # towards the camera
    vectors /= np.linalg.norm(vectors, axis=-1, keepdims=True)
    bent = vectors[regions] + 0.2 * np.stack([_smooth(rng, size, 12) for _ in range(3)], -1)
    bent /= np.maximum(np.linalg.norm(bent, axis=-1, keepdims=True), 1e-6)
    return np.rint((bent + 1) * 127.5).astype(np.uint8)


def _disparity(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Returns a street's disparity d as the files store it: 256 d + 1, or 0."""
    surfaces = _planes(rng, _regions(rng, size, 40), 0.0, 6.0)
    road = np.linspace(-20, 90, size[0], dtype=np.float32)[
        :, None
    ]  # the nearest part is too large to be scored
    pixels = np.maximum(road + surfaces + _smooth(rng, size, 64) / 2, 0)
    values = np.rint(pixels * 16) * 16 + 1  # in steps of 1/16 pixel
    values[_smooth(rng, size, 20) > 1.2] = 0  # not measured
    return values.astype(np.uint16)


def _annotation(
    rng: np.random.Generator, name: str, size: tuple[int, int], classes: Sequence[int]
) -> dict:
    """Returns PASCAL-Part's struct `anno` for an image with objects of these classes."""
    objects = np.zeros(
        (1, len(classes)),
        [(field, object) for field in ("class", "class_ind", "mask", "parts")],
    )
    for index, kind in enumerate(classes):
        centre = rng.uniform(0.3, 0.7, 2) * size
        names = ("head",) if kind != _PERSON else _PARTS
        parts = np.zeros((1, len(names)), [("part_name", object), ("mask", object)])
        for i, part in enumerate(names):
            place = centre + rng.uniform(-0.2, 0.2, 2) * size
            parts[0, i] = (part, _ellipse(size, place, rng.uniform(0.02, 0.12, 2) * size))
        mask = _ellipse(size, centre, 0.3 * np.array(size))
        objects[0, index] = (VOC_CLASSES[kind], float(kind), mask, parts)
    return {"imname": name, "objects": objects}


def _ellipse(size: tuple[int, int], centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    mask = np.zeros(size, np.uint8)
    (y, x), (ry, rx) = centre.astype(int).tolist(), np.maximum(radii, 1).astype(int).tolist()
    return cv2.ellipse(mask, (x, y), (rx, ry), 0, 0, 360, 1, -1)


def _with_folder(path: pathlib.Path) -> pathlib.Path:
    """Returns the path after creating its parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_image(path: pathlib.Path, image: np.ndarray) -> None:
    if image.ndim == 3:
        image = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    written = cv2.imencode(path.suffix, image, _PNG if path.suffix == ".png" else ())[1]
    _with_folder(path).write_bytes(written.tobytes())


def _write_mat(path: pathlib.Path, variables: Mapping[str, object]) -> None:
    scipy.io.savemat(_with_folder(path), variables, do_compression=True)


def _write_list(path: pathlib.Path, names: Sequence[str]) -> None:
    _with_folder(path).write_text("".join(f"{name}\n" for name in names))
