"""Opening the source of a configuration, and keeping examples in memory."""

import pickle
import threading

import numpy as np
import pytest

from mtmamba_jax.configs import common
from mtmamba_jax.data_pipelines.batch import check_example
from mtmamba_jax.data_pipelines.sources import CachedSource, DataSettings, open_source
from mtmamba_jax.tasks.table import DEPTH, NYUDV2
from tests.data_pipelines.random_examples import RandomExamples


class Counting(RandomExamples):
    """Examples that count how often they are read."""

    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)


@pytest.fixture
def source():
    Counting.reads = 0
    return Counting((DEPTH,), 4)


def bytes_of(example):
    return example["image"].nbytes + example["depth"].nbytes


def settings(**changed):
    small = {"size": (48, 64), "train_examples": 2, "test_examples": 3}
    return DataSettings(**(small | changed))


def test_settings_have_the_keys_and_defaults_of_the_configuration():
    assert DataSettings(**common.get_config().data) == DataSettings()


def test_the_synthetic_source_has_as_many_examples_as_the_configuration_says():
    for split, count in (("train", 2), ("test", 3)):
        source = open_source(settings(), NYUDV2, split)
        assert len(source) == count
        check_example(source[1], NYUDV2)


def test_an_unknown_source_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match=r"'sinthetic'\. Did you mean 'synthetic'\?"):
        open_source(settings(name="sinthetic"), NYUDV2, "train")


def test_a_source_is_cached_if_the_configuration_gives_memory():
    assert isinstance(open_source(settings(cache_gib=0.1), NYUDV2, "train"), CachedSource)


def test_a_cached_example_is_read_once_and_equal(source):
    cached = CachedSource(source, 10**6)
    assert len(cached) == 4
    for _ in range(3):
        for index in range(4):
            np.testing.assert_array_equal(
                cached[index]["depth"], RandomExamples((DEPTH,), 4)[index]["depth"]
            )
    assert source.reads == 4


@pytest.mark.parametrize("split", ["train", "test"])
def test_raw_images_have_the_resolution_of_the_labels(split):
    data = settings(size=(12, 16), label_scale=3)
    assert open_source(data, (DEPTH,), split)[0]["image"].shape == (36, 48, 3)


def test_the_cache_respects_its_bound(source):
    cached = CachedSource(source, 2 * bytes_of(source[0]))
    source_reads = Counting.reads
    for _ in range(3):
        for index in range(4):
            cached[index]
    assert Counting.reads - source_reads == 4 + 2 + 2  # two are kept, two are read each time


def test_cached_arrays_cannot_be_written(source):
    example = CachedSource(source, 10**6)[0]
    with pytest.raises(ValueError, match="read-only"):
        example["image"][:] = 0


def test_a_cached_source_is_pickled_without_its_contents(source):
    cached = CachedSource(source, 10**6)
    empty = len(pickle.dumps(cached))
    cached[0]
    assert len(pickle.dumps(cached)) == empty
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(cached))[1]["depth"], cached[1]["depth"]
    )


def test_threads_may_share_a_cache(source):
    cached = CachedSource(source, 2 * bytes_of(source[0]))
    expected = [source[index]["image"] for index in range(4)]
    wrong = []

    def read():
        for turn in range(100):
            if not np.array_equal(cached[turn % 4]["image"], expected[turn % 4]):
                wrong.append(turn)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_negative_bound_is_refused(source):
    with pytest.raises(ValueError, match="max_bytes"):
        CachedSource(source, -1)
