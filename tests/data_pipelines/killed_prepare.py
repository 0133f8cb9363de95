"""Prepares a dataset in a process that is slow enough to be killed, or that kills itself.

Arguments: NAME SOURCE DATA_DIR WORKERS SECONDS [STEP COUNT]. It sleeps SECONDS per example and
kills itself at call COUNT of STEP.
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
    "delete": (os, "unlink"),  # called by shutil.rmtree
}


def kill_at(step, count):
    """Makes the process kill itself instead of making call number `count` of a step."""
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
    """Makes the conversion of each example take longer."""
    encode = encoding.encode

    def slow(*args, **kwargs):
        time.sleep(seconds)
        return encode(*args, **kwargs)

    encoding.encode = slow


name, source, data_dir, workers, seconds, *step = sys.argv[1:]
slow_down(float(seconds))  # also in workers, which import this module
if __name__ == "__main__":
    if step:
        kill_at(step[0], int(step[1]))
    prepare(name, source, data_dir, num_workers=int(workers))
