"""The pipeline: contract, determinism, resuming, shares of processes, named errors."""

import itertools
import multiprocessing
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from mtmamba_jax.data_pipelines.pipeline import ExampleError, eval_batches, train_batches
from mtmamba_jax.data_pipelines.transforms import AugmentSettings
from mtmamba_jax.tasks.table import DEPTH, NORMALS, NYUDV2, PASCAL_CONTEXT
from tests.data_pipelines.batch_contract import check_batch
from tests.data_pipelines.random_examples import RandomExamples

ROOT = pathlib.Path(__file__).parents[2]
TASKS = (DEPTH, NORMALS)
STILL = AugmentSettings(scale=(1.0, 1.0), flip_probability=0.0, jitter_probability=0.0)


def train(source, tasks=TASKS, **changed):
    """A training iterator of 16x16 crops in batches of 4."""
    arguments = {
        "crop_size": (16, 16),
        "batch_size": 4,
        "seed": 0,
        "augment": AugmentSettings(),
    } | changed
    return train_batches(source, tasks, **arguments)


def take(iterator, count):
    batches = list(itertools.islice(iterator, count))
    iterator.close()
    return batches


def evaluate(source, tasks=TASKS, **changed):
    arguments = {"size": (20, 28), "batch_size": 4} | changed
    iterator = eval_batches(source, tasks, **arguments)
    batches = list(iterator)
    iterator.close()
    return batches


def assert_equal(one, other):
    assert len(one) == len(other)
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for key in first:
            np.testing.assert_array_equal(first[key], second[key])


def ids(batches):
    return [str(identity) for batch in batches for identity in batch["id"]]


@pytest.mark.parametrize("tasks", [NYUDV2, PASCAL_CONTEXT, ()], ids=["nyudv2", "pascal", "none"])
def test_batches_keep_the_contract(tasks):
    source = RandomExamples(tasks, 6)
    for batch in take(train(source, tasks), 3) + evaluate(source, tasks):
        check_batch(batch, tasks)
        assert batch["images"].shape[0] == 4


@pytest.mark.parametrize("tasks", [NYUDV2, PASCAL_CONTEXT, ()], ids=["nyudv2", "pascal", "none"])
def test_batches_with_labels_on_a_finer_grid_keep_the_contract(tasks):
    source = RandomExamples(tasks, 6, size=(41, 57))
    trained = take(train(source, tasks, label_scale=2), 3)
    evaluated = evaluate(source, tasks, label_scale=2)
    for batch in trained + evaluated:
        check_batch(batch, tasks, label_scale=2)
    assert trained[0]["images"].shape == (4, 16, 16, 3)
    assert evaluated[0]["images"].shape == (4, 20, 28, 3)


def test_the_same_seed_gives_the_same_batches_and_another_seed_does_not():
    source = RandomExamples(TASKS, 10)
    batches = take(train(source), 6)
    assert_equal(batches, take(train(source), 6))
    assert ids(batches) != ids(take(train(source, seed=1), 6))


@pytest.mark.parametrize("num_workers", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_worker_processes_give_the_batches_of_threads(num_workers):
    source = RandomExamples(TASKS, 10)
    assert_equal(
        take(train(source, start_step=2), 5),
        take(train(source, start_step=2, num_workers=num_workers), 5),
    )


def test_closing_ends_the_workers_and_the_batches():
    others = set(multiprocessing.active_children())
    batches = train(RandomExamples(TASKS, 10), num_workers=1)
    assert type(next(batches)["images"]) is np.ndarray
    assert set(multiprocessing.active_children()) - others
    batches.close()
    assert not set(multiprocessing.active_children()) - others
    assert list(batches) == []


def test_a_program_that_holds_a_batch_of_a_worker_ends_without_warnings(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from tests.data_pipelines.test_pipeline import RandomExamples, train\n"
        "if __name__ == '__main__':\n"
        "    batches = train(RandomExamples((), 9), (), num_workers=1)\n"
        "    held = next(batches)\n"
        "    batches.close()\n"
    )
    found = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert "leaked" not in found.stderr


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_worker_processes_give_the_evaluation_batches_of_threads(num_workers):
    source = RandomExamples(TASKS, 10)
    assert_equal(evaluate(source), evaluate(source, num_workers=num_workers))


def test_every_epoch_holds_each_example_once_in_an_order_of_its_own():
    epochs = np.array(ids(take(train(RandomExamples((), 12), ()), 9))).reshape(3, 12)
    for epoch in epochs:
        assert sorted(epoch) == sorted(f"e{i}" for i in range(12))
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_neighbouring_seeds_do_not_share_the_orders_of_their_epochs():
    def orders(seed):
        names = ids(take(train(RandomExamples((), 12), (), seed=seed), 9))
        return {tuple(names[i : i + 12]) for i in range(0, 36, 12)}

    assert not orders(0) & orders(1)


def test_an_example_is_augmented_differently_in_every_epoch():
    # A single example, so that only the augmentation can differ.
    batch = take(train(RandomExamples((), 1), (), batch_size=6), 1)[0]
    assert len({image.tobytes() for image in batch["images"]}) == 6


@pytest.mark.parametrize("step", [1, 4, 7])
def test_resuming_at_a_step_continues_exactly(step):
    source = RandomExamples(TASKS, 10)  # epochs end inside batches
    assert_equal(take(train(source), 10)[step:], take(train(source, start_step=step), 10 - step))


@pytest.mark.parametrize("process_count", [2, 4])
def test_the_shares_of_all_processes_are_the_global_batch(process_count):
    source = RandomExamples(TASKS, 10)
    shares = [
        take(train(source, process_index=p, process_count=process_count, start_step=3), 4)
        for p in range(process_count)
    ]
    joined = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*shares, strict=True)
    ]
    assert_equal(joined, take(train(source, start_step=3), 4))


