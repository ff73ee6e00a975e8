"""Overlap of training rows with evaluation items: which set, and never which item.

In: items of every evaluation set in use, conversations to be trained on. Out: the name of the first set that a
conversation shares `GRAM` words in a row with. Items are only read here: no line, file or error prints one.

What counts as shared, after `words` has taken case, punctuation and layout away:

    an item's prompt of 13 words and more   any 13 of its words in a row, anywhere in the conversation
    a prompt of 8 to 12 words               the whole of it, anywhere in the conversation
    a shorter prompt                        a user turn that consists of it and nothing else
    a shorter prompt and its options        the prompt and close behind it every option, in any order
    options, answers, solutions             any 13 words in a row

An item's user turns, or its instruction and its input, are read one after another as one prompt, and so are the user
turns of a row. A turn of 8 words and more also counts on its own, and a shorter one ("Go on.") does not.

The items of one set share a wording ("Answer with yes, no or maybe ..."), and training rows of the same domain have
it as well. So 13 words that stand in at least two items and more than `COMMON` of a set are wording, and 13 others need
`SHORTEST` words beyond it to count; a copy of a whole prompt is found all the same. Equal texts are counted once.
"""

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from anamnesis import benchmarks, domain_sets, suites
from anamnesis import items as own_items
from anamnesis.errors import UserError
from anamnesis.foresight import evaluation_set
from anamnesis.sections import Evaluate

GRAM = 13  # words in a row, as GPT-3's filter and most after it
COMMON = 0.05  # of a set's items
ANSWER = 30  # words from which two equal answers are no label, title or set phrase
SHORTEST = 8  # a prompt of fewer words is too likely to stand in a text by chance
BESIDE = 4  # words for each option that may stand between a question and its options: letters, "Options:"
OWN_SETS = ("domain-test", "heldout", "embedded-instructions", "embedded-general", "embedded-arithmetic")

PROMPTS = ("prompt", "question", "problem", "instruction", "query", "ctx", "sent", "text")  # the first that a row has
CHOICES = ("options", "choices", "endings", "ending", "correct answer", "incorrect answer")  # all that it has
OTHERS = ("input", "contexts", "answer", "solution", "explanation", "output", "response")
SUFFIXES = (".jsonl", ".parquet", ".csv")

Message = Mapping[str, str]

# Scripts written without spaces count by the character; a sign between two numbers is a word (3 + 4 is
# not 3 - 4), and C is neither C++ nor C#.
_ONE_BY_ONE = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"(?<=\d)\s*[-+*/^=<>×÷−]\s*(?=\d)|[{_ONE_BY_ONE}]|[^\W_{_ONE_BY_ONE}]+(?:\+\+|#)?")


_LETTER = re.compile(r"^\W*(?:[A-Za-z]|\d{1,2})[.):\]]\s+")  # of an option


@dataclass(frozen=True)
class Item:
    """What is asked, in the turns of its user; what else stands in the item, like its answer; the options."""

    prompts: tuple[str, ...]
    others: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()


def words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return [word.strip() for word in _WORD.findall(unicodedata.normalize("NFKC", text).casefold())]


class _Mark(NamedTuple):
    """Where a piece of text is from: the set's place and name, and whether it is part of a prompt."""

    place: int
    name: str
    of_prompt: bool


class _Text(NamedTuple):
    """An item in words: its prompts, all of them one after another, its options, and the rest."""

    prompts: list[list[str]]
    whole: list[str]
    choices: list[list[str]]
    others: list[list[str]]

    @property
    def parts(self) -> list[list[str]]:
        """Of several prompts those that are long enough to count on their own."""
        return [prompt for prompt in self.prompts if len(self.prompts) > 1 and len(prompt) >= SHORTEST]


def _read(item: Item) -> _Text:
    prompts = [text for prompt in item.prompts if (text := words(prompt))]
    choices = [words(_LETTER.sub("", choice)) for choice in item.choices]
    return _Text(prompts, list(chain(*prompts)), choices, [words(other) for other in item.others])


class _Choice(NamedTuple):
    """A short question that is looked for together with its options."""

    question: list[str]
    options: list[list[str]]
    mark: _Mark

    def is_in(self, text: list[str], start: int) -> bool:
        """Does a text have the question at this place, and every option close behind it?"""
        behind = start + len(self.question)
        if text[start:behind] != self.question:
            return False
        near = text[behind : behind + sum(len(option) + BESIDE for option in self.options)]
        return all(
            any(near[i : i + len(option)] == option for i in range(len(near) - len(option) + 1))
            for option in self.options
        )


