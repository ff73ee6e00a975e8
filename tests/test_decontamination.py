"""Overlap with evaluation items: copies are found in any layout, shared wording is none, no item is shown."""

import csv
import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from cleaning_rows import LONG, SHARED, WORDS, index, turns

from anamnesis import decontamination, formats, items
from anamnesis.decontamination import Item, Overlap
from anamnesis.errors import BAD_INPUT, UserError

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
    assert (index(made=[Item((prompt,)), Item(("Name a moss.",))]).find(messages) == "made") is overlaps


SEVEN, EIGHT = "What is the oldest moss you know?", "And which fern grows beside it on slate?"
AGAIN = "Can you say that again in much simpler words?"

TURNS = [  # (user turns of the item, conversation, overlaps)
    ((SEVEN, EIGHT), turns(SEVEN, "Sphagnum.", EIGHT, "None."), True),
    ((SEVEN, EIGHT), turns("Hello!", "Hi.", EIGHT, "None."), True),  # a turn of eight words counts on its own
    ((SEVEN, SEVEN[:-1]), turns("Hello!", "Hi.", SEVEN, "Sphagnum.", SEVEN, "I said so.", "Bye.", "Bye."), True),
    ((SEVEN, "Why?", "Go on."), turns(SEVEN, "Sphagnum.", "Why?", "It is.", "Go on.", "No."), True),
    ((SEVEN, "Why?", "Go on."), turns(SEVEN, "Sphagnum.", "Go on.", "No.", "Why?", "It is."), False),
    ((SEVEN, "Why?"), turns(SEVEN, "Sphagnum."), False),
    ((SEVEN, "Why?"), turns("Ferns?", "No.", "Why?", "It is."), False),
    (("Yes.", "Continue."), turns("Yes!", "Well then.", "Continue!", "No."), True),
    (("Yes.", "Continue."), turns("A tale, please.", "A long one?", "Yes.", "It was.", "Continue.", "No."), False),
    ((LONG, "Go on."), turns(LONG, "Yes."), True),
    ((LONG, "Go on."), turns("Mosses?", "Yes.", "Go on.", "No."), False),
    ((SEVEN, "Why?", "Go on."), turns(f"{SEVEN}\nWhy?\nGo on.", "No."), True),  # in one turn
]


@pytest.mark.parametrize(("prompts", "messages", "overlaps"), TURNS)
def test_overlap_with_an_item_of_several_turns(
    prompts: tuple[str, ...], messages: list[dict[str, str]], overlaps: bool, tmp_path: Path
) -> None:
    item = {"messages": turns(*(text for prompt in prompts for text in (prompt, "Yes.")))}
    (tmp_path / "made.jsonl").write_text(json.dumps(item))
    domain = item | {"choices": None, "answer": None}
    for listed in (
        [Item(prompts)],
        decontamination.own_sets([domain], [], 0, 1)["domain-test"],
        decontamination.own_sets([], [item], 0, 1)["heldout"],
        list(decontamination.read_set("made", str(tmp_path))),
    ):
        assert (index(made=listed).find(messages) == "made") is overlaps


def test_an_answer_of_an_earlier_turn_counts() -> None:
    row = {"messages": turns("Count.", LONG, "Go on.", "Yes."), "choices": None, "answer": None}
    overlap = index(**decontamination.own_sets([row], [], 0, 1))
    assert overlap.find(turns("Please count for me.", f"{LONG} seventeen.")) == "domain-test"


def test_a_turn_that_many_items_have_is_no_overlap_alone() -> None:
    overlap = index(test=[Item((f"Tell me about {word}.", AGAIN)) for word in WORDS])
    assert overlap.find(turns("What is slate?", "A stone.", AGAIN, "A thin stone.")) is None
    assert overlap.find(turns("Tell me about slate.", "It is a stone.", AGAIN, "A thin stone.")) == "test"
    assert index(test=[Item((SEVEN, AGAIN))]).find(turns("Slate?", "A stone.", AGAIN, "A thin one.")) == "test"


def test_an_instruction_with_its_input_is_found_as_our_own_reader_joins_them(tmp_path: Path) -> None:
    row = {"instruction": "Put this in the plural.", "input": "A small moss sat on a wet roof.", "output": "Mosses."}
    (tmp_path / "made.jsonl").write_text(json.dumps(row))
    overlap = index(made=list(decontamination.read_set("made", str(tmp_path))))
    for read in formats.read(str(tmp_path / "made.jsonl")):
        assert overlap.find(read.as_messages()) == "made"
    assert overlap.find(turns("Put this in the plural.\n\nA large fern.", "Ferns.")) is None


OPTIONS = ("the velvet moss", "a slate roof", "B. some river")
CHOICES = [  # (row's text, overlaps)
    ("Which of these is green?\nA. the velvet moss\nB. a slate roof\nC. some river", True),
    ("Take care. Which of these is green? (a) some river (b) the velvet moss (c) a slate roof Say one.", True),
    ("Which of these is green?\n\nOptions:\n1) A slate roof\n2) The velvet moss\n3) Some river\n\nAnswer:", True),
    ("Which of these is green: the velvet moss, a slate roof, some river?", True),
    ("Which of these is green?\nA. the velvet moss\nB. a slate roof\nC. some lamp", False),
    ("Which of these is grey?\nA. the velvet moss\nB. a slate roof\nC. some river", False),
    (f"Which of these is green? I saw {LONG} {LONG}, a slate roof, some river and the velvet moss.", False),
]


