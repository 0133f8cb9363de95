"""Zooming, cropping, shrinking and padding: image and labels stay aligned."""

import cv2
import numpy as np
import pytest

from mtmamba_jax.data_pipelines import batch
from mtmamba_jax.data_pipelines.transforms import (
    AugmentSettings,
    NormaliseAndPad,
    RandomZoomCrop,
    Shrink,
)
from mtmamba_jax.tasks.table import DEPTH, DISPARITY, HUMAN_PARTS, IGNORE, SEMSEG_NYUDV2
from tests.data_pipelines.random_examples import each_task_set, example_of, freeze, rng


def zoom(tasks, low, high, size=(1000, 1000), tries=10, max_share=0.75):
    settings = AugmentSettings(scale=(low, high), crop_tries=tries, max_class_share=max_share)
    return RandomZoomCrop(tasks, size, settings)


def crop(tasks, size, tries=10):
    return zoom(tasks, 1.0, 1.0, size, tries)


@each_task_set
def test_scaling_never_makes_a_new_label_value(tasks):
    for seed in range(10):
        example = example_of(tasks)
        scaled = zoom(tasks, 0.5, 2.0)(example, rng(seed))
        for task in tasks:
            if task.scale_power:
                continue
            before = {tuple(v) for v in example[task.name].reshape(-1, task.label_channels)}
            after = {tuple(v) for v in scaled[task.name].reshape(-1, task.label_channels)}
            assert after <= before


@pytest.mark.parametrize(("task", "factor"), [(DEPTH, 0.5), (DISPARITY, 2.0)])
def test_scaling_divides_depth_and_multiplies_disparity_and_keeps_ignore(task, factor):
    example = example_of((task,))
    scaled = zoom((task,), 2.0, 2.0)(example, rng())["depth"]
    expected = np.where(example["depth"] == IGNORE, IGNORE, example["depth"] * factor)
    expected = expected.repeat(2, 0).repeat(2, 1)
    np.testing.assert_array_equal(scaled, expected.astype(np.float32))


@pytest.mark.parametrize("scale", [0.5, 0.73, 1.0, 1.41, 2.0])
def test_scaling_keeps_labels_aligned_with_the_image(scale):
    # An image whose red is its column: after zooming, the label must still name that column.
    columns = np.broadcast_to(np.arange(40, dtype=np.int32), (8, 40))
    example = {
        "image": np.repeat(columns[..., None], 3, -1).astype(np.uint8),
        "semseg": np.ascontiguousarray(columns[..., None]),
    }
    scaled = zoom((SEMSEG_NYUDV2,), scale, scale)(example, rng())
    off = scaled["image"][..., 0].astype(int) - scaled["semseg"][..., 0]
    # Nearest rounds by half a column at most, and the 8-bit image by half a level.
    assert np.abs(off).max() <= 1
    assert abs(off.mean()) <= 0.5


class Recorder:
    """A random generator that records the integers it draws."""

    def __init__(self, generator):
        self.uniform, self._generator, self.drawn = generator.uniform, generator, []

    def integers(self, *arguments):
        self.drawn.append(int(self._generator.integers(*arguments)))
        return self.drawn[-1]


@each_task_set
@pytest.mark.parametrize("largest", [30, 300])
def test_zooming_gives_a_window_of_the_whole_zoomed_image(tasks, largest):
    generator, shares = rng(), []
    for _ in range(300):
        old, size = generator.integers(1, largest, (2, 2)).tolist()
        scale = generator.uniform(0.3, 3)
        example = freeze(example_of(tasks, old))
        recorder = Recorder(generator)
        found = zoom(tasks, scale, scale, size, max_share=1.0)(example, recorder)

        zoomed = tuple(max(1, round(n * scale)) for n in old)
        shape = tuple(min(n, m) for n, m in zip(zoomed, size, strict=True))
        assert found["image"].shape == (*shape, 3)
        start = recorder.drawn[-2:]
        window = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        image = cv2.resize(example["image"], zoomed[::-1], interpolation=cv2.INTER_LINEAR)[window]
        # Releases of OpenCV with several code paths round to another grey level.
        assert np.abs(found["image"].astype(int) - image).max() <= 1
        for task in tasks:
            nearest = cv2.INTER_NEAREST_EXACT
            whole = cv2.resize(example[task.name], zoomed[::-1], interpolation=nearest)
            label = whole.reshape(*zoomed, task.label_channels)[window]
            if task.scale_power:
                scaled = label * np.float32(scale**task.scale_power)
                label = np.where(label == IGNORE, label, scaled)
            np.testing.assert_array_equal(found[task.name], label)
        shares.append(np.prod(shape) / np.prod(zoomed))
    assert min(shares) < 0.1
    assert max(shares) == 1


@each_task_set
def test_crop_cuts_image_and_labels_at_the_same_place(tasks):
    example = example_of(tasks)
    example["image"][..., 0] = example[tasks[0].name][..., 0]
    for seed in range(10):
        cut = crop(tasks, (11, 13))(example, rng(seed))
        assert cut["image"].shape == (11, 13, 3)
        np.testing.assert_array_equal(cut["image"][..., 0], cut[tasks[0].name][..., 0])


