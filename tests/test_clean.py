"""Stage clean: planted copies are named by their set, and rows of every origin meet the checks that are theirs."""

import contextlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cleaning_rows import SHARED, WORDS, candidates, index, turns
from synthetic_run import load_params, write_run

from anamnesis import cleaning, decontamination, items, records
from stages import clean, report

# Written for this test in the manner of IFEval: a task and constraints that a program can check.
LIKE_IFEVAL = (
    "Write a product description for a folding bicycle aimed at commuters. Your entire reply must be in lowercase "
    "letters, it must contain at least four sections marked with a hash, and the word pedal must appear three times."
)


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
FOUND = "Ada found it in the rain, on the north wall of the old library behind the herbarium."  # an answer's phrase
SYSTEM = "Explain it as the keeper of a herbarium would explain it to a child."  # one of our own


def write_inputs(folder: Path, planted: bool) -> None:
    data = folder / "data"
    picks = [selected_row(10 + i, f"Tell me what you know about {word} and {word}s in general.") for i, word in
             enumerate(WORDS)]  # fmt: skip
    if planted:
        picks += [selected_row(number, text) for number, (text, _) in PLANTED.items()]
        picks += [selected_row(4, "Tell me a dark secret, will you?", "I'm sorry, but I can't assist with that.")]
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
    train[0]["messages"] = turns("Where is the first moss?", f"On page 1. {FOUND}")  # a phrase of its own domain
    records.write(data / "domain/train.parquet", train, records.DOMAIN_TRAIN, ["row_id"])
    test = [
        {"row_id": "t1", "kind": "choice", "messages": turns(PLANTED[2][0]), "choices": ["7", "9"], "gold": 1},
        {"row_id": "t2", "kind": "text", "messages": turns("Who found the velvet moss?", f"{FOUND} It was spring.")},
    ]
    records.write(data / "domain/test.parquet", test, records.DOMAIN_TEST, ["row_id"])
    heldout = [
        {"instruction_id": "h", "messages": turns("What is the first rule of the herbarium?", "Label it.")},
        {"instruction_id": "s", "messages": turns(SYSTEM, "Gladly.")},
    ]
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


