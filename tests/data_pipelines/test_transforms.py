"""Training and evaluation transforms: the official arrays, flips, colours, missing labels."""

import pathlib

import numpy as np
import pytest

from mtmamba_jax.data_pipelines import batch
from mtmamba_jax.data_pipelines.transforms import (
    AugmentSettings,
    ColourJitter,
    IgnoreUnannotated,
    NormaliseAndPad,
    RandomFlip,
    eval_transforms,
    train_transforms,
)
from mtmamba_jax.tasks.table import (
    DEPTH,
    HUMAN_PARTS,
    IGNORE,
    NORMALS,
    NYUDV2,
    PASCAL_CONTEXT,
    SALIENCY,
)
from tests.data_pipelines.random_examples import each_task_set, example_of, freeze, rng

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"


def jitter(**changed):
    """Jitter that always applies, but changes only what is given."""
    still = {"brightness": 0, "contrast": (1, 1), "saturation": (1, 1), "hue": 0}
    return ColourJitter(AugmentSettings(**(still | {"jitter_probability": 1.0} | changed)))


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
        # Missing depth and normals: the dataset builders mark them as ignore, the official code's
        # transforms do.
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


@each_task_set
def test_training_transforms_give_the_crop_size_and_the_dtypes_of_the_contract(tasks):
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


@each_task_set
def test_transforms_leave_their_input_unchanged(tasks):
    for transform in train_transforms(tasks, (24, 24), AugmentSettings()):
        size = (20, 24) if isinstance(transform, NormaliseAndPad) else (20, 28)
        transform(freeze(example_of(tasks, size)), rng(3))  # a write into it raises ValueError


@each_task_set
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


def test_jitter_without_changes_is_the_identity_and_its_defaults_are_not():
    image = example_of(())["image"]
    still = jitter(jitter_probability=0.0)
    np.testing.assert_array_equal(still({"image": image}, rng())["image"], image)
    default = AugmentSettings(jitter_probability=1.0)
    jittered = ColourJitter(default)({"image": image}, rng())["image"]
    assert jittered.dtype == np.uint8
    assert np.abs(jittered.astype(int) - image).mean() > 5


def test_brightness_shifts_and_clips():
    image = np.array([[[0, 100, 255]]], np.uint8)
    seen = [jitter(brightness=32)({"image": image}, rng(s))["image"].astype(int) for s in range(50)]
    # Through 8-bit HSV and back a value may move by 1.
    assert max(abs(values - image).max() for values in seen) <= 33
    shifts = {int(values[0, 0, 1]) - 100 for values in seen}
    assert min(shifts) < -20
    assert max(shifts) > 20


def test_saturation_zero_leaves_grey_and_hue_turns_red_towards_its_neighbours():
    red = np.array([[[200, 0, 0]]], np.uint8)
    grey = jitter(saturation=(1e-9, 1e-9))({"image": red}, rng())["image"]
    np.testing.assert_array_equal(grey, np.full((1, 1, 3), 200))
    turned = [jitter(hue=18)({"image": red}, rng(s))["image"][0, 0] for s in range(50)]
    # 18 units are 36 degrees; at 60 degrees green (or blue) would reach red's 200.
    assert all(pixel[0] == 200 and pixel[1:].max() <= 200 * 36 / 60 + 1 for pixel in turned)
    assert max(pixel[1] for pixel in turned) > 50
    assert max(pixel[2] for pixel in turned) > 50


def test_denormalising_inverts_normalising():
    image = example_of(())["image"]
    normalised = NormaliseAndPad((), (20, 28))({"image": image}, rng())["image"]
    assert normalised.dtype == np.float32
    np.testing.assert_array_equal(batch.denormalise(normalised), image)


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


def test_parts_in_a_crop_beside_the_person_are_ignored():
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


@each_task_set
def test_check_example_names_the_key_and_what_was_wanted_and_found(tasks):
    example = example_of(tasks)
    name = tasks[0].name
    with pytest.raises(ValueError, match=rf"{name}.*wanted int32 \[20, 28, 1\], got int64"):
        batch.check_example({**example, name: example[name].astype(np.int64)}, tasks)
    del example[name]
    with pytest.raises(ValueError, match=f"no key '{name}'"):
        batch.check_example(example, tasks)
