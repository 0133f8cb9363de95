"""Mapping over worker processes: order, bounded results, a killed worker, a killed parent."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import pytest

from mtmamba_jax.data_pipelines.parallel import available_cores, in_order, worker_count

ROOT = pathlib.Path(__file__).parents[2]


def test_results_are_in_order_and_few_are_computed_ahead():
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
def test_a_killed_worker_is_reported_with_the_remedy(exit_after):
    work = [(0,)] * exit_after + [(9,)] * 5
    with pytest.raises(
        RuntimeError, match=r"One of 2 worker .* was killed.*memory ran out.*fewer: --workers=N"
    ):
        list(in_order(_exit_if, work, 2))


def _exit_if(code):
    if code:
        os._exit(code)


def test_workers_end_when_their_program_is_killed(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from mtmamba_jax.data_pipelines.parallel import in_order\n"
        "if __name__ == '__main__':\n"
        "    for _ in in_order(abs, [(number,) for number in range(99)], 2):\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        start_new_session=True,
    )
    try:
        killed.communicate(timeout=60)  # until the last process that could print has ended
        assert killed.returncode == -signal.SIGKILL
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(killed.pid, signal.SIGKILL)


def test_available_cores_are_those_the_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3}, raising=False)
    assert available_cores() == 2
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert available_cores() == 1


def test_by_default_there_is_a_worker_per_core():
    assert worker_count(None) == available_cores()
    assert worker_count(0) == 0
    with pytest.raises(ValueError, match="--workers must be 0 or more, got -1"):
        worker_count(-1)
