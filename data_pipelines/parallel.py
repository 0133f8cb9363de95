"""Work spread over processes, its results in order."""

from __future__ import annotations

import collections
import concurrent.futures
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from typing import Any


def in_order(function: Callable, work: Sequence[tuple], num_workers: int) -> Iterator[Any]:
    """Yields `function(*arguments)` for all of `work`, in order; a few are made ahead.

    Args:
      function: that pickles.
      work: the arguments of each call.
      num_workers: processes; 0 calls it in this one. They are spawned, so a script that uses them
        needs the `if __name__ == "__main__":` guard.
    """
    if num_workers == 0:
        yield from (function(*arguments) for arguments in work)
        return
    # Spawned: a forked process would inherit the locks of threads that it does not have.
    pool = concurrent.futures.ProcessPoolExecutor(
        num_workers, mp_context=multiprocessing.get_context("spawn")
    )
    running = collections.deque()
    try:
        for arguments in work:
            running.append(pool.submit(function, *arguments))
            if len(running) == 4 * num_workers:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
