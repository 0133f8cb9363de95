"""Work that is done beside training, one piece after the other."""

from __future__ import annotations

import collections
import concurrent.futures
from collections.abc import Callable


class Background:
    """A thread for work. Once a piece of it fails no other is done, and calls raise its error.

    Args:
      most: pieces that may be waiting; giving one more waits for the first.
    """

    def __init__(self, most: int):
        self._most = most
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._given: collections.deque[concurrent.futures.Future] = collections.deque()
        self._error: Exception | None = None

    def give(self, work: Callable[[], object]) -> None:
        """Has some work done."""
        while len(self._given) > self._most:
            self._given.popleft().result()
        self.check()
        self._given.append(self._thread.submit(self._do, work))

    def _do(self, work: Callable[[], object]) -> None:
        if self._error is None:
            try:
                work()
            except Exception as error:
                self._error = error

    def check(self) -> None:
        """Raises the error of work that has failed by now."""
        while self._given and self._given[0].done():
            self._given.popleft()
        if self._error is not None:
            raise self._error

    def is_busy(self) -> bool:
        """Whether some work is not done."""
        return any(not work.done() for work in self._given)

    def wait(self) -> None:
        """Waits until all is done."""
        concurrent.futures.wait(self._given)
        self.check()

    def close(self) -> None:
        """Waits until all is done and ends the thread."""
        self._thread.shutdown()
        self.check()
