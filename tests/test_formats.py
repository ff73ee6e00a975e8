"""A user's own file: three forms, one result; every mistake names file, line and field; the split has no leak."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anamnesis import formats, records
from anamnesis.errors import BAD_INPUT, POOL_TOO_SMALL, UserError

ROWS = [("What is a lichen?", "A fungus and an alga."), ("Name a moss.", "Sphagnum."), ("Is it wet?", "Often.\nYes.")]


def as_form(form: str, question: str, answer: str) -> dict[str, Any]:
    user, assistant = ({"messages": "user", "sharegpt": "human"}, {"messages": "assistant", "sharegpt": "gpt"})
    if form == "messages":
        return {"messages": [{"role": user[form], "content": question}, {"role": assistant[form], "content": answer}]}
    if form == "sharegpt":
        return {"conversations": [{"from": user[form], "value": question}, {"from": assistant[form], "value": answer}]}
    return {"instruction": question, "response" if form == "response" else "output": answer}


def write_jsonl(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("form", ["messages", "alpaca", "response", "sharegpt"])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_every_form_gives_the_same_messages(form: str, suffix: str, tmp_path: Path) -> None:
    rows = [as_form(form, *row) for row in ROWS]
    path = tmp_path / f"my.{suffix}"
    if suffix == "jsonl":
        write_jsonl(path, rows)
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    read = formats.read(str(path))
    assert [row.as_messages() for row in read] == [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in ROWS
    ]


def test_a_system_turn_an_input_and_several_turns(tmp_path: Path) -> None:
    source = write_jsonl(
        tmp_path / "my.jsonl",
        [
            {"instruction": "Translate.", "input": "moss", "output": "Moos", "system": "Be brief.", "licence": "CC0"},
            {"instruction": "Translate.", "input": "", "output": "What?", "category": "plants", "other": [1]},
        ],
    )
    first, second = formats.read(source)
    assert first.messages == (("system", "Be brief."), ("user", "Translate.\n\nmoss"), ("assistant", "Moos"))
    assert (first.licence, second.category) == ("CC0", "plants")
    talk = [("system", "Hi"), ("human", "a"), ("gpt", "b"), ("human", "c"), ("gpt", "d")]
    turns = [{"from": speaker, "value": said} for speaker, said in talk]
    [row] = formats.read(write_jsonl(tmp_path / "talk.jsonl", [{"conversations": turns}]))
    assert [role for role, _ in row.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert row.prompt == "a"


def test_a_byte_order_mark_blank_lines_and_odd_line_breaks_are_read(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    odd = "a\u2028b\x85c"  # line breaks for str.splitlines, not for JSONL
    row = json.dumps(as_form("alpaca", odd, "ü"), ensure_ascii=False)
    path.write_bytes(b"\xef\xbb\xbf" + f"{row}\r\n\n{row}".encode())
    assert [row.messages for row in formats.read(str(path))] == [(("user", odd), ("assistant", "ü"))] * 2


OK = json.dumps(as_form("alpaca", "q", "a")).encode()
MESSAGES = "every row needs `messages`, a list of {role, content} that ends with the assistant"
ALPACA = "every row needs `instruction` and `output` (or `response`) as text"
SHAREGPT = "every row needs `conversations`, a list of {from, value} that ends with gpt"
CHOICE = "a row with `choices` needs `question`, two or more choices and the right one as `answer`"


def turns(*roles: str) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": "x"} for role in roles]}


# The last line of each file is wrong: what the error says after the file's name.
EXPECTED: dict[str, tuple[list[Any], str]] = {
    "no output": ([OK, {"instruction": "q"}], f"line 2: field 'output': missing or empty; {ALPACA}"),
    "blank output": (
        [OK, OK, {"instruction": "q", "output": " \n"}],
        f"line 3: field 'output': missing or empty; {ALPACA}",
    ),
    "output is a list": (
        [OK, {"instruction": "q", "output": ["a"]}],
        f"line 2: field 'output': expected text, found a list; {ALPACA}",
    ),
    "null response": (
        [{"instruction": "q", "response": None}],
        f"line 1: field 'output': missing or empty; {ALPACA}",
    ),
    "input is a number": (
        [{"instruction": "q", "input": 3, "output": "a"}],
        f"line 1: field 'input': expected text, found a number; {ALPACA}",
    ),
    "another form": ([OK, turns("user", "assistant")], f"line 2: field 'instruction': missing or empty; {ALPACA}"),
    "no form": (
        [{"prompt": "q", "completion": "a"}],
        "line 1: no known form (fields: `prompt`, `completion`); "
        "expected `messages`, `instruction` and `output`, or `conversations`",
    ),
    "not an object": ([OK, ["q", "a"]], "line 2: expected an object with named fields, found a list"),
    "not JSON": (
        [OK, b'{"instruction": "q", output: "a"}'],
        "line 2: not valid JSON (Expecting property name enclosed in double quotes at column 22); "
        "every line is one JSON object",
    ),
    "not UTF-8": (
        [OK, OK, '{"instruction": "Fluß", "output": "a"}'.encode("latin-1")],
        "line 3: not UTF-8 (byte 0xdf at position 21); save the file as UTF-8",
    ),
    "UTF-16": ([OK.decode().encode("utf-16")], "line 1: not UTF-8 (byte 0xff at position 1); save the file as UTF-8"),
    "half a surrogate pair": (
        [{"instruction": "q", "output": "\ud800"}],
        f"line 1: field 'output': holds half of a surrogate pair (a broken \\ud800..\\udfff escape); {ALPACA}",
    ),
    "no turns": ([{"messages": []}], f"line 1: field 'messages': missing or empty; {MESSAGES}"),
    "messages is text": (
        [{"messages": "hi"}],
        f"line 1: field 'messages': expected a list, found text; {MESSAGES}",
    ),
    "a turn is text": (
        [{"messages": ["hi"]}],
        f"line 1: field 'messages[0]': expected an object, found text; {MESSAGES}",
    ),
    "ends with the user": (
        [turns("user", "assistant", "user")],
        f"line 1: field 'messages[2].role': the last turn is the user's; {MESSAGES}",
    ),
    "only a system turn": (
        [turns("system")],
        f"line 1: field 'messages[0].role': the last turn is the system's; {MESSAGES}",
    ),
    "assistant first": (
        [turns("assistant")],
        f"line 1: field 'messages[0].role': assistant where the user is due; {MESSAGES}",
    ),
    "two user turns": (
        [turns("system", "user", "user", "assistant")],
        f"line 1: field 'messages[2].role': user where the assistant is due; {MESSAGES}",
    ),
    "a late system turn": (
        [turns("user", "system", "assistant")],
        f"line 1: field 'messages[1].role': system where the assistant is due; {MESSAGES}",
    ),
    "an unknown role": (
        [turns("user", "tool")],
        f"line 1: field 'messages[1].role': 'tool' is not one of system, user, assistant; {MESSAGES}",
    ),
    "content in parts": (
        [{"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]}],
        f"line 1: field 'messages[0].content': expected text, found a list; {MESSAGES}",
    ),
    "an empty ShareGPT turn": (
        [{"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": ""}]}],
        f"line 1: field 'conversations[1].value': missing or empty; {SHAREGPT}",
    ),
    "an unknown ShareGPT speaker": (
        [{"conversations": [{"from": "bing", "value": "q"}]}],
        "line 1: field 'conversations[0].from': 'bing' is not one of human, user, gpt, assistant, system; " + SHAREGPT,
    ),
    "a choice without a question": (
        [OK, {"choices": ["x", "y"], "answer": "x"}],
        f"line 2: field 'question': missing or empty; {CHOICE}",
    ),
    "one choice": (
        [{"question": "q", "choices": ["x"], "answer": "x"}],
        f"line 1: field 'choices': expected a list of two or more; {CHOICE}",
    ),
    "a choice twice": (
        [{"question": "q", "choices": ["x", "x"], "answer": "x"}],
        f"line 1: field 'choices': the same choice stands twice; {CHOICE}",
    ),
    "an answer that is no choice": (
        [{"question": "q", "choices": ["x", "y"], "answer": "z"}],
        f"line 1: field 'answer': 'z' is none of the choices, their letters (A..B) or places (0..1); {CHOICE}",
    ),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_an_error_names_file_line_and_field(name: str, tmp_path: Path) -> None:
    lines, expected = EXPECTED[name]
    path = tmp_path / "my.jsonl"
    path.write_bytes(
        b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)
    )
    with pytest.raises(UserError) as raised:
        formats.read(str(path))
    assert str(raised.value) == f"{path}: {expected}"
    assert raised.value.code == BAD_INPUT


def test_a_parquet_row_is_named_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "my.parquet"
    pq.write_table(pa.table({"instruction": ["q"] * 5000, "output": ["a"] * 4998 + [None, "a"]}), path)
    with pytest.raises(UserError, match=r"my\.parquet: row 4999: field 'output': missing or empty"):
        formats.read(str(path))


SOURCES = {
    "absent.jsonl": "absent.jsonl: no such file",
    "notes.csv": "'notes.csv': expected icd10cm, *.jsonl, *.parquet or hf:<repo>@<revision>",
    "array.json": "a JSON array becomes JSONL with",
    "empty.jsonl": "empty.jsonl: no rows",
    "broken.parquet": "broken.parquet: not a readable Parquet file",
    "hf:someone/moss": "write hf:<repo>@<revision>",
}


@pytest.mark.parametrize("source", SOURCES)
def test_a_source_that_cannot_be_read_is_one_line(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").write_text("\n\n")
    Path("broken.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(UserError) as raised:
        formats.read(source)
    assert SOURCES[source] in str(raised.value)
    assert "\n" not in str(raised.value)
    assert raised.value.code == BAD_INPUT


def test_a_hub_data_set_is_read_at_its_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    def load(repo: str, *, revision: str, split: str) -> Any:
        if repo != "someone/moss":
            raise datasets.exceptions.DatasetNotFoundError(f"no {repo}\nat all")
        assert (revision, split) == ("abc123", "train")
        return datasets.Dataset.from_list([as_form("messages", *row) for row in ROWS])

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert [row.prompt for row in formats.read("hf:someone/moss@abc123")] == [question for question, _ in ROWS]
    with pytest.raises(
        UserError, match=r"hf:other/moss@abc123: the split `train` can't be loaded \(no other/moss at all"
    ):
        formats.read("hf:other/moss@abc123")


# --------------------------------------------------------------------------------------------------------- the split


def conversations(count: int) -> list[formats.Row]:
    return [formats.Row((("user", f"q{place}"), ("assistant", f"a{place}"))) for place in range(count)]


def test_the_split_has_no_leak_and_counts_duplicates() -> None:
    rows = conversations(60)
    again = [formats.Row((("user", f"q{place}"), ("assistant", "another answer"))) for place in range(60)]
    train, test, removed = formats.split([*rows, *again, *rows[:7]], 60, 20, 17, "my.jsonl", "CC0")
    assert (len(train), len(test), removed) == (60, 20, 7)
    trained = {row["messages"][0]["content"] for row in train}
    tested = {row["messages"][0]["content"] for row in test}
    assert len(tested) == 20
    assert not trained & tested
    assert {row["kind"] for row in test} == {"text"}
    assert {row["licence"] for row in train} == {"CC0"}
    assert test[0]["messages"][-1]["role"] == "assistant"


def test_the_split_follows_the_seed_and_not_the_order_of_the_file() -> None:
    rows = conversations(60)
    first = formats.split(rows, 30, 10, 17, "my.jsonl", "CC0")
    assert formats.split(rows[::-1], 30, 10, 17, "my.jsonl", "CC0") == first
    assert formats.split(rows, 30, 10, 18, "my.jsonl", "CC0") != first
    fewer, _, _ = formats.split(rows, 20, 10, 17, "my.jsonl", "CC0")
    assert fewer == first[0][:20]


def test_choice_rows_are_test_items_and_their_questions_are_not_trained_on(tmp_path: Path) -> None:
    rows: list[Any] = [as_form("alpaca", f"q{place}", "a") for place in range(30)]
    for answer in ("moss", "B", 1):
        rows.insert(0, {"question": f"q{len(rows) - 28}", "choices": ["fern", "moss"], "answer": answer})
    train, test, _ = formats.split(formats.read(write_jsonl(tmp_path / "my.jsonl", rows)), 17, 10, 17, "my", "CC0")
    choice = [row for row in test if row["kind"] == "choice"]
    asked = {row["messages"][0]["content"] for row in choice}
    assert asked == {"q2", "q3", "q4"}
    assert all(row["choices"][row["gold"]] == "moss" for row in choice)
    assert not asked & {row["messages"][0]["content"] for row in [*train, *test] if row not in choice}
    pa.Table.from_pylist(test, records.DOMAIN_TEST)


@pytest.mark.parametrize(("count", "train", "test"), [(50, 400, 60), (50, 45, 10), (5, 1, 60), (2, 5, 5)])
def test_a_small_file_is_one_line_with_numbers_that_fit(count: int, train: int, test: int) -> None:
    rows = conversations(count)
    with pytest.raises(UserError) as raised:
        formats.split(rows, train, test, 17, "my.jsonl", "CC0")
    line = str(raised.value)
    assert raised.value.code == POOL_TOO_SMALL
    assert line.startswith(f"my.jsonl: {count} different conversations ({count} first turns) are too few")
    advised = dict(part.split(" to ") for part in line.split("; lower ")[1].split(" and "))
    fitting = {"domain.train": train, "domain.test": test} | {key: int(value) for key, value in advised.items()}
    formats.split(rows, fitting["domain.train"], fitting["domain.test"], 17, "my.jsonl", "CC0")


MEDQUAD = Path(os.environ.get("SHARED_DATA", "")) / "domain/medquad/train.jsonl"


@pytest.mark.skipif(not MEDQUAD.exists(), reason="needs real data: SHARED_DATA names the folder")
def test_real_rows_are_read_and_split() -> None:
    rows = formats.read(str(MEDQUAD))
    with MEDQUAD.open(encoding="utf-8") as file:
        raw = [json.loads(line) for line in file]
    assert [row.messages for row in rows] == [(("user", r["instruction"]), ("assistant", r["response"])) for r in raw]
    assert {row.licence for row in rows} == {"CC-BY-4.0"}
    train, test, removed = formats.split(rows, 400, 60, 17, str(MEDQUAD), "unknown")
    assert (len(train), len(test)) == (400, 60)
    assert removed == len(raw) - len({(r["instruction"], r["response"]) for r in raw})
    assert not {r["messages"][0]["content"] for r in train} & {r["messages"][0]["content"] for r in test}
