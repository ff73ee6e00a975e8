"""What is taken out before the mix: planted copies are named by their set, each reason has its rows, the rest stays."""

import contextlib
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from anamnesis import cleaning, decontamination, items, records
from anamnesis.decontamination import Item, Overlap
from anamnesis.errors import UserError
from stages import clean

SHARED = Path(os.environ.get("SHARED_DATA", Path(__file__).resolve().parent.parent.parent / "shared" / "data"))
# Written for this test in the manner of IFEval: a task and constraints that a program can check.
LIKE_IFEVAL = (
    "Write a product description for a folding bicycle aimed at commuters. Your entire reply must be in lowercase "
    "letters, it must contain at least four sections marked with a hash, and the word pedal must appear three times."
)
WORDS = (
    "moss fern slate river lamp copper window barrel thread harbour pepper marble candle ladder meadow anchor".split()
)


def turns(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def index(**sets: list[Item]) -> Overlap:
    overlap = Overlap()
    for name, listed in sets.items():
        overlap.add(name, listed)
    return overlap


def candidates(*rows: tuple[str, list[dict[str, str]]]) -> pa.Table:
    """Rows of a rehearsal source by id."""
    listed = [
        {"row_id": key, "source": "made", "messages": messages, "licence": "MIT", "status": "ok"}
        for key, messages in rows
    ]
    return cleaning.rehearsed(pa.Table.from_pylist(listed, records.REHEARSAL))


def reasons(table: pa.Table) -> dict[str, tuple[str, str | None]]:
    return {row["row_id"]: (row["status"], row["reason"]) for row in table.to_pylist()}


LONG = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"

# ------------------------------------------------------------------------------------------- refused, truncated, others

REFUSED = [
    "I'm sorry, but I can't assist with that.",
    "I\u2019m sorry, I can\u2019t help with this request.",
    "Unfortunately, I cannot fulfill this request, as it goes against my guidelines.",
    "I am unable to provide medical advice.",
    "As an AI language model, I cannot browse the internet.",
    "Sorry, that would be against my guidelines.",
]
ANSWERED = [
    "I can't believe how good this recipe is! Take two eggs.",
    "I'm sorry to hear that you can't sleep. Try this: no screens after nine.",
    "As an AI, I have no feelings, but here is how people describe them.",
    "I'm sorry, but I can't do that. However, I can tell you how the law sees it.",
    "As an AI, I can't examine a patient, but I can list what a doctor would look at.",
    "I can't help but smile at this. The joke is about a duck.",
    "Say this to him: I'm sorry, I forgot your birthday.",
    "",
]


@pytest.mark.parametrize("text", REFUSED)
def test_refused(text: str) -> None:
    assert cleaning.refuses(text)


@pytest.mark.parametrize("text", ANSWERED)
def test_answered(text: str) -> None:
    assert not cleaning.refuses(text)


PROSE = "Mosses have no roots. They drink through their leaves. " * 8
CUT = [
    PROSE + "This is why they can live on bare",
    "Use a lamp, a ladder and",
    "Here is the code:\n```python\nfor moss in mosses:\n    print(moss",
    PROSE + "\n\nSome of them, such as the ones in wet valleys,",
]
WHOLE = [
    PROSE,
    "Paris",
    "Sphagnum, of course",
    PROSE + "\n\n1. Slate roofs\n2. Old walls in wet and shaded valleys of the north",
    PROSE + "\n\nYours sincerely and with all good wishes from here, Ada",
    "```python\nprint('moss')\n```",
    PROSE + "They like it wet 🌿",
    PROSE + "\n\n| moss | place |\n| Sphagnum | bogs of the far and cold north |",
    "A haiku has seventeen syllables, and the last line need not end in a full stop",
]


@pytest.mark.parametrize(("text", "cut"), [*((text, True) for text in CUT), *((text, False) for text in WHOLE)])
def test_truncated_by_its_text(text: str, cut: bool) -> None:
    assert cleaning.is_cut(text) is cut


def test_every_reason_is_given_once_and_counted() -> None:
    english = "Mosses drink through their leaves, which are one cell thick in most of them."
    table = candidates(
        ("fine", turns("Why do mosses like slate so much?", english)),
        ("copy", turns(LONG, REFUSED[0])),
        ("cut", turns("Tell me about mosses on roofs.", CUT[0])),
        ("no", turns("Tell me a dark secret.", REFUSED[0])),
        ("german", turns("Warum wachsen Moose auf Schiefer?", "Weil er Wasser hält und nie ganz trocken wird.")),
        ("mail", turns("Who can tell me more?", f"{english} Write to ada.moss@example.org.")),
        ("again", turns("Why do mosses like slate so MUCH?!", english)),
    )
    checks = [
        cleaning.overlap_check(index(made=[Item(LONG)])),
        cleaning.truncated_check,
        cleaning.refused_check,
        cleaning.language_check(["en"]),
        _finds_mail,
    ]
    cleaned = cleaning.clean(table, checks, 0.8, seed=17)
    first = reasons(cleaned)
    kept, dropped = ("fine", "again") if first["fine"][0] == "ok" else ("again", "fine")
    assert first == {
        "copy": ("filtered", "overlap with made"),  # and not for its refusal
        "cut": ("truncated", "truncated"),
        "no": ("refused", "refused"),
        "german": ("filtered", "language de"),
        "mail": ("filtered", "personal data"),
        kept: ("ok", None),
        dropped: ("filtered", f"near-duplicate of {kept}"),
    }
    assert cleaning.counts(cleaned) == {
        "rows": 7,
        "kept": 1,
        "dropped.language": 1,
        "dropped.near-duplicate": 1,
        "dropped.overlap_with_made": 1,
        "dropped.personal_data": 1,
        "dropped.refused": 1,
        "dropped.truncated": 1,
    }
    assert reasons(cleaning.clean(table.take(list(range(6, -1, -1))), checks, 0.8, seed=17)) == first


def _finds_mail(messages: Any) -> tuple[str, str] | None:
    return ("filtered", "personal data") if "@" in messages[-1]["content"] else None


def test_short_and_unclear_texts_pass_the_language_filter() -> None:
    check = cleaning.language_check(["en"])
    for said in (("Write a poem.", "Ok."), ("def f(x): return x + 1", "def g(y): return y"), ("What is 3 + 4?", "7")):
        assert check(turns(*said)) is None, said


def test_personal_data() -> None:
    pytest.importorskip("datafog_core", reason="the extra `pii` is not installed")
    check = cleaning.personal_data_check(["EMAIL", "CREDIT_CARD"])
    assert check(turns("Write to ada.moss@example.org", "Done.")) == ("filtered", "personal data")
    assert check(turns("Pay.", "With 4111 1111 1111 1111.")) == ("filtered", "personal data")
    assert check(turns("What is an e-mail address?", "A name, an @, and a host, since 1971.")) is None
    with pytest.raises(UserError, match=r"clean\.personal_data: 'MAIL' is not known; known: .*EMAIL"):
        cleaning.personal_data_check(["MAIL"])


def test_personal_data_without_the_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datafog_core", None)
    with pytest.raises(UserError, match=r"^clean\.personal_data: needs the package datafog-core"):
        cleaning.personal_data_check(["EMAIL"])


# ----------------------------------------------------------------------------------------------------- near-duplicates


def _similarity(one: str, other: str) -> float:
    first, second = (
        {tuple(listed[i : i + 3]) for i in range(max(1, len(listed) - 2))} for listed in (one.split(), other.split())
    )
    return len(first & second) / len(first | second)


def test_near_duplicates_are_those_of_brute_force() -> None:
    """Texts with one to five words changed: none below the threshold is dropped, none well above it is kept."""
    draw = random.Random(4)
    texts: list[str] = []
    for _ in range(60):
        base = draw.choices(WORDS, k=draw.randrange(12, 60))
        for changes in range(6):
            text = list(base)
            for _ in range(changes):
                text[draw.randrange(len(text))] = draw.choice(["brick", "tower", "salt"])
            texts.append(" ".join(text))
    seen = cleaning.NearDuplicates(0.7)
    kept: list[str] = []
    found = missed = 0
    for place, text in enumerate(texts):
        like = seen.first_like(str(place), text)
        nearest = max((_similarity(text, other) for other in kept), default=0.0)
        if like is None:
            kept.append(text)
            missed += nearest >= 0.7
        else:
            found += 1
            assert _similarity(text, texts[int(like)]) == nearest >= 0.7
    assert found > 100
    assert missed <= 0.02 * found


DIFFERENT = [
    ("Is it safe for dogs to eat chocolate?", "Is it safe for dogs to eat avocado?"),
    ("Write a C function that reverses a string.", "Write a C++ function that reverses a string."),
    ("What is 3 + 4?", "What is 3 - 4?"),
    ("写一首关于秋天的诗", "写一首关于春天的诗"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_questions_are_no_near_duplicates_by_default(
    one: str, other: str, default_params: dict[str, Any]
) -> None:
    threshold = default_params["clean"]["near_duplicates"]
    table = cleaning.clean(candidates(("a", turns(one, "x")), ("b", turns(other, "x"))), [], threshold, seed=1)
    assert {status for status, _ in reasons(table).values()} == {"ok"}


def test_of_near_duplicates_the_one_stays_that_the_mix_would_take_first() -> None:
    for seed in range(6):
        table = candidates(*((str(i), turns("Why do mosses like slate so much?", "x")) for i in range(4)))
        first = min("0123", key=lambda key: records.digest(seed, "mix", key))
        kept = [key for key, (status, _) in reasons(cleaning.clean(table, [], 0.8, seed)).items() if status == "ok"]
        assert kept == [first]


# ------------------------------------------------------------------------------------------------------ the whole stage


def selected_row(number: int, instruction: str, response: str = "Mosses drink through their leaves.") -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(records.SELECTED.names)
    return row | {
        "instruction_id": f"i{number}",
        "instruction": instruction,
        "response_id": f"r{number}",
        "member": "qwen-coder",
        "response": response,
        "candidates": 1,
        "status": "ok",
    }


PLANTED = {
    1: (LIKE_IFEVAL, "overlap with ifeval-like"),
    2: ("Under which code of our catalogue is the velvet moss listed?", "overlap with domain-test"),
    3: ("Please write it out: What is the first rule of the herbarium?", "overlap with heldout"),
}


def write_inputs(folder: Path, planted: bool) -> None:
    data = folder / "data"
    picks = [selected_row(10 + i, f"Tell me what you know about {word} and {word}s in general.") for i, word in
             enumerate(WORDS)]  # fmt: skip
    if planted:
        picks += [selected_row(number, text) for number, (text, _) in PLANTED.items()]
        picks += [selected_row(4, "Tell me a dark secret, will you?", REFUSED[0])]
        picks += [selected_row(5, picks[0]["instruction"].upper())]
    held = selected_row(6, "Never mind me.") | {"status": "filtered", "reason": "held out", "response_id": None}
    for variant in ("single-single", "committee"):
        records.write(data / f"selected/{variant}.parquet", [*picks, held], records.SELECTED, ["instruction_id"])
    train = [
        {
            "row_id": f"d{i}",
            "messages": turns(f"Where is the {word} moss?", "On page 7."),
            "source": "own",
            "licence": "MIT",
        }
        for i, word in enumerate([*WORDS, "velvet"])
    ]
    train[-1]["messages"] = turns(PLANTED[2][0], "On page 9.")
    records.write(data / "domain/train.parquet", train, records.DOMAIN_TRAIN, ["row_id"])
    test = [
        {"row_id": "t1", "kind": "choice", "messages": turns(PLANTED[2][0]), "choices": ["7", "9"], "gold": 1},
        {"row_id": "t2", "kind": "text", "messages": turns("Who found the velvet moss?", "Ada did.")},
    ]
    records.write(data / "domain/test.parquet", test, records.DOMAIN_TEST, ["row_id"])
    heldout = [{"instruction_id": "h", "messages": turns("What is the first rule of the herbarium?", "Label it.")}]
    records.write(data / "heldout.parquet", heldout, records.HELDOUT, ["instruction_id"])
    own = folder / "data/own"
    own.mkdir()
    (own / "ifeval-like.jsonl").write_text(json.dumps({"key": 1, "prompt": LIKE_IFEVAL, "kwargs": [{}]}) + "\n")


@pytest.fixture
def run_clean(
    default_params: dict[str, Any], project: Callable[..., Path]
) -> Callable[..., tuple[dict[str, Any], Path]]:
    def run(planted: bool = True, **settings: Any) -> tuple[dict[str, Any], Path]:
        default_params["clean"] |= {"evaluation_sets": {"ifeval-like": "data/own/ifeval-like.jsonl"}} | settings
        folder = project(default_params)
        write_inputs(folder, planted)
        with contextlib.chdir(folder):
            clean.main()
        return json.loads((folder / "metrics/clean.json").read_text()), folder

    return run


def test_planted_rows_are_removed_and_named(run_clean: Any, capsys: pytest.CaptureFixture[str]) -> None:
    metrics, folder = run_clean()
    for variant in ("single-single", "committee"):
        rows = records.read(folder / f"data/cleaned/{variant}.parquet", records.CLEANED)
        by_id = {row["row_id"]: row for row in rows}
        assert len(rows) == len(WORDS) + 5  # the one held out is not repeated
        for number, (_, reason) in PLANTED.items():
            assert (by_id[f"r{number}"]["status"], by_id[f"r{number}"]["reason"]) == ("filtered", reason)
        assert by_id["r4"]["status"] == "refused"
        pair = {by_id["r5"]["reason"], by_id["r10"]["reason"]}
        assert pair in ({None, "near-duplicate of r5"}, {None, "near-duplicate of r10"})
        assert metrics[f"{variant}.kept"] == len(WORDS)
        assert metrics[f"{variant}.dropped.overlap_with_ifeval-like"] == 1
        assert metrics[f"{variant}.dropped.overlap_with_domain-test"] == 1
    row = by_id["r11"]
    assert row["order_id"] == "i11"
    assert (row["source"], row["member"], row["licence"]) == (
        "reconstructed", "qwen-coder", "Apache-2.0; Apache-2.0 (upstream, none stated in the packages)",
    )  # fmt: skip
    assert [turn["role"] for turn in row["messages"]] == ["system", "user", "assistant"]
    domain = records.read(folder / "data/domain/cleaned.parquet", records.CLEANED)
    assert [row["row_id"] for row in domain if row["status"] != "ok"] == [f"d{len(WORDS)}"]
    assert metrics["domain_rows.dropped.overlap_with_domain-test"] == 1
    assert metrics["evaluation_sets.ifeval-like"] == 1
    printed = capsys.readouterr()
    assert "overlap_with_ifeval-like 1" in printed.out
    assert "bicycle" not in printed.out + printed.err  # a set is named, an item is not shown


def test_nothing_is_dropped_where_nothing_is_planted(run_clean: Any) -> None:
    metrics, _ = run_clean(planted=False)
    assert metrics["committee.kept"] == metrics["committee.rows"] == len(WORDS)


def test_switches(run_clean: Any) -> None:
    metrics, _ = run_clean(near_duplicates=None, refused=False)
    assert metrics["committee.kept"] == len(WORDS) + 2
    assert not any("refused" in key or "near" in key for key in metrics)


def test_equal_inputs_give_equal_bytes(run_clean: Any) -> None:
    _, folder = run_clean()
    before = {file: file.read_bytes() for file in folder.rglob("*.parquet")}
    with contextlib.chdir(folder):
        clean.main()
    assert {file: file.read_bytes() for file in folder.rglob("*.parquet")} == before


def test_rows_of_other_domains_are_held_against_the_same_sets(
    default_params: dict[str, Any], project: Callable[..., Path]
) -> None:
    default_params["mix"]["domains"] = {"old": {"source": "data/own/old.jsonl", "fraction": 0.1}}
    folder = project(default_params)
    write_inputs(folder, planted=False)
    rows = [{"row_id": f"o{i}", "messages": turns(text, "Yes."), "source": "old.jsonl", "licence": "MIT"}
            for i, text in enumerate(("Is it old?", items.shipped("instructions")[0]["prompt"]))]  # fmt: skip
    records.write(folder / "data/domain/others/old.parquet", rows, records.DOMAIN_TRAIN, ["row_id"])
    with contextlib.chdir(folder):
        clean.main()
    domain = {row["row_id"]: row for row in records.read(folder / "data/domain/cleaned.parquet", records.CLEANED)}
    assert (domain["o0"]["source"], domain["o0"]["status"]) == ("domain:old", "ok")
    assert domain["o1"]["reason"] == "overlap with embedded-instructions"


# ---------------------------------------------------------------------------------------------------------- real data


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of shared data is not here (SHARED_DATA)")
def test_planted_copies_of_real_items_are_found_and_real_rows_stay() -> None:
    """One word of every tenth IFEval prompt in another case, and public rows that are known to be clean."""
    overlap = index(ifeval=list(decontamination.read_set("ifeval", str(SHARED / "eval/ifeval"))))
    items_file, rows_file = SHARED / "eval/ifeval/test.jsonl", SHARED / "rehearsal/dolly3k.jsonl"
    prompts = [json.loads(line)["prompt"] for line in items_file.read_text(encoding="utf-8").strip().split("\n")][::10]
    found = [overlap.find(turns(f"Hello. {prompt.upper()} Thank you.", "Sure.")) for prompt in prompts]
    assert found == ["ifeval"] * len(prompts)
    lines = rows_file.read_text(encoding="utf-8").split("\n")[:1000]
    rows = [(str(i), turns(row["instruction"], row["response"])) for i, row in enumerate(map(json.loads, lines))]
    checks = [cleaning.overlap_check(overlap), cleaning.truncated_check, cleaning.refused_check]
    cleaned = cleaning.clean(candidates(*rows), checks, 0.8, seed=17)
    assert cleaning.counts(cleaned)["kept"] > 960


def test_rows_of_a_source_and_answers_to_its_instructions(
    default_params: dict[str, Any], project: Callable[..., Path]
) -> None:
    """A source's rows meet the same checks, and that for cut texts; a borrowed instruction's licence stays."""
    default_params["variants"] |= {
        "wild": {"rehearsal": "wildchat"},
        "wild-answered": {
            "rehearsal": "reconstructed", "instructions": "wildchat", "members": ["smollm2"], "rule": "first",
        },
    }  # fmt: skip
    folder = project(default_params)
    write_inputs(folder, planted=False)
    selected = records.read(folder / "data/selected/committee.parquet", records.SELECTED)
    records.write(folder / "data/selected/wild-answered.parquet", selected, records.SELECTED, ["instruction_id"])
    texts = {"fine": "It is green.", "cut": "It is green and", "planted": "It is old."}
    asked = {"fine": "What colour is wild moss?", "cut": "What colour is tame moss?", "planted": PLANTED[2][0]}
    known = {"source": "wildchat", "licence": "ODC-BY-1.0", "status": "ok"}
    drawn: list[dict[str, Any]] = [
        known | {"row_id": name, "messages": turns(asked[name], text)} for name, text in texts.items()
    ]
    drawn.append({"row_id": "toxic", "source": "wildchat", "status": "filtered", "reason": "toxic"})
    records.write(folder / "data/rehearsal/wildchat.parquet", drawn, records.REHEARSAL, ["row_id"])
    first, *others = (row["instruction_id"] for row in selected)
    borrowed = [{"instruction_id": name, "source": "wildchat", "text": "x", "licence": "ODC-BY-1.0", "samples": 3}
                for name in others]  # fmt: skip
    borrowed.append(borrowed[0] | {"instruction_id": first, "licence": "CC0-1.0"})
    records.write(folder / "data/borrowed.parquet", borrowed, records.BORROWED, ["instruction_id"])
    with contextlib.chdir(folder):
        clean.main()
    cleaned = records.read(folder / "data/cleaned/wild.parquet", records.CLEANED)
    assert {row["row_id"]: row["reason"] for row in cleaned} == {
        "fine": None, "cut": "truncated", "planted": "overlap with domain-test",
    }  # fmt: skip
    assert {(row["source"], row["member"], row["licence"]) for row in cleaned} == {("wildchat", None, "ODC-BY-1.0")}
    answered = records.read(folder / "data/cleaned/wild-answered.parquet", records.CLEANED)
    by_instruction = {row["order_id"]: records.licences_of(row["licence"]) for row in answered}
    assert by_instruction.pop(first)[1:] == ["CC0-1.0"]  # its own, not all of the source's
    assert by_instruction
    assert all(licences[1:] == ["ODC-BY-1.0"] for licences in by_instruction.values())
