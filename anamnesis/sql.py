"""One SQL statement on DuckDB: Arrow tables in by name, bound parameters, an Arrow table out.

The statements live in stages/sql, one a file; a stage reads its text and hands it to the library, which never looks for
files itself. Values are bound (`$seed`), never written into the text.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa


def statement(path: str | Path) -> str:
    """The text of a .sql file, checked to be one statement. Raises `ValueError` where it is not."""
    text = Path(path).read_text(encoding="utf-8")
    count = len(duckdb.extract_statements(text))
    if count != 1:
        raise ValueError(f"{path}: {count} statements; one a file")
    return text


def run(text: str, tables: Mapping[str, pa.Table], parameters: Mapping[str, Any], threads: int = 0) -> pa.Table:
    """Run one statement over `tables` and return its rows in the order it asks for.

    `parameters` are bound by name (a list binds as a LIST) and must be exactly those the statement has. `threads` 0
    takes DuckDB's default; with a total ORDER BY it changes nothing.
    """
    with duckdb.connect(":memory:", config={"threads": threads} if threads else {}) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        for name, table in tables.items():
            connection.register(name, table)
        return connection.sql(text, params=dict(parameters)).to_arrow_table()
