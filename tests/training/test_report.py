"""Numbers on their way to files."""

import os
import subprocess
import sys

from tests.training.test_processes import ROOT

DEAD = """
import pathlib, sys
import numpy as np
from mtmamba_jax.training.report import Report
from mtmamba_jax.checkpoints.run_lock import LockedRunDirectory
folder = pathlib.Path(sys.argv[1])
report = Report(LockedRunDirectory(folder, folder), start_step=0, steps=1)
report.numbers(0, "constant", {"a": 1.0})
def fail(event):
    raise OSError("disk full")
report._events._ev_writer.write_event = fail
for _ in range(3):  # one ends the thread, the others are more than a pipe holds
    report.image(1, "a", np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8))
report._events._worker.join(60)
try:
    report.numbers(1, "constant", {"a": 1.0})
except OSError as error:
    print(error)
report.close()
print("closed", flush=True)
"""


def test_a_process_ends_after_tensorboards_file_could_not_be_written(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DEAD, str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=120,  # it waited for ever
    )
    assert done.returncode == 0, done.stderr
    assert "TensorBoard's events could not be written" in done.stdout
    assert "closed" in done.stdout
