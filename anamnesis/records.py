"""The data contracts: one Arrow schema an arrow of the pipeline, and Parquet files whose bytes depend on their rows
only.

Every file is written whole, sorted by its key, and moved into place; a reader gets rows as dicts or the table itself.
A row that is not `ok` keeps its place with a reason: nothing is dropped silently.
"""

import fnmatch
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
CONTROLS = pa.schema(
    [
        ("pair_id", pa.string()),
        ("judge", pa.string()),
        ("instruction_id", pa.string()),
        ("response_id", pa.string()),  # of the genuine response beside it, whose score is in JUDGMENTS
        ("kind", pa.string()),  # a key of anamnesis.controls.KINDS
        ("text", pa.string()),  # the planted response; NULL where the genuine one offers no such fault (`filtered`)
        ("score", pa.float64()),
        ("parse", pa.string()),  # as in JUDGMENTS; NULL where nothing was asked
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
        ("value", pa.float64()),  # what the rule ranked by; also where the score or the margin was too small
        ("mean", pa.float64()),  # of all votes
        ("votes", pa.list_(pa.struct([("judge", pa.string()), ("score", pa.float64())]))),
        ("runner_up_id", pa.string()),
        ("runner_up_value", pa.float64()),
        ("runner_up_mean", pa.float64()),
        ("margin", pa.float64()),  # value less the runner-up's; below 0 where a hash decided; kept as `value` is
        ("tied", pa.int64()),  # candidates among which the hash decided: 1 is a clear win
        ("candidates", pa.int64()),  # responses that could have been picked
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
AGREEMENT = pa.schema(
    [
        ("about", pa.string()),  # alpha, judge, pair, member or control
        ("subject", pa.string()),  # the judge or member; empty for alpha
        ("other", pa.string()),  # pair: the other judge; control: the kind of planted response; else empty
        ("figure", pa.string()),
        ("value", pa.float64()),  # NULL where it is not defined
        ("low", pa.float64()),  # the 95 % interval; NULL where there is none
        ("high", pa.float64()),
        ("n", pa.int64()),  # what the figure was made from
        ("note", pa.string()),  # why there is no value, or how to read it
    ]
)
REHEARSAL = pa.schema(
    [
        ("row_id", pa.string()),  # of the source, the split and the row's place in it
        ("source", pa.string()),  # as params.yaml names it
        ("messages", MESSAGES),  # NULL for a row that was dropped
        ("licence", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
BORROWED = pa.schema(  # instructions that the committee answers besides the probed ones
    [
        ("instruction_id", pa.string()),  # of source and text: no probed instruction has it
        ("source", pa.string()),
        ("text", pa.string()),
        ("licence", pa.string()),
        ("members", pa.list_(pa.string())),  # who answers it: those of the variants that borrow from the source
        ("judges", pa.list_(pa.string())),
        ("samples", pa.int64()),  # of each member, at most
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
CLEANED = pa.schema(
    [
        ("row_id", pa.string()),
        ("order_id", pa.string()),  # what the mix orders by: a pick's instruction_id, any other row's row_id
        ("messages", MESSAGES),
        ("source", pa.string()),  # domain, domain:<name>, reconstructed or a rehearsal source
        ("member", pa.string()),  # who wrote the response; NULL for rows that nobody here wrote
        ("licence", pa.string()),
        ("status", pa.string()),
        ("reason", pa.string()),
    ]
)
MIXED = pa.schema(
    [
        ("row_id", pa.string()),
        ("messages", MESSAGES),
        ("source", pa.string()),  # domain, domain:<name>, reconstructed or a rehearsal source
        ("member", pa.string()),  # who wrote the response; NULL for domain rows
        ("licence", pa.string()),
        ("tokens", pa.int64()),  # of the rendered conversation, by the target's tokenizer
    ]
)
DISTRIBUTION = pa.schema(
    [
        ("source", pa.string()),  # reconstructed, or a name of distribution.compare
        ("instruction_id", pa.string()),
        ("type", pa.string()),
        ("language", pa.string()),
        ("tokens", pa.int64()),  # of the text, by the target's tokenizer
        ("bits", pa.float64()),  # of its first characters, written by the target; NULL where it was not asked
        ("bytes", pa.int64()),  # that these bits are for
    ]
)
SAMPLES = pa.schema(
    [
        ("measure", pa.string()),  # a name that anamnesis.measures.spec knows
        ("item_id", pa.string()),
        ("value", pa.float64()),
        ("weight", pa.float64()),  # bytes or tokens behind the value; 1 for an accuracy
        ("output", pa.string()),  # what the model wrote, where it wrote something; NULL for GPQA
        ("category", pa.string()),  # MMLU-Pro's, MATH's subject, IFEval's kind of instruction; NULL where there is none
        ("question", pa.string()),  # what was asked; NULL for texts, and for GPQA, whose authors ask not to show items
    ]
)


def digest(*parts: object) -> str:
    """A short stable id: the first 16 hex digits of the sha256 over the parts, separated unambiguously."""
    joined = "\x1f".join(str(part) for part in parts)
    return hashlib.sha256(joined.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def licences_of(licence: str | None) -> list[str]:
    """Every licence that a row is under: they stand apart by `; `, and a row that names none is under `unknown`."""
    return (licence or "unknown").split("; ")


def licence_of_all(*licences: str | None) -> str:
    """The licence of a row that is under all of these, each named once."""
    return "; ".join(sorted({one for licence in licences for one in licences_of(licence)}))


def is_under(licence: str | None, patterns: Sequence[str]) -> bool:
    """Whether a row's licence is one of `patterns`: whole names, case aside, with * and ? for any text and letter."""
    each = [one.casefold() for one in licences_of(licence)]
    return any(fnmatch.fnmatchcase(one, pattern.casefold()) for one in each for pattern in patterns)


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


def write_metrics(path: str | Path, metrics: Mapping[str, int | float | str]) -> None:
    """Write flat metrics as JSON, for `dvc metrics`."""
    write_text(path, json.dumps(metrics, indent=2) + "\n")


@contextmanager
def _readable(path: str | Path) -> Iterator[None]:
    """Turn what goes wrong with a file of ours into a `UserError`."""
    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro`") from None
    except pa.ArrowException as error:
        raise UserError(f"{path}: not a readable Parquet file ({error}); delete it and run `dvc repro`") from None


def check(path: str | Path, schema: pa.Schema) -> str | Path:
    """The path of a file of ours. Raises `UserError` where it is missing or its columns are not the schema's."""
    with _readable(path):
        names = pq.read_schema(path).names
    if names != schema.names:
        raise UserError(f"{path}: columns {names} where {schema.names} were expected; run `dvc repro`")
    return path


def read_table(path: str | Path, schema: pa.Schema, **options: Any) -> pa.Table:
    """Read a file of ours, checked as `check` does; `options` are those of pyarrow's own, such as `filters`."""
    with _readable(check(path, schema)):
        return pq.read_table(path, **options)


def read(path: str | Path, schema: pa.Schema) -> list[dict[str, Any]]:
    """`read_table` as a list of dicts."""
    return read_table(path, schema).to_pylist()
