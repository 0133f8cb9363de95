"""Every valid value of a label of one's own keeps its meaning, or is refused with the remedy."""

import cv2
import numpy as np
import pytest

from mtmamba_jax.data_pipelines.builders.encoding import decode, encode
from mtmamba_jax.data_pipelines.folder.source import Folder
from mtmamba_jax.data_pipelines.read_files import DataError
from mtmamba_jax.data_pipelines.transforms import AugmentSettings, train_transforms
from mtmamba_jax.tasks import table as tasks
from mtmamba_jax.tasks.labels import valid_pixels
from tests.data_pipelines.own_data import NAMES, SIZE, TASKS, save
from tests.data_pipelines.random_examples import rng
from tests.image_files import grey_png

DEPTH = tasks.select("custom", ["depth"])[0]


def label_of(root, task):
    return Folder(root, "train", (task,))[0][task.name][..., 0]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("colours", [(), tuple(range(24))], ids=["grey", "palette"])
def test_class_ids_in_pngs_of_few_bits_are_read_as_they_are(copy, bits, colours):
    ids = np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 4
    (copy / "human_parts" / f"{NAMES[0]}.png").write_bytes(grey_png(ids, bits, colours=colours))
    np.testing.assert_array_equal(label_of(copy, tasks.HUMAN_PARTS), ids)


def test_a_value_of_few_bits_that_is_no_class_is_named_as_written(copy):
    (copy / "edge" / f"{NAMES[0]}.png").write_bytes(grey_png(np.full(SIZE, 3), 2))
    with pytest.raises(DataError, match="holds the value 3; expected 0, 1 on boundaries"):
        label_of(copy, tasks.EDGE)


def test_a_jpeg_called_png_is_refused_as_a_label(copy):
    path = copy / "semseg" / f"{NAMES[0]}.jpg"
    save(path, np.zeros(SIZE, np.uint8))
    path.rename(path.with_suffix(".png"))
    with pytest.raises(DataError, match=r"room\.0\.png is a JPEG, which changes values\. Save it"):
        label_of(copy, TASKS[0])


def test_a_depth_of_255_metres_is_a_label(copy):
    metres = np.full(SIZE, 255.0, np.float32)
    metres[0] = 0
    (copy / "depth" / f"{NAMES[0]}.png").unlink()
    save(copy / "depth" / f"{NAMES[0]}.npy", metres)
    example = Folder(copy, "train", (DEPTH,))[0]
    measured = valid_pixels(DEPTH, example["depth"][None], np.array([True]))[0]
    np.testing.assert_array_equal(measured, metres > 0)
    np.testing.assert_array_equal(example["depth"][1:], 255)


def test_a_depth_that_zooming_makes_255_metres_stays_a_label():
    example = {
        "image": np.zeros((*SIZE, 3), np.uint8),
        "id": "room",
        "depth": np.full((*SIZE, 1), 510, np.float32),
    }
    settings = AugmentSettings(scale=(2.0, 2.0))
    zoom = train_transforms((DEPTH,), SIZE, settings)[0]
    depth = zoom(example, rng())["depth"]
    assert valid_pixels(DEPTH, depth[None], np.array([True])).all()
    np.testing.assert_array_equal(depth, 255)


def test_a_task_whose_depth_cannot_be_255_metres_refuses_it(copy):
    (copy / "depth" / f"{NAMES[0]}.png").unlink()
    save(copy / "depth" / f"{NAMES[0]}.npy", np.full(SIZE, 255.0, np.float32))
    with pytest.raises(DataError, match=r"values that are 255 in float32, .* Write 255\.001 there"):
        label_of(copy, tasks.DEPTH)


def test_records_keep_their_unmeasured_pixels_with_own_tasks():
    depth = np.array([[[255], [1]]], np.float32)
    example = {"image": np.zeros((1, 2, 3), np.uint8), "id": "room", "depth": depth}
    record = encode(example, b"", (tasks.DEPTH,), unpack_photo=True)
    stored = record | {"id": b"room", "depth": {"value": depth.tobytes(), "shape": depth.shape}}
    found = decode(stored, (DEPTH,))["depth"]
    assert found.ravel().tolist() == [DEPTH.ignore, 1]


