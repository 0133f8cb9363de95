"""Commands whose standard streams are closed, full, or read by nobody."""

import os
import subprocess
import sys

import pytest

from mtmamba_jax.checkpoints.run_directory import RunDirectory
from tests.training.test_processes import ROOT

# Prints more than a pipe holds, then writes a file.
COMMAND = """
import sys, types
from mtmamba_jax.cli.main import main

path = sys.argv[1]

def run(options):
    with open(path, "w") as file:
        print("printed" * 100_000)
        print(file=sys.stderr, end="", flush=True)
        file.write(f"number {file.fileno()}")
    return 3

sys.modules["mtmamba_jax.cli.train"] = types.SimpleNamespace(run=run)
sys.exit(main(["train"]))
"""


def run(redirection, folder, *command):
    """Runs a command in a shell; returns its exit code and what arrived."""
    found = subprocess.run(
        [
            "bash",
            "-c",
            f'("$@"; echo $? > "$CODE") {redirection}',
            "bash",
            sys.executable,
            *command,
        ],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "CODE": str(folder / "code")},
        capture_output=True,
        text=True,
        timeout=240,
    )
    return int((folder / "code").read_text()), found.stdout + found.stderr


@pytest.mark.parametrize(
    "redirection",
    [
        ">&-", "2>&-", "<&-", "<&- >&- 2>&-", "| true", "| head -c 3", "2>&1 >/dev/null | true",
        "2>&1 | true", "2>&- | true",
    ],
)  # fmt: skip
def test_a_command_does_its_work_if_nobody_reads_what_it_prints(redirection, tmp_path):
    code, output = run(redirection, tmp_path, "-c", COMMAND, str(tmp_path / "file"))
    assert code == 3
    # Files do not get the numbers of closed streams: libraries write to those.
    assert int((tmp_path / "file").read_text().removeprefix("number ")) > 2
    assert "Broken pipe" not in output
    assert "Exception" not in output


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_output_that_a_full_disk_does_not_take_is_one_message(tmp_path):
    code, output = run(">/dev/full", tmp_path, "-c", COMMAND, str(tmp_path / "file"))
    assert code == 1
    assert "error: The output could not be written (No space left on device)." in output
    assert output.count("\n") == 1


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_notes_that_a_full_disk_does_not_take_are_dropped(tmp_path):
    command = COMMAND.replace('end="", flush=True', "flush=True")
    code, output = run("2>/dev/full | tail -c 8", tmp_path, "-c", command, str(tmp_path / "file"))
    assert (code, output) == (3, "printed\n")
    assert (tmp_path / "file").read_text().startswith("number")


def test_training_needs_no_standard_streams(tmp_path):
    command = ("-m", "tests.training.killed_run", str(tmp_path / "run"), "pixel")
    code, output = run("2>&- | true", tmp_path, *command, "train.steps=2", "train.eval_every=2")
    assert (code, output) == (0, "")
    assert RunDirectory(tmp_path / "run").is_finished(2)


# What Orbax and TensorBoard do when the disk is full, some of it once for each array.
SAVES = """
import logging, sys, types
import tensorboardX
from mtmamba_jax.cli.main import main

class Array:
    def __del__(self):
        raise RuntimeError("Event loop is closed")

def fail():
    raise OSError("the disk is full")

def run(options):
    Array()
    writer = tensorboardX.FileWriter(sys.argv[1]).event_writer
    writer._worker._record_writer.write_event = lambda event: fail()
    writer.add_event("an event")
    writer._worker.join()
    writer._closed = True
    logging.getLogger("asyncio").error("Task exception was never retrieved")
    logging.getLogger("absl").error("Failed to run 5 Handler Commit operations")
    fail()

sys.modules["mtmamba_jax.cli.train"] = types.SimpleNamespace(run=run)
sys.exit(main(["train"]))
"""


def test_an_error_of_several_threads_is_printed_once(tmp_path):
    found = run("", tmp_path, "-c", SAVES, str(tmp_path))
    assert found == (1, "error: the disk is full\n")


THREAD = """
import sys, threading, types
from mtmamba_jax.cli.main import main

def fail():
    raise OSError("the network is gone")

def run(options):
    thread = threading.Thread(target=fail)
    thread.start()
    thread.join()
    return 0

sys.modules["mtmamba_jax.cli.train"] = types.SimpleNamespace(run=run)
sys.exit(main(["train"]))
"""


def test_errors_of_other_threads_are_shown(tmp_path):
    assert "OSError: the network is gone" in run("", tmp_path, "-c", THREAD)[1]


UNBUFFERED = """
import sys, time, types
from mtmamba_jax.cli.main import main

def run(options):
    print("at once")
    sys.stdout.write("and this")
    time.sleep(100)

sys.modules["mtmamba_jax.cli.train"] = types.SimpleNamespace(run=run)
main(["train"])
"""


def test_unbuffered_output_arrives_at_once():
    process = subprocess.Popen(
        [sys.executable, "-u", "-c", UNBUFFERED], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        assert process.stdout.read(len("at once\nand this")) == "at once\nand this"
    finally:
        process.kill()
