"""Overlap with evaluation items: copies are found in any layout, shared wording is none, no item is shown."""

import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anamnesis import decontamination, items
from anamnesis.decontamination import Item, Overlap
from anamnesis.errors import UserError

WORDS = (
    "moss fern slate river lamp copper window barrel thread harbour pepper marble candle ladder meadow anchor".split()
)


SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def index(**sets: list[Item]) -> Overlap:
    overlap = Overlap()
    for name, listed in sets.items():
        overlap.add(name, listed)
    return overlap


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
MIDDLE = "Which mosses grow on slate roofs in wet valleys?"  # nine words
SHORT = "What is 3 + 4?"

OVERLAPS = [  # (prompt of the item, conversation, overlaps)
    (LONG, turns(f"Well: {LONG.upper()}!", "Yes."), True),
    (LONG, turns("Count.", f"Here:\n\n- one, two;\n- {LONG[8:]}"), True),  # in the response, laid out otherwise
    (LONG, turns(" ".join(LONG.split()[2:15]), "Yes."), True),  # 13 words of it
    (LONG, turns(" ".join(LONG.split()[2:14]), "Yes."), False),  # 12 words
    (LONG, turns(LONG.replace("eight", "ate"), "Yes."), False),
    (MIDDLE, turns(f"Please answer this question. {MIDDLE.lower()} Thanks!", "Some."), True),
    (MIDDLE, turns(MIDDLE.replace("wet", "dry"), "Some."), False),
    (SHORT, turns("what is 3+4", "7"), True),
    (SHORT, turns("What is 3 - 4?", "-1"), False),
    (SHORT, turns("What is 3 + 4? And why?", "7"), False),  # too short to be looked for inside a text
    (SHORT, turns("Ask me something.", "What is 3 + 4?"), False),
    ("用中文写一首关于秋天和河流的短诗", turns("请用中文写一首关于秋天和河流的短诗。", "好"), True),
]


@pytest.mark.parametrize(("prompt", "messages", "overlaps"), OVERLAPS)
def test_overlap(prompt: str, messages: list[dict[str, str]], overlaps: bool) -> None:
    assert (index(made=[Item(prompt), Item("Name a moss.")]).find(messages) == "made") is overlaps


def test_the_first_set_that_has_it_is_named_and_system_turns_are_not_looked_at() -> None:
    overlap = index(first=[Item("Something else.", (LONG,))], second=[Item(LONG)])
    assert overlap.find(turns(LONG, "Yes.")) == "first"
    assert overlap.find([{"role": "system", "content": LONG}, *turns("Hello?", "Hi.")]) is None


def test_the_wording_of_a_set_is_no_overlap_and_a_whole_copy_is() -> None:
    wording = (
        "Answer the question below with yes, no or maybe, and give your reasons in one short sentence. Question: {}"
    )
    prompts = [wording.format(f"is the {one} older than the {other}?") for one in WORDS[:6] for other in WORDS[6:9]]
    overlap = index(test=[Item(prompt) for prompt in prompts])
    assert overlap.find(turns(wording.format("is the meadow wet?"), "Yes.")) is None
    assert overlap.find(turns(prompts[4], "Yes.")) == "test"
    rare = index(test=[Item(wording.format("is it?")), *(Item(f"{word} {LONG}"[:40]) for word in WORDS)])
    assert rare.find(turns(wording.format("is the meadow wet?"), "Yes.")) == "test"  # in one item: not its wording


def test_of_its_own_domains_test_set_a_row_shares_phrases_but_no_prompt_and_no_long_answer() -> None:
    phrase = "consumers with questions about such a test should always ask a health care professional first"
    long = " ".join(random.Random(1).choices(WORDS, k=decontamination.ANSWER))
    overlap = index(**{"domain-test": [Item(MIDDLE, (f"Some do. {phrase}",)), Item("Name one.", (long,))]})
    answer = turns("Can I test for it?", f"Yes; {phrase}.")
    assert overlap.find(answer) == "domain-test"
    assert overlap.find(answer, kin="domain-test") is None
    assert overlap.find(turns(MIDDLE, "None."), kin="domain-test") == "domain-test"
    assert overlap.find(turns("Which one?", long), kin="domain-test") == "domain-test"


