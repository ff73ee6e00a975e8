"""A user's own domain set: JSONL, Parquet or a hub data set, in one of three forms, to conversations.

In: `domain.source`, a path or hf:<repo>@<revision>. Out: `Row`s with messages in one shape, whatever the form was, or
one line that names file, line and field. Forms, found by the first row and kept for the whole file:

    messages   {"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}
    alpaca     {"instruction": ..., "input": ..., "output": ...}        (`response` is read as `output`)
    sharegpt   {"conversations": [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]}

A row with `choices` is a test item in any of them: {"question": ..., "choices": [...], "answer": ...}.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anamnesis.errors import POOL_TOO_SMALL, UserError, hub_errors
from anamnesis.records import digest

Message = dict[str, str]

SPEAKERS = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}
NEEDS = {
    "messages": "every row needs `messages`, a list of {role, content} that ends with the assistant",
    "alpaca": "every row needs `instruction` and `output` (or `response`) as text",
    "sharegpt": "every row needs `conversations`, a list of {from, value} that ends with gpt",
    "choice": "a row with `choices` needs `question`, two or more choices and the right one as `answer`",
}


@dataclass(frozen=True)
class Row:
    """One row of the user's file: a conversation, or a multiple-choice item (`choices` and `gold` are set)."""

    messages: tuple[tuple[str, str], ...]  # (role, content)
    choices: tuple[str, ...] = ()
    gold: int = -1
    category: str | None = None
    licence: str | None = None

    @property
    def row_id(self) -> str:
        return digest(*(part for message in self.messages for part in message), *self.choices)

    @property
    def prompt(self) -> str:
        """The first user turn: two rows that share it never stand on both sides of the split."""
        return next(content for role, content in self.messages if role == "user")

    def as_messages(self) -> list[Message]:
        return [{"role": role, "content": content} for role, content in self.messages]


class _Fault(Exception):
    """What is wrong with one field; the caller knows the file and the line."""

    def __init__(self, field: str, what: str):
        super().__init__(what)
        self.field = field


def read(source: str, key: str = "domain.source") -> list[Row]:
    """Every row of the file or hub data set, checked. Raises `UserError` for the first that is not as its form says.

    `key` is where params.yaml names the source, for errors.
    """
    rows: list[Row] = []
    form = ""
    for place, raw in _raw_rows(source, key):
        if not isinstance(raw, dict):
            raise UserError(f"{place}: expected an object with named fields, found {_kind(raw)}")
        if raw.get("choices") is None:
            form = form or _form_of(raw, place)
        kind = form if raw.get("choices") is None else "choice"
        try:
            rows.append(_parse(raw, kind))
        except _Fault as fault:
            raise UserError(f"{place}: field '{fault.field}': {fault}; {NEEDS[kind]}") from None
    if not rows:
        raise UserError(f"{source}: no rows; point {key} at a file with at least one conversation")
    return rows


def prompts(source: str, key: str) -> list[str]:
    """The different first user turns of a file, in any of the forms; answers may be missing.

    `key` is where params.yaml names the file, for errors. Raises `UserError` for the first row without such a turn.
    """
    found: dict[str, None] = {}
    for place, raw in _raw_rows(source, key):
        if not isinstance(raw, dict):
            raise UserError(f"{place}: expected an object with named fields, found {_kind(raw)}")
        form = _form_of(raw, place)
        try:
            found[_prompt(raw, form)] = None
        except _Fault as fault:
            raise UserError(f"{place}: field '{fault.field}': {fault}") from None
    if not found:
        raise UserError(f"{source}: no rows; name a file with at least one instruction")
    return list(found)


