"""Names and errors in messages: the one that was probably meant, lists that stay short."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence

SHOWN = 20  # names of a list in a message


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the valid name nearest to `name`, or ""."""
    written = {each.lower(): each for each in valid}
    close = difflib.get_close_matches(str(name).lower(), written, n=1, cutoff=0.5)
    return f" Did you mean {written[close[0]]!r}?" if close else ""


def check_name(what: str, name: str, valid: Iterable[str]) -> None:
    """Checks that `name` is one of `valid`.

    Raises:
      ValueError: it is not; the message gives the nearest and all valid ones.
    """
    valid = list(valid)
    if name not in valid:
        raise ValueError(
            f"Unknown {what} {name!r}.{nearest(name, valid)} Valid: {', '.join(valid)}."
        )


def listed(names: Sequence[str]) -> str:
    """Returns names as lines of a message, the first `SHOWN` and how many more there are."""
    more = [f"and {len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return "".join(f"\n    {name}" for name in [*names[:SHOWN], *more])


def first_line(error: Exception) -> str:
    """Returns an error's kind and the beginning of its text."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
