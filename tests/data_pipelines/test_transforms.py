import pathlib

import cv2
import numpy as np
import pytest

from mtmamba_jax.data_pipelines import batch
from mtmamba_jax.data_pipelines.transforms import (
    AugmentSettings,
    ColourJitter,
    IgnoreUnannotated,
    NormaliseAndPad,
    RandomFlip,
    RandomZoomCrop,
    Shrink,
    eval_transforms,
    train_transforms,
)
from mtmamba_jax.tasks import (
    DEPTH,
    DISPARITY,
    HUMAN_PARTS,
    IGNORE,
    NORMALS,
    NYUDV2,
    PASCAL_CONTEXT,
    SALIENCY,
    SEMSEG_NYUDV2,
)
from tests.data_pipelines.random_examples import RandomExamples

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
TASK_SETS = (NYUDV2, PASCAL_CONTEXT)


@pytest.fixture(params=TASK_SETS, ids=["nyudv2", "pascal_context"])
def tasks(request):
    return request.param


def example_of(tasks, size=(20, 28)):
    return RandomExamples(tasks, 1, size)[0]


def rng(seed=0):
    return np.random.default_rng(seed)


def zoom(tasks, low, high, size=(1000, 1000), tries=10, max_share=0.75):
    return RandomZoomCrop(tasks, low, high, size, tries, max_share)


def crop(tasks, size, tries=10):
    return zoom(tasks, 1.0, 1.0, size, tries)


def freeze(example):
    for value in example.values():
        if isinstance(value, np.ndarray):
            value.flags.writeable = False
    return example


def golden_cases():
    for file, tasks in (
        ("NYUDv2_expected.npz", NYUDV2),
        ("PASCALContext_expected.npz", PASCAL_CONTEXT),
    ):
        arrays = np.load(GOLDEN / file)
        for image in sorted({key.split("/")[0] for key in arrays.files}):
            yield pytest.param(arrays, image, tasks, id=f"{file.split('_')[0]}-{image}")


@pytest.mark.parametrize(("arrays", "image", "tasks"), list(golden_cases()))
def test_evaluation_transforms_give_the_official_arrays(arrays, image, tasks):
    def official(stage, task):
        return arrays[f"{image}/{stage}/{'sal' if task.name == 'saliency' else task.name}"]

    example = {"image": arrays[f"{image}/raw/image"].astype(np.uint8), "id": image}
    for task in tasks:
        label = official("raw", task).astype(task.label_dtype)
        # What the dataset builders mark as ignore, and the official code marks while transforming:
        # no depth, no normal.
        if task.name in ("depth", "normals"):
            label[(label == 0).all(-1)] = IGNORE
        example[task.name] = label
    batch.check_example(example, tasks)
    raw_size = example["image"].shape[:2]
    expected = arrays[f"{image}/val/image"]
    for transform in eval_transforms(tasks, expected.shape[:2]):
        example = transform(example, rng())

    # Normalised values reach 2.7, where float32 values are 2.4e-7 apart: a few roundings.
    np.testing.assert_allclose(example["image"], expected, rtol=0, atol=1e-6)
    for task in tasks:
        assert example[task.name].dtype == task.label_dtype
        np.testing.assert_array_equal(example[task.name], official("val", task))
    assert tuple(example["size"]) == raw_size


def test_training_transforms_give_the_crop_size_and_the_contract_dtypes(tasks):
    transforms = train_transforms(tasks, (24, 24), AugmentSettings())
    for seed in range(20):
        example = freeze(example_of(tasks))
        generator = rng(seed)
        for transform in transforms:
            example = transform(example, generator)
        assert example["image"].shape == (24, 24, 3)
        assert example["image"].dtype == np.float32
        assert example["size"].dtype == np.int32
        for task in tasks:
            assert example[task.name].shape == (24, 24, task.label_channels)
            assert example[task.name].dtype == task.label_dtype


def test_transforms_leave_their_input_unchanged(tasks):
    for transform in train_transforms(tasks, (24, 24), AugmentSettings()):
        size = (20, 24) if isinstance(transform, NormaliseAndPad) else (20, 28)
        transform(freeze(example_of(tasks, size)), rng(3))  # a write into it raises ValueError


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
def test_scaling_keeps_labels_on_the_pixels_of_the_image(scale):
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
    """A random generator that keeps the integers it gave."""

    def __init__(self, generator):
        self.uniform, self._generator, self.integers_given = generator.uniform, generator, []

    def integers(self, *arguments):
        self.integers_given.append(int(self._generator.integers(*arguments)))
        return self.integers_given[-1]


