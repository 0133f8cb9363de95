import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from multiprocessing import active_children, parent_process

import pytest

from mtmamba_jax.data_pipelines.pipeline import ExampleError, eval_batches
from mtmamba_jax.data_pipelines.workers import WorkerError
from tests.data_pipelines.random_examples import RandomExamples
from tests.data_pipelines.test_pipeline import STILL, evaluate, ids, take, train

ROOT = pathlib.Path(__file__).parents[2]
MEMORY = "for want of memory: take fewer data.num_workers or a smaller data.cache_gib"


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
class TwiceDeadly(RandomExamples):
    """Reading example 5 ends the process, and then reading example 1 another."""

    mark: pathlib.Path = pathlib.Path()

    def __getitem__(self, index):
        if index == 5:
            self.mark.touch()
            die()
        if index == 1:
            while not self.mark.exists():
                time.sleep(0.05)
            time.sleep(0.5)
            die()
        return super().__getitem__(index)


class DeadlyProbability(float):
    """Ends a worker that compares it with what it drew."""

    def __le__(self, other):
        if parent_process():
            die()
        return super().__le__(other)


@dataclasses.dataclass(frozen=True)
class Counted(RandomExamples):
    """Examples that leave a line in a file when they are read, after a while."""

    lines: pathlib.Path = pathlib.Path()
    seconds: float = 0

    def __getitem__(self, index):
        time.sleep(self.seconds)
        with self.lines.open("a") as file:
            print(index, file=file)
        return super().__getitem__(index)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.mark.parametrize("num_workers", [1, 2])
def test_a_worker_killed_while_reading_is_reported_with_the_example(num_workers):
    wanted = f"^A data worker was killed by SIGKILL while it read example 5.*{MEMORY}"
    with pytest.raises(WorkerError, match=wanted):
        evaluate(Deadly((), 12), (), num_workers=num_workers)
    # Many, so that no other worker meets it in the next epoch meanwhile.
    with pytest.raises(WorkerError, match=wanted):
        take(train(Deadly((), 256), (), num_workers=num_workers), 64)


@pytest.mark.parametrize(
    ("death", "message"),
    [
        (leave, "ended with exit code 3 while it read example 5. What it printed above says why"),
        (crash, "by SIGSEGV while it read example 5. A library crashed .*leave out that example"),
        (fill_shared_memory, "by SIGBUS while it read example 5. .* /dev/shm is full"),
    ],
)
def test_how_a_worker_died_decides_what_to_do(death, message):
    with pytest.raises(WorkerError, match=message):
        evaluate(Deadly((), 8, death=death), (), num_workers=1)


def test_a_worker_killed_while_transforming_is_reported_with_the_examples_id():
    source = RandomExamples((), 12)
    first = ids(take(train(source, ()), 1))[0]
    deadly = dataclasses.replace(STILL, flip_probability=DeadlyProbability(0.5))
    with pytest.raises(WorkerError, match=f"SIGKILL while it transformed example '{first}'"):
        take(train(source, (), augment=deadly, num_workers=1), 1)


def test_all_workers_that_died_are_named(tmp_path):
    source = TwiceDeadly((), 16, mark=tmp_path / "mark")
    wanted = "^2 data workers died: one while it read example 1, one while it read example 5. The "
    with pytest.raises(WorkerError, match=f"{wanted}first to be missed was killed by SIGKILL"):
        evaluate(source, (), num_workers=2)


def test_a_worker_that_died_idle_had_no_example_in_work(tmp_path):
    batches = train(Counted((), 8, lines=tmp_path / "read"), (), num_workers=1)
    others = set(active_children())
    next(batches)
    (worker,) = set(active_children()) - others
    read = 0
    while read != (read := (tmp_path / "read").stat().st_size):  # until its buffers are full
        time.sleep(1)
    worker.kill()
    with pytest.raises(WorkerError, match="killed by SIGKILL between two examples"):
        take(batches, 20)
    batches.close()


def test_a_script_without_the_guard_is_told_of_it(tmp_path):
    script = (
        "from tests.data_pipelines.test_pipeline import RandomExamples, train\n"
        "next(train(RandomExamples((), 9), (), num_workers=1))\n"
    )
    found = run_script(script, tmp_path)
    assert "WorkerError: A data worker ended with exit code 1 before its first" in found.stderr
    assert 'needs the `if __name__ == "__main__":` guard' in found.stderr


def run_script(script, folder):
    """Runs a script until it and all that it started have ended."""
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


def test_workers_of_a_process_that_was_killed_end_and_leave_no_file(tmp_path):
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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_all_of_a_job_does_not_cost_the_process_its_batches(number, tmp_path):
    source = Counted((), 8, lines=tmp_path / "read", seconds=0.1)
    others = set(active_children())
    batches = train(source, (), num_workers=1)
    found = [next(batches)]
    (worker,) = set(active_children()) - others
    os.kill(worker.pid, number)
    found += [next(batches) for _ in range(6)]
    batches.close()
    assert ids(found) == ids(take(train(RandomExamples((), 8), ()), 7))
    assert not worker.is_alive()


def test_closing_leaves_no_file(temporary):
    batches = train(RandomExamples((), 8), (), num_workers=2)
    next(batches)
    assert len(list(temporary.glob("mtmamba_jax_workers_*"))) == 1
    batches.close()
    assert list(temporary.iterdir()) == []


def test_closing_after_a_death_leaves_no_file(temporary):
    batches = eval_batches(Deadly((), 12), (), size=(20, 28), batch_size=4, num_workers=2)
    with pytest.raises(WorkerError):
        list(batches)
    batches.close()
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_source_that_leaves_the_program_is_reported_like_any_error(num_workers):
    # With exit code 0: the workers' queue would wait for ever for one that ended so.
    with pytest.raises(ExampleError, match="Example 5 could not be read: SystemExit"):
        evaluate(Deadly((), 12, death=sys.exit), (), num_workers=num_workers)
