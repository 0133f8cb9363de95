"""How the reports of `benchmark` and `plan` write numbers and tables."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping


def two_columns(values: Mapping[str, str]) -> str:
    """Returns a table with one line a quantity; the first is its head."""
    left, right = (max(map(len, cells)) for cells in (values, values.values()))
    lines = [f"| {key:<{left}} | {value:>{right}} |" for key, value in values.items()]
    return "\n".join((lines[0], f"| {'-' * left} | {'-' * (right - 1)}: |", *lines[1:]))


def row(cells: Iterable[str], columns: Mapping[str, int], right: Collection[str]) -> str:
    """Returns a line of a table.

    Args:
      cells: one for each column.
      columns: titles with widths.
      right: titles of columns that are aligned to the right.
    """
    padded = (
        f"{cell:{'>' if title in right else '<'}{width}}"
        for cell, (title, width) in zip(cells, columns.items(), strict=True)
    )
    return f"| {' | '.join(padded)} |"


def rule(columns: Mapping[str, int], right: Collection[str]) -> str:
    """Returns the line below the titles; arguments are those of `row`."""
    lines = (
        "-" * (width - 1) + (":" if title in right else "-") for title, width in columns.items()
    )
    return row(lines, columns, right)