@pytest.mark.parametrize("value", [1e39, 1e300, np.inf, 3e38, 1e10, -1e-9, 1e-60])
def test_a_depth_that_is_no_distance_in_float32_is_refused(copy, value):
    metres = np.ones(SIZE)
    metres[1, 1] = value
    save(copy / "depth" / f"{NAMES[1]}.npy", metres)
    with pytest.raises(DataError, match=r"room1\.npy has 1 values that are .*\. Write|write 0"):
        Folder(copy, "train", (DEPTH,))[1]


def test_a_depth_in_float16_is_read_without_a_warning(copy, recwarn):
    (copy / "depth" / f"{NAMES[0]}.png").unlink()
    save(copy / "depth" / f"{NAMES[0]}.npy", np.full(SIZE, 2.5, np.float16))
    np.testing.assert_array_equal(label_of(copy, DEPTH), np.full(SIZE, 2.5, np.float32))
    assert not list(recwarn)


def test_65535_millimetres_are_refused_as_a_marker(copy):
    save(copy / "depth" / f"{NAMES[0]}.png", np.full(SIZE, 65535, np.uint16))
    with pytest.raises(DataError, match=r"has 2048 values of 65535.* Write 0 there; if 65\.535 m"):
        label_of(copy, DEPTH)


@pytest.mark.parametrize("opened", ["train", "val"])
@pytest.mark.parametrize("task", [tasks.EDGE, tasks.SALIENCY], ids=lambda task: task.name)
def test_masks_of_0_and_255_are_noticed_in_val(copy, task, opened):
    mask = np.zeros(SIZE, np.uint8)
    mask[:9] = 255
    for name in NAMES[6:]:
        save(copy / task.name / f"{name}.png", mask)
    with pytest.raises(DataError, match=r"0 and 255 for the images of val\.txt.* Write 1 instead"):
        Folder(copy, opened, (task,))


def save_16_bits(path, levels):
    cv2.imwrite(str(path), np.broadcast_to(levels[..., None], (*SIZE, 3)))


@pytest.mark.parametrize("bits", [8, 10, 12, 14])
@pytest.mark.parametrize("folder", ["images", "normals"])
def test_data_of_few_bits_in_a_16_bit_png_are_refused(copy, bits, folder):
    levels = np.linspace(0, 2**bits - 1, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    save_16_bits(copy / folder / f"{NAMES[0]}.png", levels)
    message = (
        rf"room\.0\.png has 16 bits .* in {bits}: .*values // {2 ** (bits - 8)} if .*// 256 if"
    )
    with pytest.raises(DataError, match=message):
        Folder(copy, "train", (tasks.NORMALS,))[0]


def test_a_black_16_bit_image_is_read(copy):
    save_16_bits(copy / "images" / f"{NAMES[0]}.png", np.zeros(SIZE, np.uint16))
    assert not Folder(copy, "train", (DEPTH,))[0]["image"].any()


def test_a_hot_pixel_does_not_hide_that_a_16_bit_image_would_be_black(copy):
    levels = np.full(SIZE, 2048, np.uint16)
    levels[0, 0] = 65535
    save_16_bits(copy / "images" / f"{NAMES[0]}.png", levels)
    with pytest.raises(DataError, match=r"99\.9 % of its values fit in 12"):
        Folder(copy, "train", (DEPTH,))[0]


def test_a_16_bit_image_of_full_range_is_read(copy):
    levels = np.linspace(0, 65535, SIZE[0] * SIZE[1]).reshape(SIZE).astype(np.uint16)
    save_16_bits(copy / "images" / f"{NAMES[0]}.png", levels)
    image = Folder(copy, "train", (DEPTH,))[0]["image"]
    np.testing.assert_array_equal(image, np.repeat((levels >> 8)[..., None], 3, -1))
