"""Work spread over processes: order, memory, a killed worker."""

import os

import pytest

from mtmamba_jax.data_pipelines.parallel import available_cores, in_order


def test_results_of_workers_are_in_order_and_few_are_made_ahead():
    taken = []

    def work():
        for number in range(12):
            taken.append(number)
            yield (number,)

    for index, result in enumerate(in_order(abs, work(), 2)):
        assert result == index
        assert len(taken) <= index + 2 + 2
    assert len(taken) == 12


@pytest.mark.parametrize("exit_after", [0, 3])
def test_a_killed_worker_is_told_with_what_to_do(exit_after):
    work = [(0,)] * exit_after + [(9,)] * 5
    with pytest.raises(RuntimeError, match=r"One of 2 worker .* was killed.*fewer: --workers=N"):
        list(in_order(_exit_if, work, 2))


def _exit_if(code):
    if code:
        os._exit(code)


def test_cores_are_those_this_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1