@pytest.mark.parametrize("largest", [30, 300])
def test_zooming_computes_the_window_of_the_whole_zoomed_image(tasks, largest):
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
        start = recorder.integers_given[-2:]
        window = tuple(slice(a, a + n) for a, n in zip(start, shape, strict=True))
        image = cv2.resize(example["image"], zoomed[::-1], interpolation=cv2.INTER_LINEAR)[window]
        # Rounded to another grey level, where a release of OpenCV has several ways.
        assert np.abs(found["image"].astype(int) - image).max() <= 1
        for task in tasks:
            way = cv2.INTER_NEAREST_EXACT
            whole = cv2.resize(example[task.name], zoomed[::-1], interpolation=way)
            label = whole.reshape(*zoomed, task.label_channels)[window]
            if task.scale_power:
                scaled = label * np.float32(scale**task.scale_power)
                label = np.where(label == IGNORE, label, scaled)
            np.testing.assert_array_equal(found[task.name], label)
        shares.append(np.prod(shape) / np.prod(zoomed))
    assert min(shares) < 0.1
    assert max(shares) == 1


def test_flipping_twice_is_the_identity(tasks):
    example = freeze(example_of(tasks))
    flip = RandomFlip(tasks, 1.0)
    twice = flip(flip(example, rng()), rng())
    for key in ("image", *(task.name for task in tasks)):
        np.testing.assert_array_equal(twice[key], example[key])


@pytest.mark.parametrize("size", [(20, 28), (70, 9), (33, 1)])
def test_flipping_negates_x_of_valid_normals_only(size):
    example = example_of((NORMALS,), size)
    flipped = RandomFlip((NORMALS,), 1.0)(example, rng())["normals"]
    mirrored = example["normals"][:, ::-1]
    ignored = (mirrored == IGNORE).all(-1)
    np.testing.assert_array_equal(flipped[ignored], mirrored[ignored])
    np.testing.assert_array_equal(flipped[~ignored], mirrored[~ignored] * np.float32((-1, 1, 1)))
    assert ignored.any()


def test_flip_probability_is_respected():
    example = example_of((DEPTH,))
    flip = RandomFlip((DEPTH,), 0.5)
    generator = rng()
    flips = sum(flip(example, generator) is not example for _ in range(400))
    assert 160 <= flips <= 240  # four standard deviations of a fair coin, 10 each


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

    # A window is varied from about 16 of 181 places: 9 % in one try, 1 - 0.91^10 = 61 % in ten.
    assert share_of_varied(1) < 0.2
    assert share_of_varied(10) > 0.5


def test_crop_draws_again_when_nothing_is_labelled():
    example = example_of((SEMSEG_NYUDV2,), (20, 40))
    example["semseg"][:, :30] = IGNORE
    transform = crop((SEMSEG_NYUDV2,), (20, 10), 50)
    assert all((transform(example, rng(s))["semseg"] != IGNORE).any() for s in range(20))


def test_crop_keeps_a_smaller_image_whole():
    example = example_of((DEPTH,))
    whole = crop((DEPTH,), (64, 64))(example, rng())
    np.testing.assert_array_equal(whole["image"], example["image"])


def test_jitter_without_changes_is_the_identity_and_its_defaults_are_not():
    image = example_of(())["image"]
    still = ColourJitter(0, (1, 1), (1, 1), 0, 0.0)
    np.testing.assert_array_equal(still({"image": image}, rng())["image"], image)
    default = ColourJitter(32, (0.5, 1.5), (0.5, 1.5), 18, 1.0)
    jittered = default({"image": image}, rng())["image"]
    assert jittered.dtype == np.uint8
    assert np.abs(jittered.astype(int) - image).mean() > 5


def test_brightness_shifts_and_clips():
    image = np.array([[[0, 100, 255]]], np.uint8)
    seen = [
        ColourJitter(32, (1, 1), (1, 1), 0, 1.0)({"image": image}, rng(s))["image"].astype(int)
        for s in range(50)
    ]
    # Through 8-bit HSV and back a value may move by 1.
    assert max(abs(values - image).max() for values in seen) <= 33
    shifts = {int(values[0, 0, 1]) - 100 for values in seen}
    assert min(shifts) < -20
    assert max(shifts) > 20


