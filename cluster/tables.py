"""Tables of numbers for the terminal."""

import math
from collections.abc import Mapping

from rich.console import Console
from rich.table import Table


def print_table(rows: Mapping[str, Mapping[str, float | None]], title: str, caption: str) -> None:
    """Rows by name, each of the same columns; a number that is not there is left out."""
    columns = list(next(iter(rows.values())))
    table = Table(title=title, caption=caption)
    table.add_column("", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right")
    for name, row in rows.items():
        table.add_row(name, *[short(row[c]) for c in columns])
    Console().print(table)


def short(value: float | None) -> str:
    """Three figures, or all before the point; what took for ever never came."""
    if value is None:
        return ""
    if math.isinf(value):
        return "never"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
