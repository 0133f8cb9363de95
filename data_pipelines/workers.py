"""Data workers: how they start, and what is said of one that dies.

A worker notes what it is doing in its slot of a small file, which outlives it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import functools
import mmap
import multiprocessing
import os
import pathlib
import re
import signal
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator

import cv2

from mtmamba_jax.data_pipelines.parallel import end_with_parent

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
# A slot: the worker's process id; which of two texts holds (1 or 2; 0: none); the texts, ended by
# a zero. A new text goes to the place that does not hold, so that one that holds is always whole.
_PROCESS, _HOLDS, _HEAD, _TEXT = struct.Struct("=q"), 8, 16, 504
_SLOT = _HEAD + 2 * _TEXT
_GRACE = 60  # seconds; SLURM's are 30 by default
_LOOK_ABOVE = "What it printed above says why."
_CRASHED = (
    "A library crashed there, mostly over a damaged file: what the worker printed above says in "
    "which call. Replace or leave out that example."
)
_REMEDIES = {  # by name: Windows lacks most of them
    "SIGKILL": "The system does so mostly for want of memory: take fewer data.num_workers or "
    "a smaller data.cache_gib.",
    "SIGBUS": "Mostly the shared memory in /dev/shm is full: give it more (of a container: "
    "--shm-size), or take fewer data.num_workers.",
    "SIGSEGV": _CRASHED,
    "SIGABRT": _CRASHED,
    "SIGILL": _CRASHED,
    "SIGFPE": _CRASHED,
}


class WorkerError(RuntimeError):
    """A data worker died; the message names the example it was working on and what to do."""


class Notes:
    """What the workers of one pipeline are doing, as their own process sees it.

    Args:
      count: of workers.
    """

    def __init__(self, count: int):
        file, path = tempfile.mkstemp(prefix="mtmamba_jax_workers_")
        with open(file, "wb") as opened:
            opened.write(bytes(_SLOT * count))  # so that there is room on the disk
        self._path = pathlib.Path(path)

    def starter(self) -> Callable[[int, int], None]:
        """Returns what worker `index` of `count` is to call when it starts."""
        return functools.partial(_start, self._path)

    def death(self, error: RuntimeError) -> WorkerError | None:
        """Returns what happened if `error` is grain's word that a worker died."""
        found = re.search(r"terminated unexpectedly with exit code (-?\d+)", str(error))
        if not found:
            return None
        # Takes leave of children that ended, so that they exist no longer. Its answer cannot be
        # trusted: it lists one that a thread of grain's takes leave of at the same time.
        multiprocessing.active_children()
        try:
            slots = [_read(slot) for slot in _slots(self._path.read_bytes())]
        except FileNotFoundError:  # somebody tidied up the folder for temporary files
            slots = []
        works = [work for process, work in slots if work and not _exists(process)]
        started = all(process for process, _ in slots)
        return WorkerError(_describe(int(found[1]), works, started))

    def close(self) -> None:
        """Removes the file."""
        self._path.unlink(missing_ok=True)


def _slots(content: bytes) -> list[bytes]:
    return [content[start : start + _SLOT] for start in range(0, len(content), _SLOT)]


def _read(slot: bytes) -> tuple[int, str]:
    """Returns a worker's process id, 0 before it started, and what it is doing, if anything."""
    (process,) = _PROCESS.unpack_from(slot)
    if not slot[_HOLDS]:
        return process, ""
    text = slot[_HEAD + _TEXT * (slot[_HOLDS] - 1) :][:_TEXT]
    return process, text.partition(b"\0")[0].decode(errors="ignore")


def _exists(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's by now
        return False
    return True


def _describe(code: int, works: list[str], started: bool) -> str:
    """Returns the message of a death.

    Args:
      code: exit code of the worker that was noticed, or minus the signal.
      works: what the dead workers were doing.
      started: whether all workers had.
    """
    how, remedy = f"ended with exit code {code}", _LOOK_ABOVE
    if code < 0:
        names = {number.value: number.name for number in signal.Signals}
        name = names.get(-code, f"signal {-code}")
        how, remedy = f"was killed by {name}", _REMEDIES.get(name, remedy)
    if len(works) > 1:
        whiles = ", ".join(f"one while it {work}" for work in works)
        return f"{len(works)} data workers died: {whiles}. The first to be missed {how}. {remedy}"
    if works:
        return f"A data worker {how} while it {works[0]}. {remedy}"
    if started:
        return f"A data worker {how} between two examples. {remedy}"
    return (
        f"A data worker {how} before its first example. {remedy} A script that uses workers needs "
        'the `if __name__ == "__main__":` guard.'
    )


class _Slot:
    """A worker's place for its notes."""

    def __init__(self, path: pathlib.Path, index: int):
        with path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), 0)
        self._start = _SLOT * index
        _PROCESS.pack_into(self._memory, self._start, os.getpid())

    def write(self, work: str) -> None:
        place = 2 if self._memory[self._start + _HOLDS] == 1 else 1
        text = work.encode()[: _TEXT - 1] + b"\0"
        start = self._start + _HEAD + _TEXT * (place - 1)
        self._memory[start : start + len(text)] = text
        self._memory[self._start + _HOLDS] = place

    def clear(self) -> None:
        self._memory[self._start + _HOLDS] = 0


_slot: _Slot | None = None  # in a worker, its own


@contextlib.contextmanager
def noting(work: str) -> Iterator[None]:
    """Notes what this worker is doing meanwhile, as a verb in the past; elsewhere does nothing."""
    if _slot is None:
        yield
        return
    _slot.write(work)
    try:
        yield
    finally:
        _slot.clear()


def _start(notes: pathlib.Path, index: int, count: int) -> None:
    global _slot
    _slot = _Slot(notes, index)
    end_with_parent(lambda: notes.unlink(missing_ok=True))
    # Ctrl-C, and SIGTERM from some schedulers, go to all processes of a job. They are for the
    # training process, which may need a batch before it can save, and then ends its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(_GRACE))
    if sys.stderr:
        faulthandler.enable()
    # OpenCV would start a thread for each core in each worker.
    cv2.setNumThreads(0)
    # glibc gives large arrays' memory back at once, and faulting it in anew takes a fifth of a
    # worker's time (26.5 ms an image of NYUDv2, 21.5 without). Other C libraries have no mallopt.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and any(
        # Older ones take no more than half of their largest heap, 32 MiB.
        libc.mallopt(_M_MMAP_THRESHOLD, size)
        for size in (2**30, 2**25)
    ):
        libc.mallopt(_M_TRIM_THRESHOLD, 2**30)
