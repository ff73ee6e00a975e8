"""Selection against an oracle in plain Python; ties, missing votes, disabled members, held-out instructions."""

import hashlib
import json
import random
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anamnesis import records, selection, sql
from stages import select

SQL = Path(__file__).parent.parent / "stages" / "sql"
HOLD_OUT, HELDOUT, SELECT = (sql.statement(SQL / f"{name}.sql") for name in ("hold_out", "heldout", "select"))
MEMBERS = ["alpha", "beta", "gamma"]
JUDGES = ["ines", "juri", "kofi"]
SCORES = [None, 1.0, 2.0, 2.5, 3.0, 4.0, 4.0 + 1e-9, 5.0]  # the last but one ties with 4.0 after rounding


def hashed(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def instruction(name: str, status: str = "ok") -> dict[str, Any]:
    row = {"instruction_id": name, "sample_index": 0, "text": f"text of {name}", "status": status}
    return row | {"reason": None, "finish_reason": "stop", "tokens": 3}


def response(name: str, member: str, index: int, status: str = "ok") -> dict[str, Any]:
    row = {"response_id": f"{name}/{member}/{index}", "instruction_id": name, "member": member, "sample_index": index}
    return row | {"text": f"{member} {index}", "finish_reason": "stop", "tokens": 2, "status": status, "reason": None}


def judgment(response_id: str, judge: str, score: float | None) -> dict[str, Any]:
    row = {"response_id": response_id, "judge": judge, "score": score, "parse": "strict", "justification": None}
    return row | {"tokens": 1, "status": "ok" if score else "failed", "reason": None}


def oracle(
    instructions: list[dict[str, Any]],
    responses: list[dict[str, Any]],
    judgments: list[dict[str, Any]],
    *,
    heldout: float,
    members: list[str],
    judges: list[str],
    samples: int,
    rule: str,
    min_votes: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The rules, spelt out row by row."""
    good = [row for row in instructions if row["status"] == "ok"]
    count = int((Decimal(len(good)) * Decimal(str(heldout))).quantize(Decimal(1), ROUND_HALF_UP))
    by_hash = sorted(good, key=lambda row: hashed(seed, "hold out", row["instruction_id"]))
    held = {row["instruction_id"] for row in by_hash[:count]}
    selected = []
    for row in sorted(good, key=lambda row: row["instruction_id"]):
        name = row["instruction_id"]
        complete, ranked = 0, []
        for r in responses:
            if r["instruction_id"] != name or r["status"] != "ok" or r["member"] not in members:
                continue
            if r["sample_index"] >= samples:
                continue
            complete += 1
            votes = sorted(
                (j["judge"], j["score"])
                for j in judgments
                if j["response_id"] == r["response_id"] and j["judge"] in judges and j["score"] is not None
            )
            mean = round(sum(score for _, score in votes) / len(votes), 6) if votes else None
            tie = hashed(seed, "pick", r["response_id"])
            if rule == "mean" and len(votes) >= min_votes:
                ranked.append(((mean is None, -(mean or 0), tie), r, mean, votes))
            elif rule == "first":
                ranked.append(((r["sample_index"], members.index(r["member"]), tie), r, mean, votes))
            elif rule == "random":
                ranked.append((tie, r, mean, votes))
        ranked.sort(key=lambda entry: entry[0])
        out: dict[str, Any] = dict.fromkeys(records.SELECTED.names)
        out |= {"instruction_id": name, "instruction": row["text"], "candidates": 0, "status": "filtered"}
        if name in held:
            out["reason"] = "held out"
        elif not ranked:
            out["reason"] = "too few votes" if complete else "no complete response"
        else:
            _, best, mean, votes = ranked[0]
            out |= {"response_id": best["response_id"], "member": best["member"], "response": best["text"]}
            out |= {"mean": mean, "votes": [{"judge": judge, "score": score} for judge, score in votes]}
            out |= {"candidates": len(ranked), "status": "ok"}
            if len(ranked) > 1:
                out |= {"runner_up_id": ranked[1][1]["response_id"], "runner_up_mean": ranked[1][2]}
        selected.append(out)
    return selected


def selected(
    tables: tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]],
    *,
    heldout: float,
    seed: int,
    threads: int = 0,
    **rules: Any,
) -> pa.Table:
    schemas = (records.INSTRUCTIONS, records.RESPONSES, records.JUDGMENTS)
    instructions, responses, judgments = (pa.Table.from_pylist(*pair) for pair in zip(tables, schemas, strict=True))
    pool = selection.pool_of(HOLD_OUT, instructions, heldout, seed, threads)
    return selection.select_variant(SELECT, pool, responses, judgments, seed=seed, threads=threads, **rules)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Any, dict[str, Any]]:
    names = [f"i{place}" for place in range(draw(st.integers(0, 6)))]
    instructions = [instruction(name, draw(st.sampled_from(["ok", "ok", "ok", "filtered"]))) for name in names]
    responses, judgments = [], []
    for name in names:
        for member in MEMBERS:
            for index in range(draw(st.integers(0, 2))):
                responses.append(response(name, member, index, draw(st.sampled_from(["ok", "ok", "truncated"]))))
                for judge in draw(st.sets(st.sampled_from(JUDGES))):
                    judgments.append(judgment(responses[-1]["response_id"], judge, draw(st.sampled_from(SCORES))))
    rules = {
        "heldout": draw(st.sampled_from([0.0, 0.15, 0.5])),
        "members": draw(st.lists(st.sampled_from(MEMBERS), min_size=1, unique=True)),
        "judges": draw(st.lists(st.sampled_from(JUDGES), unique=True)),
        "samples": draw(st.integers(1, 3)),
        "rule": draw(st.sampled_from(["mean", "first", "random"])),
        "min_votes": draw(st.integers(0, 3)),
        "seed": draw(st.integers(0, 3)),
    }
    return (instructions, responses, judgments), rules


@settings(max_examples=80, deadline=None)
@given(cases(), st.randoms(use_true_random=False))
def test_select_agrees_with_the_oracle_in_any_row_order(
    case: tuple[Any, dict[str, Any]], shuffle: random.Random
) -> None:
    tables, rules = case
    expected = oracle(*tables, **rules)
    for rows in tables:
        shuffle.shuffle(rows)
    assert selected(tables, **rules).to_pylist() == expected


# One instruction, three members with one response each: the votes, the rule, and who is picked.
FULL = {"alpha": [4, 4, 4], "beta": [5, 5, 3], "gamma": [1, 1, 1]}
EXPECTED = {
    "the best mean": (FULL, {}, "beta", None),
    "a missing vote is not a zero": (
        {"alpha": [4, 4, 4], "beta": [5, None, None], "gamma": [3, 3, 3]},
        {},
        "beta",
        None,
    ),
    "one vote is too few": (
        {"alpha": [4, 4, 4], "beta": [5, None, None], "gamma": [3, 3, 3]},
        {"min_votes": 2},
        "alpha",
        None,
    ),
    "no votes at all": ({"alpha": [None] * 3, "beta": [None] * 3, "gamma": [None] * 3}, {}, None, "too few votes"),
    "a judge that is not asked": (FULL, {"judges": ["kofi"]}, "alpha", None),
    "a member that is not there": (FULL, {"members": ["alpha", "gamma"]}, "alpha", None),
    "first takes the listed order": (FULL, {"rule": "first", "members": ["gamma", "beta"]}, "gamma", None),
    "first needs no judge": (FULL, {"rule": "first", "judges": []}, "alpha", None),
    "held out before anything else": (FULL, {"heldout": 1.0}, None, "held out"),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_rules(name: str) -> None:
    votes, changed, member, reason = EXPECTED[name]
    responses = [response("i", key, 0) for key in votes]
    judgments = [
        judgment(f"i/{key}/0", judge, score)
        for key, scores in votes.items()
        for judge, score in zip(JUDGES, scores, strict=True)
    ]
    rules = {"heldout": 0.0, "seed": 17, "members": MEMBERS, "judges": JUDGES, "samples": 1, "rule": "mean"}
    rules |= {"min_votes": 1} | changed
    [row] = selected(([instruction("i")], responses, judgments), **rules).to_pylist()
    assert (row["member"], row["reason"]) == (member, reason)


def many(count: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Every response of every instruction has equal votes: all of it is ties."""
    instructions = [instruction(f"i{place:04}") for place in range(count)]
    responses = [response(row["instruction_id"], member, 0) for row in instructions for member in MEMBERS]
    judgments = [judgment(row["response_id"], judge, 3.3) for row in responses for judge in JUDGES]
    return instructions, responses, judgments


RULES: dict[str, Any] = {"heldout": 0.2, "members": MEMBERS, "judges": JUDGES, "samples": 3, "rule": "mean"}
RULES |= {"min_votes": 1}


def test_equal_bytes_over_threads(tmp_path: Path) -> None:
    tables = many(4000)
    written = set()
    for threads in (1, 2, 4):
        path = tmp_path / f"{threads}.parquet"
        table = selected(tables, seed=17, threads=threads, **RULES)
        records.write(path, table, records.SELECTED, ["instruction_id"])
        written.add(path.read_bytes())
    assert len(written) == 1


def test_ties_go_to_no_member_by_order_and_change_with_the_seed() -> None:
    tables = many(900)
    picks = [selected(tables, seed=seed, **RULES)["member"].to_pylist() for seed in (17, 18)]
    for picked in picks:
        kept = [member for member in picked if member]
        assert all(0.25 < kept.count(member) / len(kept) < 0.42 for member in MEMBERS)  # a third, 5 standard errors
    assert picks[0] != picks[1]


def test_the_held_out_share_is_exact_and_the_same_for_every_variant() -> None:
    tables = many(30)
    held = []
    for members in (["alpha"], MEMBERS):
        rows = selected(tables, seed=17, **(RULES | {"members": members})).to_pylist()
        held.append({row["instruction_id"] for row in rows if row["reason"] == "held out"})
    assert held[0] == held[1]
    assert len(held[0]) == 6


def test_heldout_rows_are_the_targets_first_complete_response() -> None:
    names = [f"i{place}" for place in range(4)]
    responses = [response(name, "beta", 0) for name in names]
    responses += [response("i0", "alpha", index) for index in (2, 1)]
    responses += [response("i1", "alpha", 0, "truncated"), response("i1", "alpha", 1)]
    responses += [response("i2", "alpha", 0, "truncated")]
    instructions = pa.Table.from_pylist([instruction(name) for name in names], records.INSTRUCTIONS)
    pool = selection.pool_of(HOLD_OUT, instructions, 1.0, 17)
    rows = selection.heldout_rows(HELDOUT, pool, pa.Table.from_pylist(responses, records.RESPONSES), "alpha")
    said = {row["instruction_id"]: row["messages"] for row in rows.to_pylist()}
    assert {name: messages[1]["content"] for name, messages in said.items()} == {"i0": "alpha 1", "i1": "alpha 1"}
    assert said["i0"][0] == {"role": "user", "content": "text of i0"}
    answers = pa.Table.from_pylist(responses, records.RESPONSES)
    briefed = selection.heldout_rows(HELDOUT, pool, answers, "alpha", "Be brief.").to_pylist()
    assert [row["messages"][0] for row in briefed] == [{"role": "system", "content": "Be brief."}] * 2
    assert [row["messages"][1:] for row in briefed] == list(said.values())


PARAMS = """
seed: 17
target: alpha
models:
  alpha: {uri: "path:alpha", licence: MIT}
  beta: {uri: "path:beta", enabled: false}
committee: {alpha: {}, beta: {}}
judges: {alpha: {}, beta: {}}
serve: {}
requests: {}
domain: {}
probe: {instructions: 10, max_requests: 10}
select: {heldout: 0.2, min_votes: 1}
variants:
  domain-only: {rehearsal: none}
  committee: {rehearsal: reconstructed, members: [alpha, beta], judges: [alpha, beta]}
mix: {domain_fraction: 0.2, total: 5}
train: {learning_rate: 0.1}
evaluate: {}
report: {}
"""


def test_the_stage_reads_no_file_of_a_disabled_member(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    (tmp_path / "stages").symlink_to(SQL.parent)
    monkeypatch.chdir(tmp_path)
    instructions, responses, _ = many(10)
    responses = [row | {"status": "ok"} for row in responses if row["member"] == "alpha"][:-1]
    judgments = [judgment(row["response_id"], "alpha", 4.0) for row in responses]
    records.write("data/instructions.parquet", instructions, records.INSTRUCTIONS, ["instruction_id"])
    records.write("data/responses/alpha.parquet", responses, records.RESPONSES, ["response_id"])
    records.write("data/judgments/alpha.parquet", judgments, records.JUDGMENTS, ["response_id"])
    records.write("data/borrowed.parquet", [], records.BORROWED, ["instruction_id"])
    for stale in ("data/responses/beta.parquet", "data/judgments/beta.parquet"):
        Path(stale).write_bytes(b"not Parquet: reading it would fail")
    select.main()
    assert [path.name for path in Path("data/selected").iterdir()] == ["committee.parquet"]
    rows = records.read("data/selected/committee.parquet", records.SELECTED)
    metrics = json.loads(Path("metrics/select.json").read_text())
    assert metrics["instructions"] == len(rows) == 10
    assert metrics["committee.dropped.held_out"] == 2
    assert metrics["committee.kept"] == sum(row["member"] == "alpha" for row in rows)
    assert metrics["committee.kept"] + metrics["committee.dropped.no_complete_response"] == 8
    assert metrics["heldout"] == len(records.read("data/heldout.parquet", records.HELDOUT))
