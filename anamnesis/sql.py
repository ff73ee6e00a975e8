"""One SQL statement on DuckDB: tables in by name, bound parameters, an Arrow table out.

The statements live in stages/sql, one a file. A stage, or the command `anamnesis.why`, reads a statement's text and
hands it to the library's functions, which never look for files. Values are bound (`$seed`), never written into it.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import duckdb
import pyarrow as pa


@dataclass(frozen=True)
class Files:
    """Parquet files of one schema as one table: DuckDB reads the columns and rows that a statement needs."""

    paths: Sequence[str | Path]
    schema: pa.Schema  # what the table has where there is no file


@dataclass(frozen=True)
class Query:
    """A statement whose rows are a table for the next one; it sees the tables named before it."""

    text: str
    parameters: Mapping[str, Any] = field(default_factory=dict)


Table: TypeAlias = pa.Table | Files | Query


def statement(path: str | Path) -> str:
    """The text of a .sql file, checked to be one statement. Raises `ValueError` where it is not."""
    text = Path(path).read_text(encoding="utf-8")
    count = len(duckdb.extract_statements(text))
    if count != 1:
        raise ValueError(f"{path}: {count} statements; one a file")
    return text


def run(text: str, tables: Mapping[str, Table], parameters: Mapping[str, Any], threads: int = 0) -> pa.Table:
    """Run one statement over `tables` and return its rows in the order it asks for.

    `parameters` are bound by name (a list binds as a LIST) and must be exactly those the statement has. `threads` 0
    takes DuckDB's default; with a total ORDER BY it changes nothing. What doesn't fit in memory goes to a temporary
    folder (below TMPDIR).
    """
    with tempfile.TemporaryDirectory() as spill:
        config: dict[str, Any] = {"temp_directory": spill} | ({"threads": threads} if threads else {})
        with duckdb.connect(":memory:", config=config) as connection:
            connection.execute("SET TimeZone = 'UTC'")
            for name, table in tables.items():
                _make(connection, name, table)
            return connection.sql(text, params=dict(parameters)).to_arrow_table()


def _make(connection: duckdb.DuckDBPyConnection, name: str, table: Table) -> None:
    if isinstance(table, Query):
        connection.sql(table.text, params=dict(table.parameters)).create(name)
    elif isinstance(table, Files) and table.paths:
        connection.read_parquet([str(path) for path in table.paths]).create_view(name)
    else:
        connection.register(name, table.schema.empty_table() if isinstance(table, Files) else table)
