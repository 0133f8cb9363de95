"""Work spread over processes, its results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_AHEAD = 2  # calls beyond one for each worker, so that none waits for the next


def available_cores() -> int:
    """Returns how many of the machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def in_order(function: Callable, work: Iterable[tuple], num_workers: int) -> Iterator[Any]:
    """Yields `function(*arguments)` for all of `work`, in order.

    At most `num_workers` + 2 calls are ahead of what was taken: results can be large.

    Args:
      function: that pickles.
      work: the arguments of each call, taken as calls are made.
      num_workers: processes; 0 calls it in this one. They are spawned, so a script that uses them
        needs the `if __name__ == "__main__":` guard.

    Raises:
      RuntimeError: a worker was killed. What a call raises is raised here.
    """
    if num_workers == 0:
        yield from (function(*arguments) for arguments in work)
        return
    # Spawned: a forked process would inherit the locks of threads that it does not have.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=end_with_parent,
    )
    running = collections.deque()
    try:
        for arguments in work:
            running.append(pool.submit(function, *arguments))
            if len(running) == num_workers + _AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"One of {num_workers} worker processes was killed, perhaps for want of memory. Take "
            "fewer: --workers=N."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def end_with_parent(first: Callable[[], object] = lambda: None) -> None:
    """Has this worker end when its parent does: one that is killed leaves it waiting for ever.

    Args:
      first: what is done before.
    """

    def wait():
        multiprocessing.parent_process().join()
        first()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