class Overlap:
    """An index of evaluation items by the words they consist of; words in a row are kept as 64-bit hashes."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}  # items by set, in the order in which a row is held against them
        self._starts: set[int] = set()  # the first `SHORTEST` words of every piece
        self._pieces: dict[int, _Mark] = {}
        self._prompts: dict[int, _Mark] = {}
        self._answers: dict[int, _Mark] = {}
        self._choices: dict[str, list[_Choice]] = {}  # by the question's first word

    def add(self, name: str, items: Iterable[Item]) -> None:
        """Add a set. A row that overlaps with several is reported under the one that was added first."""
        texts = [_read(item) for item in items]
        mark = _Mark(len(self.sizes), name, True)
        self.sizes[name] = len(texts)
        wording = _wording(texts)
        for text in texts:
            for prompt in (text.whole, *(part for part in text.parts if _hash(part) not in wording)):
                self._add_prompt(prompt, wording, mark)
            self._add_choice(text, mark)
            for other in (*text.choices, *text.others):
                if len(other) >= ANSWER:
                    self._answers.setdefault(_hash(other), mark)
                self._add_grams(other, wording, mark._replace(of_prompt=False))

    def _add_prompt(self, prompt: Sequence[str], wording: set[int], mark: _Mark) -> None:
        if prompt:
            self._prompts.setdefault(_hash(prompt), mark)
        if SHORTEST <= len(prompt) < GRAM:
            self._add(prompt, mark)
        self._add_grams(prompt, wording, mark)

    def _add_choice(self, text: _Text, mark: _Mark) -> None:
        options = [choice for choice in text.choices if choice]
        if 0 < len(text.whole) < SHORTEST <= len(text.whole) + sum(map(len, options)) and len(options) > 1:
            self._choices.setdefault(text.whole[0], []).append(_Choice(text.whole, options, mark))

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

    def find(self, messages: Iterable[Message], kin: str = "", ours: Collection[str] = ()) -> str | None:
        """The name of the set that a conversation overlaps with.

        `kin` names the set that comes from the same source as the row: its answers share phrases with the row's, so of
        it only prompts count, and whole answers of `ANSWER` words and more. `ours`: system messages that are not looked
        at.
        """
        said = [
            (message["role"], words(message["content"]))
            for message in messages
            if message["role"] != "system" or message["content"] not in ours
        ]
        asked = [text for role, text in said if role == "user"]
        if len(asked) > 1:
            said.append(("user", list(chain(*asked))))
        found = {
            mark
            for role, text in said
            for mark, whole in self._marks(role, text)
            if whole or mark.of_prompt or mark.name != kin
        }
        return min(found).name if found else None

    def _marks(self, role: str, text: list[str]) -> Iterator[tuple[_Mark, bool]]:
        """Every mark on a turn, and whether it is one of a whole text."""
        wholes = {"user": self._prompts, "assistant": self._answers}
        if mark := wholes.get(role, {}).get(_hash(text)):
            yield mark, True
        for start in range(len(text) - SHORTEST + 1):
            if _hash(text[start : start + SHORTEST]) in self._starts:
                for length in range(SHORTEST, GRAM + 1):
                    if mark := self._pieces.get(_hash(text[start : start + length])):
                        yield mark, False
        for start, word in enumerate(text):
            yield from ((one.mark, True) for one in self._choices.get(word, ()) if one.is_in(text, start))


def _wording(texts: Sequence[_Text]) -> set[int]:
    """Words in a row, and turns, that stand in at least two different items and in more than `COMMON` of them."""
    counts: Counter[int] = Counter()
    known: set[int] = set()
    different = 0
    for text in texts:
        pieces = {_hash(other): set(_grams(other)) for other in (*text.choices, *text.others)}
        pieces[_hash(text.whole)] = {*_grams(text.whole), *map(_hash, text.parts)}
        again = set[int]().union(*(pieces[key] for key in pieces.keys() & known))
        counts.update(set[int]().union(*pieces.values()) - again)
        different += not pieces.keys() <= known
        known |= pieces.keys()
    return {piece for piece, count in counts.items() if count > max(1, COMMON * different)}


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
            Item(_said(row, "user"), (row["answer"] or "", *_said(row, "assistant")), tuple(row["choices"] or ()))
            for row in domain_test
        ],
        "heldout": [Item(_said(row, "user")) for row in heldout],
        "embedded-instructions": [Item((row["prompt"],)) for row in own_items.shipped("instructions")],
        "embedded-general": [Item(_said(row, "user"), _said(row, "assistant")) for row in own_items.shipped("general")],
        "embedded-arithmetic": [
            Item((row["question"],), choices=tuple(row["choices"])) for row in own_items.arithmetic(arithmetic, seed)
        ],
    }


def _said(row: Mapping[str, Any], role: str) -> tuple[str, ...]:
    return tuple(message["content"] for message in row["messages"] if message["role"] == role)


def suite_sets(settings: Evaluate) -> dict[str, list[Item]]:
    """The items that suites local and safety and domain sets ask: `safety`, `local-<task>`, `domain-set-<name>`.

    Raises `UserError` for a file that is missing or not what its task wants. Those of suite leaderboard are on the hub.
    """
    found = {}
    if "safety" in settings.suites:
        found["safety"] = [Item((row["prompt"],)) for row in own_items.shipped("safety")]
    paths = suites.paths(settings)
    for task in settings.chosen("local"):
        rows = enumerate(benchmarks.read(paths[task]), 1)
        found[f"local-{task}"] = [_item(row, f"evaluate.data_dir: {paths[task]}: row {place}") for place, row in rows]
    for name, path in settings.domain_sets.items():
        found[f"domain-set-{name}"] = [
            Item((row["question"],), (row.get("answer", ""),), tuple(row.get("choices", ())))
            for row in domain_sets.read(name, path)
        ]
    return found


# -------------------------------------------------------------------------------------------------------- a user's sets


def read_set(name: str, source: str) -> Iterator[Item]:
    """The items of a JSONL, Parquet or CSV file, or of every such file in a folder.

    What is asked is the first field of `PROMPTS` that a row has (an instruction with its `input`), or the user's turns
    of `messages` or `conversations`; the texts in `CHOICES` and `OTHERS` count as well. Names of fields are compared
    without case, `_` and numbers. Raises `UserError` that names the key, the file and the row, and no item.
    """
    key, path = f"clean.evaluation_sets.{name}", evaluation_set(name, source)
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    files = [file for file in files if file.suffix in SUFFIXES]
    if not files:
        raise UserError(f"{key}: {source}: expected *.jsonl, *.parquet or *.csv, or a folder with such files")
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
        with open(file, encoding="utf-8-sig", newline="") as lines:
            if file.suffix == ".csv":
                yield from _csv_rows(key, file, lines)
                return
            for line in lines:
                if line.strip():
                    yield json.loads(line)
    except (pa.ArrowException, csv.Error, OSError, ValueError) as error:  # the error's own words may hold an item
        raise UserError(f"{key}: {file}: not a readable {file.suffix[1:]} file ({type(error).__name__})") from None


def _csv_rows(key: str, file: Path, lines: Iterable[str]) -> Iterator[dict[str, str]]:
    """Rows by the names in the first line."""
    for number, row in enumerate(csv.DictReader(lines, strict=True), 1):
        if None in row or None in row.values():
            raise UserError(f"{key}: {file}: row {number}: not as many fields as the first line names")
        yield row


def _item(row: Any, place: str) -> Item:
    fields: dict[str, list[Any]] = {}
    for name, value in row.items() if isinstance(row, dict) else ():
        fields.setdefault(re.sub(r"[\W\d_]+", " ", name.casefold()).strip(), []).append(value)
    asked, answered = _asked(fields)
    if not asked:
        raise UserError(f"{place}: none of the fields {', '.join(PROMPTS)}, messages or conversations holds text")
    others = (text for name in OTHERS for text in _texts(fields.get(name)))
    choices = (text for name in CHOICES for text in _texts(fields.get(name)))
    return Item(asked, (*answered, *others), tuple(choices))


def _asked(fields: Mapping[str, Sequence[Any]]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What the user says in an item, in turns, and what is answered, where the item is a conversation."""
    for turns in (turns for name in ("messages", "conversations") for turns in fields.get(name, ())):
        if isinstance(turns, list) and (asked := _turns(turns, ("user", "human"))):
            return asked, _turns(turns, ("assistant", "gpt"))
    for name in PROMPTS:
        if prompt := next((text for text in fields.get(name, ()) if isinstance(text, str) and text.strip()), None):
            # As in anamnesis/formats.py, an instruction and its input are one user's turn.
            return (prompt, *(_texts(fields.get("input")) if name == "instruction" else ())), ()
    return (), ()


def _turns(turns: Sequence[Any], speakers: tuple[str, ...]) -> tuple[str, ...]:
    said = [turn for turn in turns if isinstance(turn, dict) and (turn.get("role") or turn.get("from")) in speakers]
    return tuple(text for turn in said if (text := str(turn.get("content") or turn.get("value") or "")))


def _texts(value: Any) -> Iterator[str]:
    """Every text in a field: itself, or those in a list or mapping (options by letter); labels of choices are none."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner)
    elif isinstance(value, dict):
        for name, inner in value.items():
            if name != "label":
                yield from _texts(inner)