def split(
    rows: Iterable[Row], train: int, test: int, seed: int, source: str, licence: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    """Rows for `records.DOMAIN_TRAIN` and `records.DOMAIN_TEST`, and how many duplicates were removed.

    Conversations are ordered by a seeded hash of their first user turn. The first `test` turns are held out as `text`
    items, one conversation each; of the rest the first `train` are trained on. Another conversation with a held-out
    turn is used for neither. Choice rows are test items only, at most `test`. Raises `UserError` (exit code 6) where
    there are too few.
    """
    unique: dict[str, Row] = {}
    total = 0
    for row in rows:
        unique.setdefault(row.row_id, row)
        total += 1

    def order(row: Row) -> tuple[str, str]:
        return digest(seed, "domain", row.prompt), row.row_id

    ordered = sorted(unique.values(), key=order)
    conversations = [row for row in ordered if not row.choices]
    choice = [row for row in ordered if row.choices][:test]

    asked = {row.prompt for row in choice}
    text: dict[str, Row] = {}
    for row in conversations:
        if row.prompt not in asked and len(text) < test:
            text[row.prompt] = row
    trainable = [row for row in conversations if row.prompt not in asked and row.prompt not in text]
    if len(text) < test or len(trainable) < train:
        raise UserError(_too_few(source, conversations, asked, train, test), POOL_TOO_SMALL)

    trained = [_train_row(row, source, licence) for row in trainable[:train]]
    tested = [
        {
            "row_id": digest("choice" if row.choices else "text", row.row_id),
            "kind": "choice" if row.choices else "text",
            "messages": row.as_messages(),
            "choices": list(row.choices) or None,
            "gold": row.gold if row.choices else None,
            "answer": None,
            "category": row.category,
        }
        for row in [*choice, *text.values()]
    ]
    return trained, tested, total - len(unique)


def trained_on(rows: Iterable[Row], source: str, licence: str) -> list[dict[str, Any]]:
    """Every different conversation as a row for `records.DOMAIN_TRAIN`; choice rows are test items and left out."""
    unique = {row.row_id: row for row in rows if not row.choices}
    return [_train_row(row, source, licence) for row in unique.values()]


def _train_row(row: Row, source: str, licence: str) -> dict[str, Any]:
    return {
        "row_id": row.row_id,
        "messages": row.as_messages(),
        "category": row.category,
        "source": source,
        "licence": row.licence or licence,
    }


def _too_few(source: str, conversations: list[Row], asked: set[str], train: int, test: int) -> str:
    """The line for a file that is too small, with numbers that fit it."""
    free = [row for row in conversations if row.prompt not in asked]
    sizes: dict[str, int] = {}
    for row in free:
        sizes[row.prompt] = sizes.get(row.prompt, 0) + 1
    prompts = list(sizes)  # in split order
    fitting = min(test, max(1, len(prompts) // 5))
    left = len(free) - sum(sizes[prompt] for prompt in prompts[:fitting])
    line = (
        f"{source}: {len(free)} different conversations ({len(prompts)} first turns) are too few for "
        f"domain.train {train} + domain.test {test}"
    )
    if left < 1:
        return f"{line}; add conversations with other first turns"
    advice = [f"domain.train to {min(train, left)}"] if left < train else []
    advice += [f"domain.test to {fitting}"] if fitting < test else []
    return f"{line}; lower {' and '.join(advice)}"


# ------------------------------------------------------------------------------------------------- files to raw rows


def _raw_rows(source: str, key: str) -> Iterator[tuple[str, Any]]:
    """`(place, row)` for every row; the place is what an error starts with."""
    if source.startswith("hf:"):
        yield from _hub_rows(source, key)
        return
    path = Path(source)
    if path.suffix not in (".jsonl", ".parquet"):
        also = "; a JSON array becomes JSONL with `jq -c '.[]'`" if path.suffix == ".json" else ""
        built = "icd10cm, " if key == "domain.source" else ""
        raise UserError(f"{key}: {source!r}: expected {built}*.jsonl, *.parquet or hf:<repo>@<revision>{also}")
    if not path.is_file():
        raise UserError(f"{key}: {source}: no such file; paths start at the project's root, {Path.cwd()}")
    yield from (_jsonl_rows if path.suffix == ".jsonl" else _parquet_rows)(path)


def _jsonl_rows(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:  # bytes: only a newline ends a line, and a wrong encoding is found on its own line
        for number, line in enumerate(file, 1):
            place = f"{path}: line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                byte = line[error.start]
                raise UserError(
                    f"{place}: not UTF-8 (byte 0x{byte:02x} at position {error.start + 1}); save the file as UTF-8"
                ) from None
            if not text.strip():
                continue
            try:
                row = json.loads(text)
            except (ValueError, RecursionError) as error:
                what = f"{error.msg} at column {error.colno}" if isinstance(error, json.JSONDecodeError) else str(error)
                raise UserError(f"{place}: not valid JSON ({what}); every line is one JSON object") from None
            yield place, row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(4096):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}: row {number}", row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: not a readable Parquet file ({' '.join(str(error).split())})") from None


def _hub_rows(source: str, key: str) -> Iterator[tuple[str, Any]]:
    repo, _, revision = source.removeprefix("hf:").partition("@")
    if not repo or not revision:
        raise UserError(f"{key}: {source!r}: write hf:<repo>@<revision>; the revision keeps the run repeatable")
    import datasets

    try:
        table = datasets.load_dataset(repo, revision=revision, split="train")
    except (*hub_errors(), datasets.exceptions.DatasetsError) as error:
        what = " ".join(str(error).split())[:300]
        raise UserError(f"{key}: {source}: the split `train` can't be loaded ({what})") from None
    for number, row in enumerate(table, 1):
        yield f"{source}: row {number}", row


# ----------------------------------------------------------------------------------------------- raw rows to messages


def _form_of(raw: dict[str, Any], place: str) -> str:
    for field, form in (("messages", "messages"), ("conversations", "sharegpt"), ("instruction", "alpaca")):
        if raw.get(field) is not None:
            return form
    found = ", ".join(f"`{field}`" for field in raw) or "none"
    raise UserError(
        f"{place}: no known form (fields: {found}); expected `messages`, `instruction` and `output`, or `conversations`"
    )


def _parse(raw: dict[str, Any], kind: str) -> Row:
    category, licence = raw.get("category"), raw.get("licence") or raw.get("license")
    category = category if isinstance(category, str) else None
    licence = licence if isinstance(licence, str) else None
    if kind == "choice":
        question, choices, gold = _choice(raw)
        return Row((("user", question),), choices, gold, category, licence)
    if kind == "alpaca":
        turns = _alpaca(raw)
    elif kind == "sharegpt":
        turns = _turns(raw, "conversations", "from", "value")
    else:
        turns = _turns(raw, "messages", "role", "content")
    return Row(tuple(turns), category=category, licence=licence)


def _prompt(raw: dict[str, Any], form: str) -> str:
    """The first user turn of a row."""
    if form == "alpaca":
        extra = f"\n\n{_text(raw, 'input')}" if raw.get("input") not in (None, "") else ""
        return _text(raw, "instruction") + extra
    field, speaker, said = {
        "messages": ("messages", "role", "content"),
        "sharegpt": ("conversations", "from", "value"),
    }[form]
    listed = raw[field] if isinstance(raw[field], list) else []
    for place, turn in enumerate(listed):
        if isinstance(turn, dict) and SPEAKERS.get(str(turn.get(speaker))) == "user":
            return _text(turn, said, f"{field}[{place}]")
    raise _Fault(field, "no user's turn")


def _alpaca(raw: dict[str, Any]) -> list[tuple[str, str]]:
    instruction = _text(raw, "instruction")
    answer = _text(raw, "response" if raw.get("output") is None and raw.get("response") is not None else "output")
    extra = _text(raw, "input") if raw.get("input") not in (None, "") else ""
    system = [("system", _text(raw, "system"))] if raw.get("system") not in (None, "") else []
    return [*system, ("user", f"{instruction}\n\n{extra}" if extra else instruction), ("assistant", answer)]


def _turns(raw: dict[str, Any], field: str, speaker: str, said: str) -> list[tuple[str, str]]:
    """The turns of a conversation: an optional system turn, then user and assistant in turn, the assistant last."""
    listed = raw.get(field)
    if not isinstance(listed, list) or not listed:
        raise _Fault(field, "missing or empty" if not listed else f"expected a list, found {_kind(listed)}")
    turns: list[tuple[str, str]] = []
    for place, turn in enumerate(listed):
        where = f"{field}[{place}]"
        if not isinstance(turn, dict):
            raise _Fault(where, f"expected an object, found {_kind(turn)}")
        name = _text(turn, speaker, where)
        role = SPEAKERS.get(name) if field == "conversations" else name
        if role not in ("system", "user", "assistant"):
            known = ", ".join(SPEAKERS) if field == "conversations" else "system, user, assistant"
            raise _Fault(f"{where}.{speaker}", f"{name!r} is not one of {known}")
        expected = "assistant" if turns and turns[-1][0] == "user" else "user"
        if role != expected and not (role == "system" and place == 0):
            raise _Fault(f"{where}.{speaker}", f"{role} where the {expected} is due")
        turns.append((role, _text(turn, said, where)))
    if turns[-1][0] != "assistant":
        raise _Fault(f"{field}[{len(turns) - 1}].{speaker}", f"the last turn is the {turns[-1][0]}'s")
    return turns


def _choice(raw: dict[str, Any]) -> tuple[str, tuple[str, ...], int]:
    """The question, the choices and the place of the right one."""
    question = _text(raw, "question")
    listed = raw["choices"]
    if not isinstance(listed, list) or len(listed) < 2:
        raise _Fault("choices", "expected a list of two or more")
    choices = [_text({f"choices[{place}]": item}, f"choices[{place}]") for place, item in enumerate(listed)]
    if len(set(choices)) < len(choices):
        raise _Fault("choices", "the same choice stands twice")
    answer = raw.get("answer")
    letters = [chr(ord("A") + place) for place in range(len(choices))]
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(choices):
        gold = answer
    elif answer in choices:
        gold = choices.index(answer)
    elif answer in letters:
        gold = letters.index(answer)
    else:
        raise _Fault(
            "answer",
            f"{answer!r} is none of the choices, their letters ({letters[0]}..{letters[-1]}) "
            f"or places (0..{len(choices) - 1})",
        )
    return question, tuple(choices), gold


def _text(raw: dict[str, Any], field: str, inside: str = "") -> str:
    value = raw.get(field)
    field = f"{inside}.{field}" if inside else field
    if value is None or value == "" or (isinstance(value, str) and not value.strip()):
        raise _Fault(field, "missing or empty")
    if not isinstance(value, str):
        raise _Fault(field, f"expected text, found {_kind(value)}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise _Fault(field, "holds half of a surrogate pair (a broken \\ud800..\\udfff escape)") from None
    return value


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "true or false", int: "a number", float: "a number"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)
