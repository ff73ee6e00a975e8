"""The data contracts: one Arrow schema an arrow of the pipeline, and Parquet files whose bytes depend on their rows
only.

Every file is written whole, sorted by its key, and moved into place; a reader gets rows as dicts or the table itself.
A row that is not `ok` keeps its place with a reason: nothing is dropped silently.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anamnesis.errors import UserError

STATUSES = ("ok", "refused", "truncated", "filtered", "failed")

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

INSTRUCTIONS = pa.schema(
    [
        ("instruction_id", pa.string()),  # of the text: duplicates share it, `ok` rows never do
        ("sample_index", pa.int64()),  # which probe request; the key of a row
        ("text", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int64()),
    ]
)
CONVERSATIONS = pa.schema(  # the good instructions as the committee is asked them, most often a single turn
    [
        ("instruction_id", pa.string()),
        ("text", pa.string()),  # the last user's turn, the one that is answered
        ("system", pa.string()),  # drawn from converse.systems; NULL leaves each member its own
        ("history", MESSAGES),  # the turns before the last, system message left out; empty for a single turn
        ("turns", pa.int64()),  # of the user's, the last one included
        ("wanted", pa.int64()),  # turns that were drawn for it
        (
            "written",  # who wrote each turn: those of `history`, then `text`
            pa.list_(
                pa.struct(
                    [
                        ("turn", pa.int64()),  # from 1; an answer has the number of the turn it answers
                        ("role", pa.string()),
                        ("writer", pa.string()),  # the model's key under models
                        ("response_id", pa.string()),  # of the chosen answer, and so on down to candidates
                        ("value", pa.float64()),  # its mean score; NULL where nobody judged it
                        ("votes", pa.list_(pa.struct([("judge", pa.string()), ("score", pa.float64())]))),
                        ("candidates", pa.int64()),
                    ]
                )
            ),
        ),
        ("status", pa.string()),
        ("reason", pa.string()),  # why it has fewer turns than wanted
    ]
)
RESPONSES = pa.schema(
    [
        ("response_id", pa.string()),
        ("instruction_id", pa.string()),
        ("member", pa.string()),
        ("sample_index", pa.int64()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("tokens", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
JUDGMENTS = pa.schema(
    [
        ("response_id", pa.string()),
        ("judge", pa.string()),
        ("score", pa.float64()),  # 1..5, NULL for a missing vote
        ("parse", pa.string()),  # the rung that gave the score: logprobs, constrained, strict, reask, missing
        ("justification", pa.string()),
        ("tokens", pa.int64()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
SELECTED = pa.schema(
    [
        ("instruction_id", pa.string()),
        ("instruction", pa.string()),
        ("response_id", pa.string()),  # NULL where the instruction was dropped, and so on down to runner_up_mean
        ("member", pa.string()),
        ("response", pa.string()),
        ("mean", pa.float64()),
        ("votes", pa.list_(pa.struct([("judge", pa.string()), ("score", pa.float64())]))),
        ("runner_up_id", pa.string()),
        ("runner_up_mean", pa.float64()),
        ("candidates", pa.int64()),  # responses that could have been picked
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
HELDOUT = pa.schema([("instruction_id", pa.string()), ("messages", MESSAGES)])
DOMAIN_TRAIN = pa.schema(
    [
        ("row_id", pa.string()),
        ("messages", MESSAGES),
        ("category", pa.string()),
        ("source", pa.string()),
        ("licence", pa.string()),
    ]
)
DOMAIN_TEST = pa.schema(
    [
        ("row_id", pa.string()),
        ("kind", pa.string()),  # choice, exact or text
        ("messages", MESSAGES),  # text: the whole conversation; choice and exact: the user's turn only
        ("choices", pa.list_(pa.string())),  # choice only
        ("gold", pa.int64()),  # choice only: index of the right one
        ("answer", pa.string()),  # exact only
        ("category", pa.string()),
    ]
)
MIXED = pa.schema(
    [
        ("row_id", pa.string()),
        ("messages", MESSAGES),
        ("source", pa.string()),  # domain, or the rehearsal source
        ("member", pa.string()),  # who wrote the response; NULL for domain rows
        ("licence", pa.string()),
        ("tokens", pa.int64()),  # of the rendered conversation, by the target's tokenizer
    ]
)
SAMPLES = pa.schema(
    [
        ("measure", pa.string()),  # a key of anamnesis.measures.MEASURES
        ("item_id", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),  # bytes or tokens behind the value; 1 for an accuracy
        ("output", pa.string()),  # what the model wrote, where it wrote something
    ]
)


def digest(*parts: object) -> str:
    """A short stable id: the first 16 hex digits of the sha256 over the parts, separated unambiguously."""
    joined = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def seed_of(*parts: object) -> int:
    """A 31-bit seed derived from an item's id, so that order and resumption don't matter."""
    return int(digest(*parts)[:8], 16) & 0x7FFFFFFF


def write(
    path: str | Path, rows: Sequence[dict[str, Any]] | pa.Table, schema: pa.Schema, sort_by: Iterable[str]
) -> None:
    """Write rows sorted by the `sort_by` columns as one Parquet file, atomically; equal rows give equal bytes."""
    path = Path(path)
    table = (
        rows.select(schema.names).cast(schema)
        if isinstance(rows, pa.Table)
        else pa.Table.from_pylist(list(rows), schema)
    )
    table = table.sort_by([(column, "ascending") for column in sort_by]).combine_chunks()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        pq.write_table(table, partial, compression="zstd", row_group_size=65536)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file whole: never through a link to the cache, never half."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def write_metrics(path: str | Path, metrics: Mapping[str, int | float]) -> None:
    """Write flat metrics as JSON, for `dvc metrics`."""
    write_text(path, json.dumps(metrics, indent=2) + "\n")


def read_table(path: str | Path, schema: pa.Schema) -> pa.Table:
    """Read a file of ours and check its columns. Raises `UserError` where it is missing or not what the schema says."""
    try:
        table = pq.read_table(path)
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro`") from None
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); delete it and run `dvc repro`") from None
    if table.schema.names != schema.names:
        raise UserError(f"{path}: columns {table.schema.names} where {schema.names} were expected; run `dvc repro`")
    return table


def read(path: str | Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """`read_table` as a list of dicts."""
    return read_table(path, schema).to_pylist()
