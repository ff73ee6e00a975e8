"""Conversations, evaluation items and candidate rows for the tests of cleaning."""

import os
from pathlib import Path

import pyarrow as pa

from anamnesis import cleaning, records
from anamnesis.decontamination import Item, Overlap

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
WORDS = (
    "moss fern slate river lamp copper window barrel thread harbour pepper marble candle ladder meadow anchor".split()
)
LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def index(**sets: list[Item]) -> Overlap:
    overlap = Overlap()
    for name, listed in sets.items():
        overlap.add(name, listed)
    return overlap


def candidates(*rows: tuple[str, list[dict[str, str]]]) -> pa.Table:
    """Rows of a rehearsal source by id."""
    listed = [
        {"row_id": key, "source": "made", "messages": messages, "licence": "MIT", "status": "ok"}
        for key, messages in rows
    ]
    return cleaning.rehearsed(pa.Table.from_pylist(listed, records.REHEARSAL))


def reasons(table: pa.Table) -> dict[str, tuple[str, str | None]]:
    return {row["row_id"]: (row["status"], row["reason"]) for row in table.to_pylist()}
