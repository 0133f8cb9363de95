"""An error of one process ends the others as well."""

import os
import subprocess
import sys
import time

import pytest

from mtmamba_jax import config as configuration
from mtmamba_jax.training import state
from mtmamba_jax.training.train import train
from tests.pixel_model import build_pixel_model
from tests.training.faulty_process import SHORT
from tests.training.test_processes import ROOT, free_port


def end(workdir, fault):
    """Runs two processes to their end and returns their exit codes, what they said, seconds."""
    port, begun = free_port(), time.monotonic()
    started = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "tests.training.faulty_process"),
                *(str(port), str(index), str(workdir), fault),
            ],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=280)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    codes = [process.returncode for process in started]
    return codes, outputs, time.monotonic() - begun


@pytest.mark.parametrize(
    ("fault", "index", "code", "message"),
    [
        pytest.param("data", 1, 2, "/nowhere is not a folder", marks=pytest.mark.slow),
        ("workdir", 1, 2, "of process 1 is not that of the first. All processes need the same one"),
        pytest.param("room", 0, 1, "A checkpoint needs about", marks=pytest.mark.slow),
    ],
)
def test_an_error_before_the_first_step_ends_all_processes_at_once(
    fault, index, code, message, tmp_path
):
    codes, outputs, _ = end(tmp_path / "run", fault)
    assert codes[index] == code, outputs
    assert message in outputs[index]
    assert codes[1 - index] == 1, outputs
    assert "Another process of this run failed at this point" in outputs[1 - index]


@pytest.mark.slow
def test_a_checkpoint_that_one_process_cannot_read_is_renamed_by_all(tmp_path, monkeypatch):
    workdir = tmp_path / "run"
    monkeypatch.setattr(state, "build", build_pixel_model)
    train(configuration.load("synthetic", SHORT), workdir)
    codes, outputs, _ = end(workdir, "reading")
    assert codes == [0, 0], outputs
    assert (
        f"checkpoint {workdir}/latest/4 cannot be read (RuntimeError: another process cannot)"
        in (outputs[0])
    )
    assert "Resuming from step 2" in outputs[0]
    assert (workdir / "unreadable_latest_4").is_dir()


@pytest.mark.slow
def test_a_later_error_ends_its_process_with_its_message_and_then_the_others(tmp_path):
    codes, outputs, seconds = end(tmp_path / "run", "example")
    assert codes[1] == 2, outputs
    assert "could not be read: OSError: this host's disk is gone" in outputs[1]
    assert codes[0] != 0
    assert "step 1/200" in outputs[0]
    # They notice after 100 s at the latest; leaving in the usual way takes 300.
    assert seconds < 200