def test_crop_avoids_windows_of_one_class():
    example = example_of((SEMSEG_NYUDV2,), (20, 200))
    example["semseg"][:, 20:] = 3  # nine tenths of the image are one class
    ignored = example["semseg"][:, :20] == IGNORE
    assert ignored.any()

    def share_of_varied(tries):
        transform = crop((SEMSEG_NYUDV2,), (20, 20), tries)
        labels = [transform(example, rng(seed))["semseg"] for seed in range(200)]
        return np.mean([np.mean(label == 3) <= 0.75 for label in labels])

    # About 16 of 181 windows are varied: 9 % in one try, 1 - 0.91^10 = 61 % in ten.
    assert share_of_varied(1) < 0.2
    assert share_of_varied(10) > 0.5


def test_only_semantic_classes_reject_a_crop():
    tasks = (SEMSEG_NYUDV2, HUMAN_PARTS)
    example = example_of(tasks, (20, 200))
    example["semseg"][:, 20:] = 3  # rejects nearly every crop, as the parts' background would
    example["human_parts"][:, 20:] = 0

    def cut_out(tasks, seed):
        return crop(tasks, (20, 20))(example, rng(seed))["image"]

    for seed in range(20):
        np.testing.assert_array_equal(cut_out((HUMAN_PARTS,), seed), cut_out((), seed))
    assert any((cut_out(tasks, seed) != cut_out((), seed)).any() for seed in range(20))


def test_crop_is_drawn_again_when_nothing_is_labelled():
    example = example_of((SEMSEG_NYUDV2,), (20, 40))
    example["semseg"][:, :30] = IGNORE
    transform = crop((SEMSEG_NYUDV2,), (20, 10), 50)
    assert all((transform(example, rng(s))["semseg"] != IGNORE).any() for s in range(20))


def test_crop_keeps_a_smaller_image_whole():
    example = example_of((DEPTH,))
    whole = crop((DEPTH,), (64, 64))(example, rng())
    np.testing.assert_array_equal(whole["image"], example["image"])


@each_task_set
def test_padding_is_centred_with_the_odd_pixel_at_the_bottom_and_right(tasks):
    example = example_of(tasks, (5, 6))
    padded = NormaliseAndPad(tasks, (8, 9))(freeze(example), rng())
    assert tuple(padded["size"]) == (5, 6)
    inside = np.zeros((8, 9), bool)
    inside[1:6, 1:7] = True
    assert (padded["image"][~inside] == 0).all()
    found = batch.denormalise(batch.remove_padding(padded["image"], padded["size"]))
    np.testing.assert_array_equal(found, example["image"])
    for task in tasks:
        assert (padded[task.name][~inside] == IGNORE).all()
        np.testing.assert_array_equal(
            batch.remove_padding(padded[task.name], padded["size"]), example[task.name]
        )


@each_task_set
@pytest.mark.parametrize("size", [(8, 9), (8, 1), (1, 9), (1, 1)])
def test_padding_keeps_thin_images(tasks, size):
    example = example_of(tasks, size)
    padded = NormaliseAndPad(tasks, (8, 9))(example, rng())
    inside = {name: batch.remove_padding(padded[name], size) for name in ("image", tasks[0].name)}
    np.testing.assert_array_equal(batch.denormalise(inside["image"]), example["image"])
    np.testing.assert_array_equal(inside[tasks[0].name], example[tasks[0].name])


@each_task_set
@pytest.mark.parametrize(("size", "factor"), [((20, 28), 2), ((21, 29), 2), ((23, 29), 3)])
def test_shrinking_takes_means_and_leaves_labels_on_the_finer_grid(tasks, size, factor):
    example = freeze(example_of(tasks, size))
    small = Shrink(tasks, factor)(example, rng())
    height, width = size[0] // factor, size[1] // factor
    window = (slice(height * factor), slice(width * factor))
    blocks = example["image"][window].reshape(height, factor, width, factor, 3)
    assert small["image"].dtype == np.uint8
    # Rounded to the nearest: half a level, and float32 in a mean of at most 9 values.
    assert np.abs(small["image"] - blocks.mean((1, 3))).max() <= 0.5 + 1e-4
    for task in tasks:
        np.testing.assert_array_equal(small[task.name], example[task.name][window])


def test_shrinking_refuses_an_image_of_less_than_a_pixel():
    with pytest.raises(ValueError, match=r"\(3, 28, 3\) .* 4 times smaller; .* 4 rows"):
        Shrink((DEPTH,), 4)(example_of((DEPTH,), (3, 28)), rng())


@pytest.mark.parametrize("padded", [(8, 9), (7, 8), (5, 6), (5, 9)])
def test_padding_keeps_a_finer_label_aligned_with_the_image(padded):
    # All pixels differ, and the label repeats at each finer pixel the value of the one it is on.
    image = np.arange(30, dtype=np.uint8).reshape(5, 6, 1).repeat(3, -1)
    label = image[..., :1].repeat(3, 0).repeat(3, 1).astype(np.float32)
    transform = NormaliseAndPad((DEPTH,), padded, 3)
    example = transform({"image": image, "depth": label}, rng())
    assert tuple(example["size"]) == (5, 6)
    assert example["depth"].shape == (3 * padded[0], 3 * padded[1], 1)
    fine = example["image"].repeat(3, 0).repeat(3, 1)
    expected = np.where((fine == 0).all(-1), IGNORE, batch.denormalise(fine)[..., 0])
    np.testing.assert_array_equal(example["depth"][..., 0], expected)


def test_an_image_larger_than_the_input_size_is_refused():
    with pytest.raises(ValueError, match=r"20x28 .* larger than the input size 16x32"):
        NormaliseAndPad((DEPTH,), (16, 32))(example_of((DEPTH,)), rng())
