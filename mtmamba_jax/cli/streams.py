"""Keeps commands running when their standard streams are closed, or nobody reads them."""

import errno
import io
import os
import sys
from typing import Any

_NOBODY_READS = (errno.EPIPE, errno.EIO)  # `| head` has ended; the terminal is gone


def open_streams() -> None:
    """Makes it safe to print, whatever the shell did with the standard streams.

    Closed ones (`2>&-`) are opened to the null device: libraries expect all three, and the next
    file that is opened would get the number of the missing one, and what is written to it.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            number = os.open(os.devnull, os.O_RDWR)  # the lowest free number: that of the stream
            os.set_inheritable(number, True)
            setattr(sys, name, open(number, mode))  # noqa: SIM115 (open until the process ends)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is getattr(sys, f"__{name}__"):  # not a notebook's or a test's
            binary: Any = _Output(stream.fileno(), "w", closefd=False)
            binary.drops_all = name == "stderr"  # notes; errors are in the exit code too
            if not stream.write_through:  # as with `python -u`
                binary = io.BufferedWriter(binary)
            wrapped = io.TextIOWrapper(
                binary,
                encoding=stream.encoding,
                errors="backslashreplace",  # file names may hold what the encoding does not
                line_buffering=stream.line_buffering,
                write_through=stream.write_through,
            )
            setattr(sys, name, wrapped)


class _Output(io.FileIO):
    """A stream that drops what nobody reads: the work of a command is in its files."""

    drops_all = False

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in _NOBODY_READS and not self.drops_all:
                self.drops_all = True  # Python writes the same again as it exits
                raise OSError(
                    f"The output could not be written ({error.strerror}). Send it to a place with "
                    "room and run the same command again."
                ) from error
            return len(memoryview(data))
