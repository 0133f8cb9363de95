"""Prepares a dataset in a process of its own that is slow enough to kill, or that kills itself.

NAME SOURCE DATA_DIR WORKERS SECONDS [STEP COUNT]: SECONDS are slept for each example; the process
is killed on the call COUNT of a step.
"""

import os
import signal
import sys
import tarfile
import time

from mtmamba_jax.data_pipelines.builders import encoding
from tests.data_pipelines.dummy_trees import prepare

STEPS = {
    "extract": (tarfile.TarFile, "extract"),
    "link": (os, "link"),
    "delete": (os, "unlink"),  # of shutil.rmtree
}


def kill_at(step, count):
    """Kills this process on a call of a step, before it does anything."""
    owner, name = STEPS[step]
    call, left = getattr(owner, name), count

    def killing(*args, **kwargs):
        nonlocal left
        if step != "delete" or "dir_fd" in kwargs:  # pathlib unlinks too
            left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)

    setattr(owner, name, killing)


def slow_down(seconds):
    """Makes the conversion of an example take longer."""
    encode = encoding.encode

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return encode(*args, **kwargs)

    encoding.encode = slow


name, source, data_dir, workers, seconds, *step = sys.argv[1:]
slow_down(float(seconds))  # workers, which import this module, are slow too
if __name__ == "__main__":
    if step:
        kill_at(step[0], int(step[1]))
    prepare(name, source, data_dir, num_workers=int(workers))
