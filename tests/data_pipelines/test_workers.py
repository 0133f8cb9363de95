"""Worker processes of the pipeline: how their death is reported, signals, and how they end."""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import time
from multiprocessing import active_children

import pytest

from mtmamba_jax.data_pipelines.pipeline import ExampleError
from mtmamba_jax.data_pipelines.workers import WorkerError, worker_death
from tests.data_pipelines.random_examples import RandomExamples
from tests.data_pipelines.test_pipeline import evaluate, ids, take, train

ROOT = pathlib.Path(__file__).parents[2]
MEMORY = r"that memory ran out: use fewer data\.num_workers or a smaller data\.cache_gib"
KILLED = rf"^A data worker was killed by SIGKILL \(exit code -9\)\. .*{MEMORY}"
LEFT = r"^A data worker ended with exit code 3\. What it printed above says why\..*guard\.$"
CRASHED = r"\. A library crashed, .*Replace that file or leave its example out"


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def leave():
    os._exit(3)


def crash():
    os.kill(os.getpid(), signal.SIGSEGV)


def fill_shared_memory():
    os.kill(os.getpid(), signal.SIGBUS)


@dataclasses.dataclass(frozen=True)
class Deadly(RandomExamples):
    """Reading example 5 ends the process."""

    death: object = die

    def __getitem__(self, index):
        if index == 5:
            self.death()
        return super().__getitem__(index)


@dataclasses.dataclass(frozen=True)
class Counted(RandomExamples):
    """Examples that take a while to read and leave a line in a file."""

    lines: pathlib.Path = pathlib.Path()
    seconds: float = 0

    def __getitem__(self, index):
        time.sleep(self.seconds)
        with self.lines.open("a") as file:
            print(index, file=file)
        return super().__getitem__(index)


@pytest.mark.parametrize("num_workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_killed_worker_ends_training_with_exit_code_and_remedy(num_workers):
    # Many examples, so that no other worker reads example 5 of the next epoch in the meantime.
    batches = train(Deadly((), 256), (), num_workers=num_workers)
    with pytest.raises(WorkerError, match=KILLED):
        list(batches)
    batches.close()


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_killed_worker_ends_evaluation_with_exit_code_and_remedy(num_workers):
    with pytest.raises(WorkerError, match=KILLED):
        evaluate(Deadly((), 12), (), num_workers=num_workers)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("death", "message"),
    [
        (leave, LEFT),
        (crash, rf"by SIGSEGV \(exit code -11\){CRASHED}"),
        (fill_shared_memory, r"by SIGBUS \(exit code -7\)\. .* /dev/shm is probably full"),
    ],
)
def test_how_a_worker_died_decides_the_remedy(death, message):
    with pytest.raises(WorkerError, match=message):
        evaluate(Deadly((), 8, death=death), (), num_workers=1)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (3, LEFT),
        (-signal.SIGKILL, KILLED),
        (-signal.SIGSEGV, rf"by SIGSEGV \(exit code -11\){CRASHED}"),
        (-signal.SIGABRT, rf"by SIGABRT \(exit code -6\){CRASHED}"),
        (-signal.SIGBUS, r"by SIGBUS .* /dev/shm is probably full"),
        (-signal.SIGHUP, r"by SIGHUP \(exit code -1\)\. What it printed above says why\."),
        (-99, r"by signal 99 \(exit code -99\)\. What it printed above says why\."),
    ],
)
def test_the_exit_code_decides_the_remedy(code, message):
    reported = RuntimeError(f"Worker process was terminated unexpectedly with exit code {code}.")
    with pytest.raises(WorkerError, match=message):
        raise worker_death(reported)


def test_another_error_is_no_death_of_a_worker():
    assert worker_death(RuntimeError("Example 5 could not be read: exit code 5")) is None


@pytest.mark.slow
def test_an_idle_worker_that_is_killed_ends_training(tmp_path):
    batches = train(Counted((), 8, lines=tmp_path / "read"), (), num_workers=1)
    others = set(active_children())
    next(batches)
    (worker,) = set(active_children()) - others
    read = 0
    while read != (read := (tmp_path / "read").stat().st_size):  # until its buffers are full
        time.sleep(1)
    worker.kill()
    with pytest.raises(WorkerError, match=KILLED):
        take(batches, 20)
    batches.close()


def test_a_script_without_the_guard_is_told_to_add_it(tmp_path):
    script = (
        "from tests.data_pipelines.test_pipeline import RandomExamples, train\n"
        "next(train(RandomExamples((), 9), (), num_workers=1))\n"
    )
    found = run_script(script, tmp_path)
    assert "WorkerError: A data worker ended with exit code 1." in found.stderr
    assert 'needs the `if __name__ == "__main__":` guard' in found.stderr


def run_script(script, folder):
    """Runs a script until it and all processes that it started have ended."""
    path = folder / "script.py"
    path.write_text(script)
    with subprocess.Popen(
        [sys.executable, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        start_new_session=True,
    ) as process:
        try:
            # All of them hold the pipes open.
            output, errors = process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(path, process.returncode, output, errors)


def test_workers_of_a_killed_process_end_and_leave_no_file(tmp_path):
    script = (
        "import os, signal\n"
        "from tests.data_pipelines.test_pipeline import RandomExamples, train\n"
        "if __name__ == '__main__':\n"
        "    batches = train(RandomExamples((), 9), (), num_workers=2)\n"
        "    next(batches)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    found = run_script(script, tmp_path)
    assert found.returncode == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == ["script.py"]


def test_signals_to_a_whole_job_do_not_cost_the_process_its_batches(tmp_path):
    source = Counted((), 8, lines=tmp_path / "read", seconds=0.02)
    others = set(active_children())
    batches = train(source, (), num_workers=1)
    found = [next(batches)]
    (worker,) = set(active_children()) - others
    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(worker.pid, number)
        found += [next(batches) for _ in range(6)]
    batches.close()
    assert ids(found) == ids(take(train(RandomExamples((), 8), ()), 13))
    assert not worker.is_alive()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_that_exits_the_program_is_reported_like_any_error(num_workers):
    # With exit code 0: grain's queue would wait forever for a worker that ended so.
    with pytest.raises(ExampleError, match="Example 5 could not be read: SystemExit"):
        evaluate(Deadly((), 12, death=sys.exit), (), num_workers=num_workers)
