"""Formats what messages and reports share: suggestions, shortened lists, numbers with units."""

import difflib
import pathlib
import shlex
import sys
from collections.abc import Iterable, Sequence

from tabulate import tabulate

GIB = 2**30


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns " Did you mean 'x'?" for the valid name closest to `name`, or ""."""
    written = {each.lower(): each for each in valid}
    close = difflib.get_close_matches(str(name).lower(), written, n=1, cutoff=0.5)
    return f" Did you mean {written[close[0]]!r}?" if close else ""


def check_name(what: str, name: str, valid: Iterable[str]) -> None:
    """Raises a ValueError that lists the valid names and suggests the closest, unless valid."""
    valid = list(valid)
    if name not in valid:
        raise ValueError(
            f"Unknown {what} {name!r}.{nearest(name, valid)} Valid: {', '.join(valid)}."
        )


def program_name() -> str:
    """Returns how this process was called, for suggested commands."""
    name = pathlib.Path(sys.argv[0]).name
    if name == "__main__.py":
        return "python -m mtmamba_jax"
    return f"python {name}" if name.endswith(".py") else "mtmamba"


def command(*arguments: str) -> str:
    """Returns a command of this program, quoted for the shell."""
    return f"{program_name()} {shlex.join(arguments)}"


def counted(count: int, noun: str) -> str:
    """Returns "1 image" or "2 images"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"


def printable(name: str) -> str:
    """Returns a name on one line; one with letters that do not show, such as odd spaces, quoted."""
    return name if name.isprintable() else ascii(name)


def shortened(names: Sequence[object], most: int = 8) -> str:
    """Returns "a, b, c and 5 more": the first `most` names and how many are left."""
    text = ", ".join(printable(str(name)) for name in names[:most])
    return f"{text} and {len(names) - most} more" if len(names) > most else text


def bulleted(names: Sequence[str], most: int = 20) -> str:
    """Returns names on lines of their own: the first `most` and how many are left."""
    more = [f"and {len(names) - most} more"] if len(names) > most else []
    return "".join(f"\n    {name}" for name in [*names[:most], *more])


def markdown_table(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, left: int = 1
) -> str:
    """Returns a Markdown table whose cells are padded to line up in a terminal too.

    The first `left` columns are aligned to the left; the others hold numbers.
    """
    align = ("left",) * left + ("right",) * (len(columns) - left)
    return tabulate(rows, columns, tablefmt="pipe", colalign=align, disable_numparse=True)


def first_line(error: BaseException) -> str:
    """Returns an error's type and the beginning of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def short(number: float) -> str:
    """Formats a number with about four significant digits, at most three decimals."""
    return f"{number:.{3 if number < 10 else 2 if number < 100 else 1 if number < 1000 else 0}f}"


def percent(share: float | None) -> str:
    """Formats a share as whole percents, None as "-"."""
    return "-" if share is None else f"{share:.0%}"


def gib(count: float | None) -> str:
    """Formats bytes as GiB, None as "-"."""
    return "-" if count is None else f"{count / GIB:.3f}"
