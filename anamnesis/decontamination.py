"""Overlap of training rows with evaluation items: which set, and never which item.

In: items of every evaluation set in use, conversations to be trained on. Out: the name of the first set that a
conversation shares `GRAM` words in a row with. Items are only read here: no line, file or error prints one.

What counts as shared, after `words` has taken case, punctuation and layout away:

    an item's prompt of 13 words and more   any 13 of its words in a row, anywhere in the conversation
    a prompt of 8 to 12 words               the whole of it, anywhere in the conversation
    a shorter prompt                        a user turn that consists of it and nothing else
    options, answers, solutions             any 13 words in a row

The items of one set share a wording ("Answer with yes, no or maybe ..."), and training rows of the same domain have
it as well. So 13 words that stand in at least two items and more than `COMMON` of a set are wording, and 13 others need
`SHORTEST` words beyond it to count; a copy of a whole prompt is found all the same.
"""

import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from anamnesis import items as own_items
from anamnesis.errors import UserError

GRAM = 13  # words in a row, as GPT-3's filter and most after it
COMMON = 0.05  # of a set's items
ANSWER = 30  # words from which two equal answers are no label, title or set phrase
SHORTEST = 8  # a prompt of fewer words is too likely to stand in a text by chance
OWN_SETS = ("domain-test", "heldout", "embedded-instructions", "embedded-general", "embedded-arithmetic")

PROMPTS = ("prompt", "question", "problem", "instruction", "query", "ctx", "text")  # the first that a row has
OTHERS = ("input", "options", "choices", "endings", "answer", "solution", "explanation", "output", "response")

Message = Mapping[str, str]

# Scripts written without spaces count by the character; a sign between two numbers is a word (3 + 4 is
# not 3 - 4), and C is neither C++ nor C#.
_ONE_BY_ONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"(?<=\d)\s*[-+*/^=<>×÷−]\s*(?=\d)|[{_ONE_BY_ONE}]|[^\W_{_ONE_BY_ONE}]+(?:\+\+|#)?")


