"""Tabulates the models' parameters and FLOPs beside the figures that the paper prints."""

import math
from collections.abc import Iterable, Sequence

from mtmamba_jax import config as configuration
from mtmamba_jax.paper.cost import count_cost
from mtmamba_jax.paper.published import ROWS, Row
from mtmamba_jax.paper.table_formats import Table

CONFIG = "ablations"  # has every variant in `Row.variants`
COLUMNS = (
    *("Table", "row"),
    *("#Param, M", "the paper's", "difference"),
    *("FLOPs, G", "the paper's G", "difference, G"),
)


def cost_table(rows: Iterable[Row] = ROWS) -> Table:
    """Returns the cost of rows of the paper's tables, on NYUDv2, counted as the paper does."""
    return Table(COLUMNS, [_cells(row) for row in rows], left=2)


def row_cost(row: Row) -> tuple[int, int]:
    """Returns a row's parameters and FLOPs as the paper prints them, in hundredths.

    The paper truncates digits, and its row of single-task models sums their truncated numbers.
    """
    costs = [count_cost(configuration.load(f"{CONFIG}:{name}")) for name in row.variants]
    return (
        sum(math.floor(100 * cost.parameters) for cost in costs),
        sum(math.floor(100 * cost.flops) for cost in costs),
    )


def _cells(row: Row) -> Sequence[str]:
    cells = [", ".join(map(str, row.tables)), row.title]
    for counted, published in zip(row_cost(row), (row.parameters, row.flops), strict=True):
        cells.append(f"{counted / 100:.2f}")
        if published is None:
            cells += ["", ""]
        else:
            difference = (counted - round(100 * published)) / 100
            cells += [f"{published:.2f}", f"{difference:+.2f}" if difference else "0.00"]
    return cells
