"""Domain sets of your own for `evaluate.domain_sets`: a JSONL file with one question a line, one measure a file.

`{"question", "options" or "choices", "answer"}` is multiple choice, where `answer` is a letter, an index from 0 or the
option itself; `{"question", "answer"}` is a short answer. A file holds one of the two kinds.
"""

import json
from pathlib import Path
from typing import Any

from anamnesis.errors import UserError
from anamnesis.records import digest

Row = dict[str, Any]
LETTERS = "ABCDEFGHIJ"  # of options


def read(name: str, path: str | Path) -> list[Row]:
    """The items: item_id, question, and choices with gold, or answer. Raises `UserError` with file and line."""
    where = f"evaluate.domain_sets.{name}: {path}"
    try:
        lines = Path(path).read_text(encoding="utf-8").split("\n")  # a string may hold other line breaks, like U+2028
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; paths start at the project's root, {Path.cwd()}") from None
    except UnicodeDecodeError:
        raise UserError(f"{where}: not UTF-8") from None
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                row = _row(json.loads(line))
            except ValueError as error:
                raise UserError(f"{where}: line {number}: {error}") from None
            rows.setdefault(row["item_id"], row)
    if not rows:
        raise UserError(f"{where}: no questions")
    if len({"choices" in row for row in rows.values()}) > 1:
        raise UserError(f"{where}: some rows have options and some have none; make two sets of it")
    return list(rows.values())


def _row(raw: Any) -> Row:
    if not isinstance(raw, dict):
        raise ValueError("not an object")
    question, answer, options = raw.get("question"), raw.get("answer"), raw.get("options", raw.get("choices"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError("field question: missing or empty")
    if options is None:
        if not isinstance(answer, (str, int, float)) or isinstance(answer, bool) or not str(answer).strip():
            raise ValueError("field answer: missing or empty")
        return {"item_id": digest("domain set", question, answer), "question": question, "answer": str(answer)}
    if not isinstance(options, list) or len(options) < 2 or not all(isinstance(one, str) and one for one in options):
        raise ValueError("field options: a list of two or more texts is wanted")
    if len(set(options)) < len(options):
        raise ValueError("field options: one comes twice")
    gold = _gold(answer, options)
    return {"item_id": digest("domain set", question, *options), "question": question, "choices": options, "gold": gold}


def _gold(answer: Any, options: list[str]) -> int:
    if isinstance(answer, str) and answer in options:
        return options.index(answer)
    place = answer if isinstance(answer, int) and not isinstance(answer, bool) else -1
    if isinstance(answer, str) and len(answer) == 1:
        place = LETTERS.find(answer.upper())
    if not 0 <= place < len(options):
        raise ValueError(f"field answer: {answer!r} is no letter, index or text of {len(options)} options")
    return place