def test_every_item_of_our_own_suite_is_found() -> None:
    overlap = Overlap()
    own = decontamination.own_sets([], [{"messages": turns("Held out?", "Yes.")}], 24, 17)
    for name, listed in own.items():
        overlap.add(name, listed)
    assert tuple(own) == decontamination.OWN_SETS
    assert overlap.find(turns("held out", "No.")) == "heldout"
    for row in items.shipped("instructions"):
        assert overlap.find(turns(row["prompt"], "No.")) == "embedded-instructions"
    for row in items.shipped("general"):
        assert overlap.find(row["messages"]) == "embedded-general"
    for row in items.arithmetic(24, 17):
        assert overlap.find(turns(row["question"], "No.")) == "embedded-arithmetic"


FORMS: list[dict[str, Any]] = [
    {"key": 1, "prompt": LONG, "kwargs": []},
    {"question": "A short one?", "options": ["no", LONG], "answer": "B"},
    {"question": "A short one?", "choices": {"text": ["no", LONG], "label": ["A", "B"]}},
    {"problem": "Add.", "solution": LONG},
    {"ctx": LONG, "endings": ["a", "b"]},
    {"instruction": "Do it.", "input": LONG},
    {"messages": turns(LONG, "Yes.")},
    {"conversations": [{"from": "human", "value": "Count."}, {"from": "gpt", "value": LONG}]},
]


@pytest.mark.parametrize("row", FORMS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_forms_of_evaluation_files(row: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "README.md").write_text("no items here")
    if suffix == "jsonl":
        (folder / "test.jsonl").write_text(json.dumps(row) + "\n\n")
    else:
        pq.write_table(pa.Table.from_pylist([{key: value for key, value in row.items() if value != []}]),
                       folder / "test.parquet")  # fmt: skip
    for source in (folder, folder / f"test.{suffix}"):
        overlap = index(made=list(decontamination.read_set("made", str(source))))
        assert overlap.sizes == {"made": 1}
        assert overlap.find(turns("Hm.", f"It is {LONG}.")) == "made"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.jsonl", '{"prompt": "SECRET item"}\n{"prompt": "SECRET', ["x.jsonl", "not a readable jsonl file"]),
        ("x.jsonl", '{"SECRET": 1}\n', ["x.jsonl: row 1", "none of the fields prompt, question"]),
        ("x.jsonl", "[1]\n", ["x.jsonl: row 1"]),
        ("x.parquet", "SECRET", ["x.parquet", "not a readable parquet file"]),
        ("x.zip", "SECRET", ["expected *.jsonl or *.parquet"]),
        (None, "", ["no such file or folder"]),
    ],
)
def test_a_file_that_cant_be_read_is_one_line_without_its_items(
    name: str | None, content: str, words: list[str], tmp_path: Path
) -> None:
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(UserError) as raised:
        list(decontamination.read_set("made", str(tmp_path / (name or "y.jsonl"))))
    line = str(raised.value)
    assert line.startswith("clean.evaluation_sets.made: ")
    assert "SECRET" not in line
    assert all(word in line for word in words), line


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of shared data is not here (SHARED_DATA)")
def test_a_real_domains_rows_are_kept_for_all_its_wording(monkeypatch: pytest.MonkeyPatch) -> None:
    """PubMedQA's rows begin with one instruction, in training and in test alike."""
    train, test = (
        [json.loads(line) for line in (SHARED / f"domain/pubmedqa/{part}.jsonl").read_text("utf-8").strip().split("\n")]
        for part in ("train", "test")
    )
    found = []
    for common in (decontamination.COMMON, 1.0):
        monkeypatch.setattr(decontamination, "COMMON", common)
        overlap = index(**{"domain-test": [Item(row["instruction"], (row["response"],)) for row in test]})
        rows = [turns(row["instruction"], row["response"]) for row in train]
        found.append(sum(overlap.find(row, kin="domain-test") is not None for row in rows))
    assert found[0] < 10
    assert found[1] == len(train)