def test_saturation_zero_leaves_grey_and_hue_turns_red_towards_its_neighbours():
    red = np.array([[[200, 0, 0]]], np.uint8)
    grey = ColourJitter(0, (1, 1), (1e-9, 1e-9), 0, 1.0)({"image": red}, rng())["image"]
    np.testing.assert_array_equal(grey, np.full((1, 1, 3), 200))
    turned = [
        ColourJitter(0, (1, 1), (1, 1), 18, 1.0)({"image": red}, rng(s))["image"][0, 0]
        for s in range(50)
    ]
    # 18 units are 36 degrees; at 60 degrees green (or blue) would reach red's 200.
    assert all(pixel[0] == 200 and pixel[1:].max() <= 200 * 36 / 60 + 1 for pixel in turned)
    assert max(pixel[1] for pixel in turned) > 50
    assert max(pixel[2] for pixel in turned) > 50


def test_normalising_is_undone_for_pictures():
    image = example_of(())["image"]
    normalised = NormaliseAndPad((), (20, 28))({"image": image}, rng())["image"]
    assert normalised.dtype == np.float32
    np.testing.assert_array_equal(batch.denormalise(normalised), image)


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


@pytest.mark.parametrize("size", [(8, 9), (8, 1), (1, 9), (1, 1)])
def test_padding_keeps_thin_images(tasks, size):
    example = example_of(tasks, size)
    padded = NormaliseAndPad(tasks, (8, 9))(example, rng())
    inside = {name: batch.remove_padding(padded[name], size) for name in ("image", tasks[0].name)}
    np.testing.assert_array_equal(batch.denormalise(inside["image"]), example["image"])
    np.testing.assert_array_equal(inside[tasks[0].name], example[tasks[0].name])


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
def test_padding_keeps_a_finer_label_on_the_pixels_of_the_image(padded):
    # An image of different values whose label says, at each finer pixel, which one it lies on.
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


def test_parts_of_an_image_without_a_person_are_ignored():
    tasks = (HUMAN_PARTS, SALIENCY)
    example = freeze(example_of(tasks))
    ignored = example["human_parts"] == IGNORE
    empty = {name: np.where(ignored, IGNORE, 0).astype(np.int32) for name in example}
    after = IgnoreUnannotated(tasks)(freeze(empty), rng())
    assert after["human_parts"].dtype == np.int32
    assert (after["human_parts"] == IGNORE).all()
    np.testing.assert_array_equal(after["saliency"], empty["saliency"])
    one = empty["human_parts"].copy()
    one[3, 4] = 1
    for label in (one, example["human_parts"]):
        after = IgnoreUnannotated(tasks)({**example, "human_parts": label}, rng())
        np.testing.assert_array_equal(after["human_parts"], label)


def test_a_crop_beside_the_person_is_ignored():
    example = example_of((HUMAN_PARTS,), (20, 400))
    example["human_parts"][:, :200] = 0  # a person in the right half
    example["human_parts"][5:15, 200:] = 2
    seen = set()
    for seed in range(10):
        cut, generator = example, rng(seed)
        settings = AugmentSettings(scale=(1.0, 1.0), max_class_share=1.0)
        for transform in train_transforms((HUMAN_PARTS,), (20, 20), settings):
            cut = transform(cut, generator)
        values = set(np.unique(cut["human_parts"]))
        seen.add("person" if values & set(range(1, 7)) else "ignored")
        assert values not in ({0}, {0, IGNORE})
    assert seen == {"person", "ignored"}


@pytest.mark.parametrize(
    "wrong",
    [
        {"scale": (0, 1)},
        {"contrast": (2, 1)},
        {"flip_probability": 1.5},
        {"crop_tries": 0},
        {"hue": 200},
        {"brightness": -1},
    ],
)
def test_augmentation_that_cannot_work_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        AugmentSettings(**wrong)


def test_check_example_names_the_key_the_wanted_and_the_found(tasks):
    example = example_of(tasks)
    name = tasks[0].name
    with pytest.raises(ValueError, match=rf"{name}.*wanted int32 \[20, 28, 1\], got int64"):
        batch.check_example({**example, name: example[name].astype(np.int64)}, tasks)
    del example[name]
    with pytest.raises(ValueError, match=f"no key '{name}'"):
        batch.check_example(example, tasks)