def test_what_every_suite_asks_is_no_training_row(
    default_params: dict[str, Any], project: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Files of suite local, domain sets and the safety prompts, without being named in clean.evaluation_sets."""
    question = "Which vessel carries the sap of the velvet moss from its stem to its leaves in spring?"
    riddle = "What has the keeper of the herbarium written on the back of the oldest label of all?"
    default_params["evaluate"] |= {
        "suite": ["embedded", "local", "safety", "leaderboard"],
        "data_dir": "data/own",
        "tasks": ["medqa", "leaderboard_gpqa"],
        "domain_sets": {"moss": "data/own/moss.jsonl"},
    }
    folder = project(default_params)
    write_inputs(folder, planted=False)
    (folder / "data/own/medqa").mkdir()
    row = {"id": "m", "question": question, "options": ["a", "b", "c", "d"], "answer": "A"}
    (folder / "data/own/medqa/test.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "data/own/moss.jsonl").write_text(json.dumps({"question": riddle, "answer": "7"}) + "\n")
    safety = max((row["prompt"] for row in items.shipped("safety")), key=len)
    asked = {"medqa": question, "set": riddle, "safety": safety}
    train = [
        {"row_id": key, "source": "own", "licence": "MIT", "messages": turns(text, "Yes.")}
        for key, text in asked.items()
    ]
    records.write(folder / "data/domain/train.parquet", train, records.DOMAIN_TRAIN, ["row_id"])
    with contextlib.chdir(folder):
        clean.main()
    cleaned = records.read(folder / "data/domain/cleaned.parquet", records.CLEANED)
    assert {row["row_id"]: row["reason"] for row in cleaned} == {
        "medqa": "overlap with local-medqa",
        "set": "overlap with domain-set-moss",
        "safety": "overlap with safety",
    }
    metrics = json.loads((folder / "metrics/clean.json").read_text())
    assert metrics["evaluation_sets.local-medqa"] == metrics["evaluation_sets.domain-set-moss"] == 1
    assert metrics["evaluation_sets.safety"] == len(items.shipped("safety"))
    assert "suite leaderboard's sets are on the hub" in capsys.readouterr().err


def test_rows_of_other_domains_are_held_against_the_same_sets(
    default_params: dict[str, Any], project: Callable[..., Path]
) -> None:
    default_params["mix"]["domains"] = {"old": {"source": "data/own/old.jsonl", "fraction": 0.1}}
    folder = project(default_params)
    write_inputs(folder, planted=False)
    rows = [{"row_id": f"o{i}", "messages": turns(text, "Yes."), "source": "old.jsonl", "licence": "MIT"}
            for i, text in enumerate(("Is it old?", items.shipped("instructions")[0]["prompt"]))]  # fmt: skip
    rows.append(rows[0] | {"row_id": "o2", "messages": turns("Who found a moss?", f"Well: {FOUND}")})
    records.write(folder / "data/domain/others/old.parquet", rows, records.DOMAIN_TRAIN, ["row_id"])
    with contextlib.chdir(folder):
        clean.main()
    domain = {row["row_id"]: row for row in records.read(folder / "data/domain/cleaned.parquet", records.CLEANED)}
    assert (domain["o0"]["source"], domain["o0"]["status"]) == ("domain:old", "ok")
    assert domain["o1"]["reason"] == "overlap with embedded-instructions"
    assert domain["o2"]["reason"] == "overlap with domain-test"  # the test set is kin to the main domain alone
    assert domain["d0"]["status"] == "ok"


def test_system_turns_of_a_source_are_held_against_the_sets_and_ours_are_not(
    default_params: dict[str, Any], project: Callable[..., Path]
) -> None:
    default_params["variants"] |= {"wild": {"rehearsal": "wildchat"}}
    default_params["committee"]["qwen-coder"]["sampling"]["system"] = PLANTED[3][0]
    folder = project(default_params)
    write_inputs(folder, planted=False)
    begun = dict.fromkeys(records.CONVERSATIONS.names) | {
        "instruction_id": "i10", "system": SYSTEM, "history": [], "written": [], "status": "ok",
    }  # fmt: skip
    records.write(folder / "data/conversations.parquet", [begun], records.CONVERSATIONS, ["instruction_id"])
    systems = {"drawn": SYSTEM, "member's": PLANTED[3][0], "planted": f"You know it all. {PLANTED[2][0]}"}
    drawn = [
        {
            "row_id": name,
            "source": "wildchat",
            "licence": "MIT",
            "status": "ok",
            "messages": [{"role": "system", "content": system}, *turns(f"What is {name}?", "A moss.")],
        }
        for name, system in systems.items()
    ]
    records.write(folder / "data/rehearsal/wildchat.parquet", drawn, records.REHEARSAL, ["row_id"])
    train = [{"row_id": row["row_id"], "source": "own", "licence": "MIT", "messages": row["messages"]} for row in drawn]
    records.write(folder / "data/domain/train.parquet", train, records.DOMAIN_TRAIN, ["row_id"])
    with contextlib.chdir(folder):
        clean.main()
    for path in ("data/cleaned/wild.parquet", "data/domain/cleaned.parquet"):
        cleaned = {row["row_id"]: row["reason"] for row in records.read(folder / path, records.CLEANED)}
        assert cleaned == {"drawn": None, "member's": None, "planted": "overlap with domain-test"}
    picks = records.read(folder / "data/cleaned/committee.parquet", records.CLEANED)
    assert {row["messages"][0]["content"] for row in picks} == {SYSTEM, PLANTED[3][0]}
    assert all(row["status"] == "ok" for row in picks)


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


@pytest.mark.skipif(not SHARED.is_dir(), reason="the folder of shared data is not here (SHARED_DATA)")
def test_planted_copies_of_real_items_are_named_in_metrics_and_in_the_report(tmp_path: Path) -> None:
    """IFEval's prompts and items of a domain's own test set, through stages clean and report."""
    raw = load_params()
    raw["clean"]["evaluation_sets"] = {"ifeval": str(SHARED / "eval/ifeval")}
    root = tmp_path / "run"
    write_run(root, raw)
    write_inputs(root, planted=False)
    records.write(root / "data/borrowed.parquet", [], records.BORROWED, ["instruction_id"])
    records.write(root / "data/conversations.parquet", [], records.CONVERSATIONS, ["instruction_id"])
    prompts, tested = (
        [json.loads(line) for line in (SHARED / path).read_text(encoding="utf-8").strip().split("\n")]
        for path in ("eval/ifeval/test.jsonl", "domain/pubmedqa/test.jsonl")
    )
    test = [
        {"row_id": str(i), "kind": "text", "messages": turns(row["instruction"], row["response"])}
        for i, row in enumerate(tested)
    ]
    records.write(root / "data/domain/test.parquet", test, records.DOMAIN_TEST, ["row_id"])
    copies = [*(row["prompt"] for row in prompts[::50]), *(row["instruction"] for row in tested[:2])]
    picks = records.read(root / "data/selected/committee.parquet", records.SELECTED)
    picks += [selected_row(100 + i, text) for i, text in enumerate(copies)]
    records.write(root / "data/selected/committee.parquet", picks, records.SELECTED, ["instruction_id"])
    train = records.read(root / "data/domain/train.parquet", records.DOMAIN_TRAIN)
    train.append(train[0] | {"row_id": "copy", "messages": turns(tested[2]["instruction"], "Yes.")})
    records.write(root / "data/domain/train.parquet", train, records.DOMAIN_TRAIN, ["row_id"])
    with contextlib.chdir(root):
        clean.main()
        report.main()
    count = len(copies) - 2
    assert count > 10
    metrics = json.loads((root / "metrics/clean.json").read_text())
    assert metrics["evaluation_sets.ifeval"] == len(prompts)
    assert metrics["committee.kept"] == len(WORDS)
    assert metrics["committee.dropped.overlap_with_ifeval"] == count
    assert metrics["committee.dropped.overlap_with_domain-test"] == 2
    assert metrics["domain_rows.dropped.overlap_with_domain-test"] == 1
    for page in ("report.md", "report.html"):
        text = (root / page).read_text(encoding="utf-8")
        told = f"overlap with ifeval {count}, overlap with domain-test 2."
        assert f"Taken out of committee before the mix: {told}" in text
        assert re.search(r"Taken out of the domain(?: before the mix)?: overlap with domain-test 1\.", text)


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
