"""The paper's columns of cost, of the models here beside what it prints."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from mtmamba_jax import config as configuration
from mtmamba_jax.paper.cost import count_cost
from mtmamba_jax.paper.printed import ROWS, Row
from mtmamba_jax.paper.table_formats import Table

CONFIG = "ablations"  # has a variant for each of `Row.variants`
COLUMNS = (
    *("Table", "row"),
    *("#Param, M", "the paper's", "difference"),
    *("FLOPs, G", "the paper's G", "difference, G"),
)


def cost_table(rows: Iterable[Row] = ROWS) -> Table:
    """Returns parameters and FLOPs of the paper's rows, on NYUDv2, by its way of counting."""
    return Table(COLUMNS, [_cells(row) for row in rows], left=2)


def row_cost(row: Row) -> tuple[int, int]:
    """Returns a row's parameters and FLOPs as the paper prints them, in hundredths.

    It cuts digits off, and the row of single-task models is the sum of their cut numbers.
    """
    costs = [count_cost(configuration.load(f"{CONFIG}:{name}")) for name in row.variants]
    return _cut(cost.parameters for cost in costs), _cut(cost.flops for cost in costs)


def _cut(numbers: Iterable[float]) -> int:
    return sum(math.floor(100 * number) for number in numbers)


def _cells(row: Row) -> Sequence[str]:
    tables = ", ".join(map(str, row.tables))
    cells = [tables, row.title]
    for found, printed in zip(row_cost(row), (row.parameters, row.flops), strict=True):
        cells.append(f"{found / 100:.2f}")
        if printed is None:
            cells += ["", ""]
        else:
            difference = (found - round(100 * printed)) / 100
            cells += [f"{printed:.2f}", f"{difference:+.2f}" if difference else "0.00"]
    return cells