def test_shares_of_an_epoch_neither_overlap_nor_lose_examples():
    source = RandomExamples((), 24)
    shares = [ids(take(train(source, (), process_index=p, process_count=4), 6)) for p in range(4)]
    assert all(len(share) == 6 for share in shares)
    assert sorted(itertools.chain(*shares)) == sorted(f"e{i}" for i in range(24))


@pytest.mark.parametrize(
    ("num_examples", "process_count"), [(8, 1), (9, 1), (9, 2), (1, 2), (5, 4)]
)
def test_evaluation_sees_each_example_once_and_masks_the_rest(num_examples, process_count):
    source = RandomExamples(TASKS, num_examples)
    shares = [
        evaluate(source, process_index=p, process_count=process_count) for p in range(process_count)
    ]
    assert {len(share) for share in shares} == {-(-num_examples // 4)}
    batches = [batch for parts in zip(*shares, strict=True) for batch in parts]
    assert all(len(batch["images"]) == 4 // process_count for batch in batches)
    mask = np.concatenate([batch["mask"] for batch in batches])
    names = np.array(ids(batches))
    assert list(names[mask]) == [f"e{i}" for i in range(num_examples)]
    assert set(names[~mask]) <= {f"e{num_examples - 1}"}


def test_evaluation_pads_images_of_different_sizes():
    class TwoSizes:
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return RandomExamples(TASKS, 2, ((10, 12), (12, 10))[index])[index]

    (batch,) = evaluate(TwoSizes(), size=(12, 12), batch_size=2)
    check_batch(batch, TASKS)
    np.testing.assert_array_equal(batch["size"], [(10, 12), (12, 10)])


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_an_unreadable_example_is_named_in_evaluation(num_workers):
    with pytest.raises(ExampleError, match=r"Example 5 could not be read: OSError.*7\.png"):
        evaluate(RandomExamples(TASKS, 8, broken=5), num_workers=num_workers)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_example_is_named_in_training(num_workers):
    with pytest.raises(ExampleError, match=r"Example 5 could not be read: OSError.*7\.png"):
        take(train(RandomExamples(TASKS, 8, broken=5), num_workers=num_workers), 4)


def test_an_example_that_cannot_be_transformed_is_named():
    with pytest.raises(ExampleError, match=r"'e0'.*20x28 .* larger than the input size 16x16"):
        evaluate(RandomExamples(TASKS, 2), size=(16, 16))


def test_an_example_that_breaks_the_contract_is_named():
    class Wrong(RandomExamples):
        def __getitem__(self, index):
            example = super().__getitem__(index)
            return {**example, "depth": example["depth"][..., 0]}

    with pytest.raises(ExampleError, match=r"Example \d .*depth.*wanted float32 \[20, 28, 1\]"):
        take(train(Wrong(TASKS, 4)), 1)


def test_without_augmentation_the_pixels_are_those_of_the_source():
    source = RandomExamples(TASKS, 4)
    batch = take(train(source, crop_size=(20, 28), augment=STILL), 1)[0]
    for name, depth in zip(batch["id"], batch["depth"], strict=True):
        np.testing.assert_array_equal(depth, source[int(name[1:])]["depth"])


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"batch_size": 6, "process_count": 4}, "batch_size 6 is not a positive multiple"),
        ({"batch_size": 0}, "batch_size 0 is not a positive multiple"),
        ({"process_index": 2, "process_count": 2}, "process_index < process_count"),
        ({"seed": -1}, "0 <= seed"),
        ({"start_step": -1}, "start_step >= 0"),
        ({"num_workers": -1}, "num_workers: wanted 0 or more"),
    ],
)
def test_arguments_out_of_range_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        train(RandomExamples(TASKS, 8), **wrong)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="empty"):
        train(RandomExamples(TASKS, 0))
    with pytest.raises(ValueError, match="empty"):
        evaluate(RandomExamples(TASKS, 0))
