"""Sets up data worker processes, and explains how one of them died."""

import ctypes
import faulthandler
import re
import signal
import sys

import cv2

from mtmamba_jax.data_pipelines.parallel import exit_with_parent

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_GRACE = 60  # seconds; SLURM's default is 30
_CRASHED = (
    "A library crashed, usually because a file is damaged: the traceback that the worker printed "
    "above shows in which call. Replace that file or leave its example out."
)
_REMEDIES = {  # by name: Windows does not have most of them
    "SIGKILL": "This usually means that memory ran out: use fewer data.num_workers or a smaller "
    "data.cache_gib.",
    "SIGBUS": "The shared memory in /dev/shm is probably full: give it more (for a container: "
    "--shm-size), or use fewer data.num_workers.",
    **dict.fromkeys(("SIGSEGV", "SIGABRT", "SIGILL", "SIGFPE"), _CRASHED),
}


class WorkerError(RuntimeError):
    """A data worker process died; the message gives the signal or exit code and the remedy."""


def worker_death(error: RuntimeError) -> WorkerError | None:
    """Returns what happened if `error` is grain's report that a worker died, else None."""
    found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
    if not found:
        return None
    code = int(found[1])
    if code >= 0:
        return WorkerError(
            f"A data worker ended with exit code {code}. What it printed above says why. A script "
            'that uses workers needs the `if __name__ == "__main__":` guard.'
        )
    names = {number.value: number.name for number in signal.Signals}
    name = names.get(-code, f"signal {-code}")
    remedy = _REMEDIES.get(name, "What it printed above says why.")
    return WorkerError(f"A data worker was killed by {name} (exit code {code}). {remedy}")


def set_up_worker(index: int, count: int) -> None:
    """Prepares a worker process; grain calls this in each one, before its first example."""
    exit_with_parent()
    # Ctrl-C, and SIGTERM from some schedulers, go to all processes of a job. They are for the
    # training process, which may need a batch before it can save, and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    if sys.stderr:
        faulthandler.enable()
    # OpenCV would start one thread per core in each worker.
    cv2.setNumThreads(0)
    # glibc returns the memory of large arrays to the system at once, and mapping it again takes a
    # fifth of a worker's time (26.5 ms per NYUDv2 image, 21.5 ms without). Other C libraries have
    # no mallopt; older releases of glibc accept at most half of their largest heap, 32 MiB.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and any(
        libc.mallopt(_M_MMAP_THRESHOLD, size) for size in (2**30, 2**25)
    ):
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
