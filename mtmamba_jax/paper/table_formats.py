"""Formats tables of text and of means with standard deviations as Markdown, CSV or LaTeX."""

import csv
import dataclasses
import io
import re
import statistics
from collections.abc import Sequence

from mtmamba_jax.messages import markdown_table


@dataclasses.dataclass(frozen=True)
class Spread:
    """A quantity measured several times.

    Attributes:
      values: The measurements, at least one.
      digits: Number of decimals.
      sign: Whether positive means have a sign too.
    """

    values: tuple[float, ...]
    digits: int = 2
    sign: bool = False

    @property
    def mean(self) -> str:
        """The mean, formatted."""
        return f"{statistics.fmean(self.values):{'+' if self.sign else ''}.{self.digits}f}"

    @property
    def deviation(self) -> str:
        """The sample standard deviation, formatted; empty for a single value."""
        return f"{statistics.stdev(self.values):.{self.digits}f}" if len(self.values) > 1 else ""

    def __str__(self) -> str:
        return f"{self.mean} ± {self.deviation}" if self.deviation else self.mean


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
      columns: Column titles.
      rows: Cells of each row, one per column.
      left: Number of leading columns aligned to the left; the others hold numbers.
      title: Title of the table, or "".
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Spread]]
    left: int = 1
    title: str = ""


def markdown(table: Table) -> str:
    """Returns the table as GitHub Markdown."""
    columns, *rows = ([_escape_stars(str(c)) for c in row] for row in (table.columns, *table.rows))
    above = f"**{table.title}**\n\n" if table.title else ""
    return above + markdown_table(columns, rows, left=table.left)


def comma_separated(table: Table) -> str:
    """Returns the table as CSV; a column of means is followed by one of standard deviations."""
    pairs = [[(title, f"{title} deviation") for title in table.columns]]
    for row in table.rows:
        pairs.append([(c.mean, c.deviation) if isinstance(c, Spread) else (c, "") for c in row])
    places = range(len(table.columns))
    widths = [1 + any(isinstance(row[i], Spread) for row in table.rows) for i in places]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for row in pairs:
        writer.writerow(
            cell for pair, width in zip(row, widths, strict=True) for cell in pair[:width]
        )
    return (f"# {table.title}\n" if table.title else "") + text.getvalue().rstrip("\n")


def latex(table: Table) -> str:
    """Returns the table as a LaTeX `tabular`, which needs no package."""
    layout = "l" * table.left + "r" * (len(table.columns) - table.left)
    lines = [" & ".join(map(_escape, cells)) + r" \\" for cells in (table.columns, *table.rows)]
    above = [f"% {table.title}"] if table.title else []
    begin, end = rf"\begin{{tabular}}{{{layout}}}", r"\end{tabular}"
    return "\n".join([*above, begin, r"\hline", lines[0], r"\hline", *lines[1:], r"\hline", end])


FORMATS = {"markdown": markdown, "csv": comma_separated, "latex": latex}
"""Functions that format a table, by the name of the format."""

_LATEX = {"->": r"$\to$", "±": r"$\pm$", "*": r"$\times$", "↑": r"$\uparrow$", "↓": r"$\downarrow$"}


def _escape_stars(cell: str) -> str:
    """Escapes stars if there are several, which Markdown would read as emphasis."""
    return cell.replace("*", r"\*") if cell.count("*") > 1 else cell


def _escape(cell: str | Spread) -> str:
    """Escapes LaTeX's special characters and sets signed numbers in math mode."""
    text = re.sub(r"([#%&_$])", r"\\\1", str(cell))
    for sign, command in _LATEX.items():
        text = text.replace(sign, command)
    return re.sub(r"^([+-][\d.]+)", r"$\1$", text)