@pytest.mark.parametrize(("text", "overlaps"), CHOICES)
def test_a_short_question_is_found_with_its_options(text: str, overlaps: bool) -> None:
    for choices in (OPTIONS, OPTIONS[::-1]):
        overlap = index(made=[Item(("Which of these is green?",), choices=choices), Item(("Which one?",))])
        assert (overlap.find(turns(text, "A.")) == "made") is overlaps
        assert (overlap.find(turns("Ask me.", text), kin="made") == "made") is overlaps


def test_the_first_set_that_has_it_is_named() -> None:
    overlap = index(first=[Item(("Something else.",), (LONG,))], second=[Item((LONG,))])
    assert overlap.find(turns(LONG, "Yes.")) == "first"


def test_system_turns_count_and_ours_do_not() -> None:
    overlap = index(made=[Item((LONG,)), Item(("Be brief.",))])
    said = [{"role": "system", "content": f"Text: {LONG}"}, *turns("Hello?", "Hi.")]
    assert overlap.find(said) == "made"
    assert overlap.find(said, ours={f"Text: {LONG}"}) is None
    assert overlap.find([{"role": "system", "content": "Be brief."}, *turns("Hello?", "Hi.")]) is None


def test_equal_items_are_no_wording() -> None:
    """A small set with its items in it twice, or one prompt with several answers, is looked for like any other."""
    part = turns("Count.", " ".join(LONG.split()[:14]))
    for listed in (
        [Item((LONG,))] * 3,
        [Item((LONG,), (f"{LONG} {word}",)) for word in WORDS[:3]],
        [Item((f"Count {word}.",), (LONG,)) for word in WORDS[:3]],
    ):
        assert index(made=[*listed, Item(("Name a moss.",))]).find(part) == "made"


def test_the_wording_of_a_set_is_no_overlap_and_a_whole_copy_is() -> None:
    wording = (
        "Answer the question below with yes, no or maybe, and give your reasons in one short sentence. Question: {}"
    )
    prompts = [wording.format(f"is the {one} older than the {other}?") for one in WORDS[:6] for other in WORDS[6:9]]
    overlap = index(test=[Item((prompt,)) for prompt in prompts])
    assert overlap.find(turns(wording.format("is the meadow wet?"), "Yes.")) is None
    assert overlap.find(turns(prompts[4], "Yes.")) == "test"
    rare = index(test=[Item((wording.format("is it?"),)), *(Item((f"{word} {LONG}"[:40],)) for word in WORDS)])
    assert rare.find(turns(wording.format("is the meadow wet?"), "Yes.")) == "test"  # in one item: not its wording


def test_of_its_own_domains_test_set_a_row_shares_phrases_but_no_prompt_and_no_long_answer() -> None:
    phrase = "consumers with questions about such a test should always ask a health care professional first"
    long = " ".join(random.Random(1).choices(WORDS, k=decontamination.ANSWER))
    overlap = index(**{"domain-test": [Item((MIDDLE,), (f"Some do. {phrase}",)), Item(("Name one.",), (long,))]})
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
    {"sent1": "A short one?", "ending0": "no", "ending1": LONG, "label": "1"},  # MedQA's columns on the hub
    {"CONTEXTS": ["Aim.", LONG], "QUESTION": "A short one?", "final_decision": "no"},  # PubMedQA's
    {"instruction": "Do it.", "input": LONG},
    {"messages": turns(LONG, "Yes.")},
    {"Record ID": "r", "Question": LONG, "Correct Answer": "a", "Incorrect Answer 1": "b"},  # GPQA's columns
    {"Question": "A short one?", "Correct Answer": "a", "Incorrect Answer 1": "b", "Incorrect Answer 2": LONG},
    {"question_id": "1", "Problem": "Add.", "SOLUTION": LONG},
    {"conversations": [{"from": "human", "value": "Count."}, {"from": "gpt", "value": LONG}]},
]


AS_TABLE = [row for row in FORMS if all(isinstance(value, str) for value in row.values())]  # CSV has no lists


@pytest.mark.parametrize(
    ("row", "suffix"),
    [*((row, suffix) for suffix in ("jsonl", "parquet") for row in FORMS), *((row, "csv") for row in AS_TABLE)],
)
def test_forms_of_evaluation_files(row: dict[str, Any], suffix: str, tmp_path: Path) -> None:
    folder = tmp_path / "sets"
    folder.mkdir()
    (folder / "README.md").write_text("no items here")
    if suffix == "jsonl":
        (folder / "test.jsonl").write_text(json.dumps(row) + "\n\n")
    elif suffix == "csv":
        with open(folder / "test.csv", "w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(row))
            table.writeheader()
            table.writerow({key: value.replace(" eight ", " eight,\n") for key, value in row.items()})
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
        ("x.zip", "SECRET", ["expected *.jsonl, *.parquet or *.csv"]),
        ("x.csv", 'question,answer\nSECRET,1\n"SECRET', ["x.csv", "not a readable csv file"]),
        ("x.csv", "question,answer\na,b\nSECRET,1,2\n", ["x.csv: row 2: not as many fields as the first line"]),
        ("x.csv", "question,answer\nSECRET\n", ["x.csv: row 1: not as many fields as the first line"]),
        ("x.csv", "SECRET,answer\n1,2\n", ["x.csv: row 1", "none of the fields prompt, question"]),
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
    assert raised.value.code == BAD_INPUT


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
        overlap = index(**{"domain-test": [Item((row["instruction"],), (row["response"],)) for row in test]})
        rows = [turns(row["instruction"], row["response"]) for row in train]
        found.append(sum(overlap.find(row, kin="domain-test") is not None for row in rows))
    assert found[0] < 10
    assert found[1] == len(train)
