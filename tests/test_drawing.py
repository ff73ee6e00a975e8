"""One row of a source to a conversation or a reason; the draw against a walk in seeded order."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rehearsal_sets import chat, said

from anamnesis.drawing import Draw, messages_of, order_of, row_id
from anamnesis.variants import Rehearsal

SHOWN: list[tuple[str, Any, str, str]] = [  # form, the column's value, turns, what comes of it: roles or the reason
    ("messages", chat("a", "b"), "first", "user assistant"),
    ("messages", chat("a", "b", "c", ""), "first", "user assistant"),
    ("messages", chat("a", "b", "c", ""), "all", "empty turn"),
    ("messages", chat("a", "b", "c"), "all", "user assistant"),
    ("messages", [*chat("a"), *chat("b")], "first", "odd roles"),
    ("messages", [*chat("a", "b"), {"role": "tool", "content": "x"}], "first", "user assistant"),
    ("messages", [*chat("a", "b"), {"role": "tool", "content": "x"}], "all", "odd roles"),
    ("messages", [{"role": "system", "content": "s"}, *chat("a", "b")], "all", "system user assistant"),
    ("messages", [{"role": "system", "content": "s"}], "first", "no answer"),
    ("messages", chat("a", "b" * 101), "first", "too long"),
    ("messages", chat("a</s>", "b"), "first", "template piece"),
    ("messages", None, "first", "no turns"),
    ("messages", "text", "first", "no turns"),
    ("messages", [json.dumps(turn) for turn in chat("a", "b")], "first", "user assistant"),
    ("messages", [{"role": "user", "content": None}, {"role": "assistant", "content": "b"}], "first", "empty turn"),
    ("sharegpt", said("a", "b"), "first", "user assistant"),
    ("sharegpt", chat("a", "b"), "first", "odd roles"),
    ("sharegpt", [{"from": "Human", "value": "a"}, {"from": "chatgpt", "value": "b"}], "all", "user assistant"),
]


@pytest.mark.parametrize(("form", "value", "turns", "expected"), SHOWN)
def test_a_row_becomes_a_conversation_or_a_reason(form: str, value: Any, turns: Any, expected: str) -> None:
    wanted = Rehearsal(turns=turns, max_characters=100)
    try:
        told = " ".join(role for role, _ in messages_of({"column": value}, form, "column", wanted))
    except Exception as dropped:
        told = str(dropped)
    assert told == expected


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abcdefgh"), st.booleans()), max_size=40), st.integers(1, 8), st.integers(0, 9)
)
def test_a_draw_is_a_walk_in_seeded_order(rows: list[tuple[str, bool]], count: int, seed: int) -> None:
    """The same rows, offered in the order of the file, against a reader who walks them in seeded order."""
    made = [
        {"row_id": row_id("s", "train", i), "status": "ok" if fine else "filtered", "reason": None if fine else "odd",
         "messages": [{"role": "user", "content": text}]}
        for i, (text, fine) in enumerate(rows)
    ]  # fmt: skip
    draw = Draw(count)
    for row in made:
        order = order_of(seed, row["row_id"])
        if draw.wants(order):
            draw.offer(order, row)
    expected: list[tuple[str, str | None]] = []
    seen: set[str] = set()
    for row in sorted(made, key=lambda row: order_of(seed, row["row_id"])):
        text = row["messages"][0]["content"]
        if len(seen) == count:
            break
        repeated = row["status"] == "ok" and text in seen
        expected.append((row["row_id"], "duplicate" if repeated else row["reason"]))
        seen |= {text} if row["status"] == "ok" else set()
    assert [(row["row_id"], row["reason"]) for row in draw.rows()] == expected
