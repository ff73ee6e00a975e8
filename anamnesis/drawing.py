"""One row of a rehearsal source as a conversation, and the seeded draw of such rows.

The order of a row is a hash of the seed and its place, so a smaller draw is a part of a larger one, whatever the order
of the file: many sets stand sorted by origin, and a shuffle buffer would see one origin only.
"""

import heapq
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from anamnesis.records import digest
from anamnesis.template import TEMPLATE_PIECES
from anamnesis.variants import Rehearsal

Turns = list[tuple[str, str]]  # (role, content)

COLUMNS = {"messages": "messages", "sharegpt": "conversations", "alpaca": "instruction"}  # by which a form is known
KEYS = {"messages": ("role", "content"), "sharegpt": ("from", "value")}
ROLES = {
    **dict.fromkeys(("user", "human"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bing", "bard"), "assistant"),
    "system": "system",
}
UNPRUNED = 1000  # dropped rows, over four times the wanted ones, before those beyond the draw are let go


@dataclass(frozen=True)
class Place:
    """One source, resolved: what to read, in which form, under which licence."""

    name: str
    uri: str  # path:<file or folder> or hf:<repo>@<revision>
    form: str | None  # None: found by the columns
    column: str | None
    config: str | None
    splits: tuple[str, ...]
    files: str | None
    flags: tuple[str, ...]
    licence: str


class _Drop(Exception):
    """Why a row can't be used; the message is its reason."""


def messages_of(raw: Mapping[str, Any], form: str, column: str | None, rehearsal: Rehearsal) -> Turns:
    """The conversation of one row, its first turn or all of it. Raises `_Drop` with the reason where there is none."""
    turns = _alpaca(raw) if form == "alpaca" else _listed(raw.get(column or ""), *KEYS[form])
    kept = _in_turn(turns, whole=rehearsal.turns == "all")
    if sum(len(content) for _, content in kept) > rehearsal.max_characters:
        raise _Drop("too long")
    if any(TEMPLATE_PIECES.search(content) for _, content in kept):
        raise _Drop("template piece")
    return kept


def _alpaca(raw: Mapping[str, Any]) -> Turns:
    instruction, extra = _text(raw.get("instruction")), _text(raw.get("input"))
    answer = _text(raw.get("output")) or _text(raw.get("response"))
    asked = f"{instruction}\n\n{extra}" if instruction and extra else instruction
    return [("system", _text(raw.get("system"))), ("user", asked), ("assistant", answer)]


def _listed(listed: Any, speaker: str, said: str) -> Turns:
    listed = _decoded(listed)
    if not isinstance(listed, list) or not listed:
        raise _Drop("no turns")
    turns = [_decoded(turn) for turn in listed]
    if not all(isinstance(turn, dict) for turn in turns):
        raise _Drop("no turns")
    return [(ROLES.get(str(turn.get(speaker)).lower(), ""), _text(turn.get(said))) for turn in turns]


def _decoded(value: Any) -> Any:
    """A value as it stood in the file: `datasets` keeps objects whose keys differ from row to row as JSON text."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value.strip() else ""


def _in_turn(turns: Turns, *, whole: bool) -> Turns:
    """The turns that are kept: a system turn that says something, then user and assistant, the assistant last."""
    kept = turns[:1] if turns[0][0] == "system" and turns[0][1] else []
    rest = turns[1:] if turns[0][0] == "system" else turns
    rest = rest if whole else rest[:2]
    if any(role != ("user", "assistant")[i % 2] for i, (role, _) in enumerate(rest)):
        raise _Drop("odd roles")
    rest = rest[: len(rest) // 2 * 2]  # a last question without an answer teaches nothing
    if not rest:
        raise _Drop("no answer")
    if not all(content for _, content in rest):
        raise _Drop("empty turn")
    return kept + rest


def row_of(raw: Mapping[str, Any], split: str, index: int, place: Place, rehearsal: Rehearsal) -> dict[str, Any]:
    """A row of `records.REHEARSAL`; the messages of a row that is not ok are left out."""
    licence = _text(raw.get("licence")) or _text(raw.get("license")) or place.licence
    row = {"row_id": row_id(place.name, split, index), "source": place.name, "messages": None, "licence": licence}
    try:
        for flag in place.flags:
            if raw.get(flag):
                raise _Drop(flag)
        turns = messages_of(raw, place.form or "", place.column, rehearsal)
    except _Drop as drop:
        return row | {"status": "filtered", "reason": str(drop)}
    messages = [{"role": role, "content": content} for role, content in turns]
    return row | {"messages": messages, "status": "ok", "reason": None}


def row_id(source: str, split: str, index: int) -> str:
    return digest("rehearsal", source, split, index)


def instruction_of(row: Mapping[str, Any]) -> str:
    """The first user turn of a good row."""
    return next(str(message["content"]) for message in row["messages"] if message["role"] == "user")


def order_of(seed: int, row: str) -> int:
    """The place of a row in the seeded order of its source."""
    return int(digest(seed, "rehearse", row), 16)


class Draw:
    """The first `count` good rows with different instructions in seeded order, from rows offered in any order.

    Rows that stand before the last of them and are not good, or repeat an instruction, are kept as well: they are what
    a reader who walks the source in that order meets. Memory is that of the rows kept.
    """

    def __init__(self, count: int):
        self._count = count
        self._good: dict[str, tuple[int, dict[str, Any]]] = {}  # by instruction
        self._last: list[tuple[int, str]] = []  # a heap, the last in order on top; replaced rows are skipped
        self._dropped: list[tuple[int, dict[str, Any]]] = []
        self._bound: int | None = None  # no row from here on is met

    def wants(self, order: int) -> bool:
        """Whether a row at this place in the order would be met: only then need it be read."""
        return self._bound is None or order < self._bound

    def offer(self, order: int, row: dict[str, Any]) -> None:
        """Take a row into account."""
        if row["status"] != "ok":
            self._drop(order, row)
            return
        text = digest(" ".join(instruction_of(row).split()))
        first = self._good.get(text)
        if first and first[0] < order:
            self._drop(order, _duplicate(row))
            return
        if first:
            self._drop(first[0], _duplicate(first[1]))
        self._good[text] = (order, row)
        heapq.heappush(self._last, (-order, text))
        while len(self._good) > self._count:
            del self._good[self._top()]
            heapq.heappop(self._last)
        if len(self._good) == self._count:
            self._bound = self._good[self._top()][0]

    def _top(self) -> str:
        """The instruction that stands last in order."""
        while True:
            order, text = self._last[0]
            if text in self._good and self._good[text][0] == -order:
                return text
            heapq.heappop(self._last)

    def _drop(self, order: int, row: dict[str, Any]) -> None:
        self._dropped.append((order, row))
        if len(self._dropped) > 4 * self._count + UNPRUNED:
            self._dropped = [one for one in self._dropped if self.wants(one[0])]

    def rows(self) -> list[dict[str, Any]]:
        """All that was met, in seeded order."""
        met = [*self._good.values(), *(one for one in self._dropped if self.wants(one[0]))]
        return [row for _, row in sorted(met, key=lambda one: one[0])]


def _duplicate(row: dict[str, Any]) -> dict[str, Any]:
    return row | {"messages": None, "status": "filtered", "reason": "duplicate"}


def reasons_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows were dropped for which reason."""
    counts: dict[str, int] = {}
    for row in rows:
        if row["status"] != "ok":
            counts[row["reason"]] = counts.get(row["reason"], 0) + 1
    return counts
