"""Benchmarks: ratios between things that are measured side by side in one run. bench/README.md lists them."""

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def tell(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print a table on stderr: a name and its figures a row, None as a dash."""
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*map(_cell, row))
    Console(stderr=True, width=120).print(table)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def finish(figures: Mapping[str, Any]) -> None:
    """Print the figures on stdout: as one JSON object with --json on the command line, else one a line."""
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in figures.items()}
    if "--json" in sys.argv:
        print(json.dumps(rounded))
    else:
        for name, value in rounded.items():
            print(f"{name}: {value}")