@dataclass(frozen=True)
class Item:
    """What is asked, and what else stands in the item: options, answer, solution."""

    prompt: str
    others: tuple[str, ...] = ()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return [word.strip() for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


class _Mark(NamedTuple):
    """Where a piece of text is from: the set's place and name, and whether it is part of a prompt."""

    place: int
    name: str
    of_prompt: bool


class Overlap:
    """An index of evaluation items by the words they consist of; words in a row are kept as 64-bit hashes."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}  # items by set, in the order in which a row is held against them
        self._starts: set[int] = set()  # the first `SHORTEST` words of every piece
        self._pieces: dict[int, _Mark] = {}
        self._prompts: dict[int, _Mark] = {}
        self._answers: dict[int, _Mark] = {}

    def add(self, name: str, items: Iterable[Item]) -> None:
        """Add a set. A row that overlaps with several is reported under the one that was added first."""
        texts = [(words(item.prompt), [words(other) for other in item.others]) for item in items]
        mark = _Mark(len(self.sizes), name, True)
        self.sizes[name] = len(texts)
        counts: Counter[int] = Counter()  # by the number of items that have them
        for prompt, others in texts:
            counts.update({gram for text in (prompt, *others) for gram in _grams(text)})
        wording = {gram for gram, count in counts.items() if count > max(1, COMMON * len(texts))}
        for prompt, others in texts:
            if prompt:
                self._prompts.setdefault(_hash(prompt), mark)
            if SHORTEST <= len(prompt) < GRAM:
                self._add(prompt, mark)
            self._add_grams(prompt, wording, mark)
            for other in others:
                if len(other) >= ANSWER:
                    self._answers.setdefault(_hash(other), mark)
                self._add_grams(other, wording, mark._replace(of_prompt=False))

    def _add_grams(self, text: Sequence[str], wording: set[int], mark: _Mark) -> None:
        shared = {start + i for start, gram in enumerate(_grams(text)) if gram in wording for i in range(GRAM)}
        for start in range(len(text) - GRAM + 1):
            if sum(start + i not in shared for i in range(GRAM)) >= SHORTEST:
                self._add(text[start : start + GRAM], mark)

    def _add(self, piece: Sequence[str], mark: _Mark) -> None:
        self._starts.add(_hash(piece[:SHORTEST]))
        known = self._pieces.setdefault(_hash(piece), mark)
        if known.place == mark.place and mark.of_prompt:
            self._pieces[_hash(piece)] = mark

    def find(self, messages: Iterable[Message], kin: str = "") -> str | None:
        """The name of the set that a conversation overlaps with; its system turns are not looked at.

        `kin` names the set that comes from the same source as the row: its answers share phrases with the row's, so of
        it only prompts count, and whole answers of `ANSWER` words and more.
        """
        found = {
            mark
            for message in messages
            for mark, whole in self._marks(message)
            if whole or mark.of_prompt or mark.name != kin
        }
        return min(found).name if found else None

    def _marks(self, message: Message) -> Iterator[tuple[_Mark, bool]]:
        """Every mark on a turn, and whether it is one of a whole text."""
        if message["role"] == "system":
            return
        text = words(message["content"])
        wholes = self._prompts if message["role"] == "user" else self._answers
        if mark := wholes.get(_hash(text)):
            yield mark, True
        for start in range(len(text) - SHORTEST + 1):
            if _hash(text[start : start + SHORTEST]) in self._starts:
                for length in range(SHORTEST, GRAM + 1):
                    if mark := self._pieces.get(_hash(text[start : start + length])):
                        yield mark, False


def _hash(piece: Sequence[str]) -> int:
    return hash(tuple(piece))  # differs from process to process, and nothing here outlives one


def _grams(text: Sequence[str]) -> list[int]:
    return [_hash(text[start : start + GRAM]) for start in range(len(text) - GRAM + 1)]


def own_sets(
    domain_test: Iterable[Mapping[str, Any]], heldout: Iterable[Mapping[str, Any]], arithmetic: int, seed: int
) -> dict[str, list[Item]]:
    """The sets that stage evaluate asks, by the names of `OWN_SETS`.

    `domain_test` and `heldout` are rows of the files of these names; `arithmetic` and `seed` make the arithmetic items.
    Of held-out rows only the prompt counts: the answers are the target's own and share its turns of phrase.
    """
    return {
        "domain-test": [
            Item(_said(row, "user"), (*(row["choices"] or ()), row["answer"] or "", _said(row, "assistant")))
            for row in domain_test
        ],
        "heldout": [Item(_said(row, "user")) for row in heldout],
        "embedded-instructions": [Item(row["prompt"]) for row in own_items.shipped("instructions")],
        "embedded-general": [
            Item(_said(row, "user"), (_said(row, "assistant"),)) for row in own_items.shipped("general")
        ],
        "embedded-arithmetic": [
            Item(row["question"], tuple(row["choices"])) for row in own_items.arithmetic(arithmetic, seed)
        ],
    }


def _said(row: Mapping[str, Any], role: str) -> str:
    return "\n".join(message["content"] for message in row["messages"] if message["role"] == role)


# -------------------------------------------------------------------------------------------------------- a user's sets


def read_set(name: str, source: str) -> Iterator[Item]:
    """The items of a JSONL or Parquet file, or of every such file in a folder.

    The prompt is the first field of `PROMPTS` that a row has, or the user's turns of `messages` or `conversations`; the
    texts in `OTHERS` count as well. Raises `UserError` that names the key, the file and the row, and no item.
    """
    key = f"clean.evaluation_sets.{name}"
    path = Path(source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in (".jsonl", ".parquet")]
    if not path.exists():
        raise UserError(f"{key}: {source}: no such file or folder; paths start at the project's root, {Path.cwd()}")
    if not files:
        raise UserError(f"{key}: {source}: expected *.jsonl or *.parquet, or a folder with such files")
    for file in files:
        for place, row in enumerate(_rows(key, file), 1):
            yield _item(row, f"{key}: {file}: row {place}")


def _rows(key: str, file: Path) -> Iterator[Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        if file.suffix == ".parquet":
            with pq.ParquetFile(file) as table:
                for batch in table.iter_batches(4096):
                    yield from batch.to_pylist()
            return
        with open(file, encoding="utf-8-sig") as lines:
            for line in lines:
                if line.strip():
                    yield json.loads(line)
    except (pa.ArrowException, OSError, ValueError) as error:  # the error's own words may hold an item
        raise UserError(f"{key}: {file}: not a readable {file.suffix[1:]} file ({type(error).__name__})") from None


def _item(row: Any, place: str) -> Item:
    if isinstance(row, dict):
        for turns in ("messages", "conversations"):
            if isinstance(row.get(turns), list):
                asked, answered = _turns(row[turns], ("user", "human")), _turns(row[turns], ("assistant", "gpt"))
                if asked:
                    return Item(asked, (answered,))
        for field in PROMPTS:
            if isinstance(row.get(field), str) and row[field].strip():
                others = (text for other in OTHERS if other != field for text in _texts(row.get(other)))
                return Item(row[field], tuple(others))
    raise UserError(f"{place}: none of the fields {', '.join(PROMPTS)}, messages or conversations holds text")


def _turns(turns: Sequence[Any], speakers: tuple[str, ...]) -> str:
    said = [turn for turn in turns if isinstance(turn, dict) and (turn.get("role") or turn.get("from")) in speakers]
    return "\n".join(str(turn.get("content") or turn.get("value") or "") for turn in said)


def _texts(value: Any) -> Iterator[str]:
    """Every text in a field: itself, or those in a list or mapping (options by letter, choices with labels)."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _texts(inner)
