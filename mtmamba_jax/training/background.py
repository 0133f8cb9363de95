"""Work that is done beside training, one piece after the other."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable


class Background:
    """A thread for work. What a piece of it raises is raised by a later call.

    Args:
      most: pieces that may be waiting; giving one more waits for the first.
    """

    def __init__(self, most: int):
        self._most = most
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._given: collections.deque[concurrent.futures.Future] = collections.deque()

    def give(self, work: Callable[[], object]) -> None:
        """Has some work done."""
        self.check()
        while len(self._given) > self._most:
            self._given.popleft().result()
        self._given.append(self._thread.submit(work))

    def check(self) -> None:
        """Raises the error of work that is done by now."""
        while self._given and self._given[0].done():
            self._given.popleft().result()

    def wait(self) -> None:
        """Waits until all is done."""
        while self._given:
            self._given.popleft().result()

    def close(self) -> None:
        """Waits until all is done and ends the thread."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
