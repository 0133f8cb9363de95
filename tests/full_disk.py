"""A disk that is full, as far as this process can tell."""

import contextlib
import resource


@contextlib.contextmanager
def largest_file(size):
    """Writing more than `size` bytes to a file fails in Python and in libraries, after `size`."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
