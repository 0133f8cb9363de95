"""What is printed beside the error of a checkpoint that cannot be read, silenced."""

from __future__ import annotations

import functools
import logging
import sys
import warnings


@functools.cache
def quiet_orbax() -> None:
    """Leaves out what is said of the other arrays where Orbax cannot read one.

    Its event loop ends with the first error. Then TensorStore's threads find the loop closed, and
    asyncio says that nobody asked for the others' results: a traceback for each of a thousand
    arrays, also some time after the error was raised and handled.
    """
    told = sys.unraisablehook

    def tell(raised) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            told(raised)

    sys.unraisablehook = tell
    logging.getLogger("asyncio").addFilter(_is_of_others)
    warnings.filterwarnings("ignore", r"coroutine 'Store\.\w+' was never awaited", RuntimeWarning)


def _is_of_others(record: logging.LogRecord) -> bool:
    text = record.getMessage()
    of_reading = "orbax" in text or "tensorstore" in text
    return not ("never retrieved" in text and of_reading)
