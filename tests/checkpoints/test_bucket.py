"""A work directory in a bucket: gs:// by gcsfs and TensorStore, to a server on this machine."""

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from tests.bucket import BUCKET, serve_bucket
from tests.training.test_processes import ROOT, losses, run, start

STEPS = ("train.steps=60", "train.eval_every=60", "train.checkpoint_every=60")
READ = """
import json, sys
from etils import epath
from mtmamba_jax.training.report import read_metrics
from mtmamba_jax.checkpoints.load import load_run
from mtmamba_jax.checkpoints import load
from tests import tiny
from tests.pixel_model import build_pixel_model
load.abstract_build = build_pixel_model
workdir = epath.Path(sys.argv[1])
names = sorted(path.name for path in workdir.iterdir())
print(json.dumps([read_metrics(workdir), names, load_run(workdir, "best").step]))
"""

DAMAGE = """
import sys
import gcsfs
files = gcsfs.GCSFileSystem()
for path in files.find(sys.argv[1]):
    files.pipe(path, b"")
"""


@pytest.fixture
def bucket(monkeypatch):
    with serve_bucket() as environment:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        yield f"gs://{BUCKET}/runs/a"


def read(workdir):
    """Returns what lies in a bucket: the metrics' lines, names, the step of the best checkpoint."""
    return json.loads(call(READ, workdir).splitlines()[-1])


def call(code, place):
    command = [sys.executable, "-c", code, place]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, check=True
    ).stdout


def until(process, step):
    """Waits until a run has logged a step."""
    for line in process.stdout:
        if line.startswith(f"step {step}/"):
            return
    raise AssertionError(f"it ended before step {step}")


def test_a_run_stopped_in_a_bucket_resumes_there(bucket):
    (stopped,) = start(bucket, (1, 1), *STEPS, "train.checkpoint_every=3")
    until(stopped, 4)
    stopped.send_signal(signal.SIGTERM)
    step = int(re.search(r"after step (\d+), which is saved", stopped.communicate()[0])[1])
    output = run(bucket, (1, 1), *STEPS)[0]
    assert f"Resuming from step {step}" in output
    lines, names, best = read(bucket)
    assert {"best", "latest", "config.json", "metrics.jsonl", "panels", "tensorboard"} <= {*names}
    assert [line["step"] for line in lines if line["kind"] == "train"] == [*range(1, 61)]
    assert best == 60


@pytest.mark.slow
def test_a_run_killed_in_a_bucket_resumes_there_and_equals_that_of_a_folder(bucket, tmp_path):
    often = "train.checkpoint_every=3"
    (stopped,) = start(bucket, (1, 1), *STEPS, often)
    until(stopped, 4)
    stopped.send_signal(signal.SIGTERM)
    step = int(re.search(r"after step (\d+), which is saved", stopped.communicate()[0])[1])
    (killed,) = start(bucket, (1, 1), *STEPS, often)
    until(killed, step + 4)  # of what it saves from then on some may be half there
    killed.kill()
    killed.wait()
    output = run(bucket, (1, 1), *STEPS)[0]
    assert int(re.search(r"Resuming from step (\d+)", output)[1]) >= step
    run(tmp_path, (1, 1), *STEPS)
    lines, names, best = read(bucket)
    assert {"best", "latest", "config.json", "metrics.jsonl", "panels", "tensorboard"} <= {*names}
    found = {line["step"]: line["loss"] for line in lines if line["kind"] == "train"}
    assert found == losses(tmp_path)
    assert best == 60
    again = run(bucket, (2, 1), *STEPS)  # finished; with two processes
    assert "Resuming from step 60" in again[0]
    for kind in ("latest", "best"):
        call(DAMAGE, f"{bucket}/{kind}/60")
        output = run(bucket, (2, 1), *STEPS)[0]
        assert f"warning: checkpoint {bucket}/{kind}/60 cannot be read" in output
    _, names, best = read(bucket)
    assert {"unreadable_latest_60", "unreadable_best_60"} <= {*names}
    assert best == 60


def test_a_bucket_that_is_not_there_is_named(bucket):
    (started,) = start("gs://elsewhere/runs/a", (1, 1), *STEPS)
    output = started.communicate(timeout=240)[0]
    assert started.returncode != 0
    assert "gs://elsewhere/runs/a cannot be written" in output
    assert "Does the bucket exist" in output
