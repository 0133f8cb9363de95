"""Maps a function over work in worker processes, with results in order."""

import collections
import concurrent.futures
import multiprocessing
import os
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

_AHEAD = 2  # calls beyond one per worker, so that no worker waits for its next one


def available_cores() -> int:
    """Returns how many of the machine's cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def worker_count(requested: int | None) -> int:
    """Returns the requested number of worker processes; for None, one per core.

    Raises:
      ValueError: If the requested number is negative.
    """
    if requested is None:
        return available_cores()
    if requested < 0:
        raise ValueError(f"--workers must be 0 or more, got {requested}.")
    return requested


def in_order(
    function: Callable, work: Iterable[tuple], num_workers: int
) -> Generator[Any, None, None]:
    """Yields `function(*arguments)` for all `arguments` in `work`, in order.

    At most `num_workers` + 2 results are unconsumed at a time, because they can be large.

    Args:
      function: A picklable function.
      work: Arguments of each call, consumed as calls are made.
      num_workers: Number of worker processes; 0 calls the function in this process. Workers are
        spawned, so a script that uses them needs the `if __name__ == "__main__":` guard.

    Raises:
      RuntimeError: If a worker was killed. Exceptions of `function` are raised as they are.
    """
    if num_workers == 0:
        yield from (function(*arguments) for arguments in work)
        return
    # Spawned: a forked process would inherit locks held by threads that it does not have.
    context = multiprocessing.get_context("spawn")
    pool = concurrent.futures.ProcessPoolExecutor(num_workers, context, exit_with_parent)
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
            f"One of {num_workers} worker processes was killed, perhaps because memory ran out. "
            "Use fewer: --workers=N."
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


def exit_with_parent() -> None:
    """Makes this worker exit when its parent does; one that was killed would leave it waiting."""
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait():
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
