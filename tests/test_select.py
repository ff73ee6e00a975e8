"""Selection against an oracle in plain Python; ties, missing votes, thresholds, disabled members, held-out rows."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from asking import write_conversations
from hypothesis import given, settings
from hypothesis import strategies as st
from selecting import (
    HELDOUT,
    HOLD_OUT,
    JUDGES,
    MEMBERS,
    RULES,
    SQL,
    Row,
    Tables,
    instruction,
    judgment,
    oracle,
    response,
    rule,
    selected,
)

from anamnesis import records, selection
from stages import select

SCORES = [None, 1.0, 2.0, 2.5, 3.0, 4.0, 4.0 + 1e-9, 4.000001, 4.04, 5.0]  # 4.0 and the next tie after rounding


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tables, selection.Rule]:
    names = [f"i{place}" for place in range(draw(st.integers(0, 6)))]
    instructions = [instruction(name, draw(st.sampled_from(["ok", "ok", "ok", "filtered"]))) for name in names]
    scores = st.sampled_from(draw(st.sampled_from([SCORES, [4.0, 5.0], [None, None, 3.0]])))  # all, ties, too few
    responses: list[Row] = []
    judgments: list[Row] = []
    for name in names:
        for member in MEMBERS:
            for index in range(draw(st.integers(0, 2))):
                responses.append(response(name, member, index, draw(st.sampled_from(["ok", "ok", "truncated"]))))
                for judge in draw(st.sets(st.sampled_from(JUDGES))):
                    judgments.append(judgment(responses[-1]["response_id"], judge, draw(scores)))
    drawn = rule(
        name=draw(st.sampled_from(RULES)),
        members=draw(st.lists(st.sampled_from(MEMBERS), min_size=1, unique=True)),
        judges=draw(st.lists(st.sampled_from(JUDGES), unique=True)),
        samples=draw(st.integers(1, 3)),
        min_votes=draw(st.integers(0, 3)),
        min_score=draw(st.sampled_from([0.0, 0.0, 2.5, 4.0])),
        min_margin=draw(st.sampled_from([0.0, 0.0, 0.04, 0.5])),
        tie=draw(st.sampled_from([0.0, 1e-6, 0.04, 0.5])),
    )
    return (instructions, responses, judgments), drawn


@settings(max_examples=100, deadline=None)
@given(cases(), st.sampled_from([0.0, 0.15, 0.5]), st.integers(0, 3), st.randoms(use_true_random=False))
def test_select_agrees_with_the_oracle_in_any_row_order(
    case: tuple[Tables, selection.Rule], heldout: float, seed: int, shuffle: random.Random
) -> None:
    tables, drawn = case
    expected = oracle(tables, drawn, heldout, seed)
    for rows in tables:
        shuffle.shuffle(rows)
    assert selected(tables, drawn, heldout, seed).to_pylist() == expected


def one(votes: dict[str, list[float | None]], **changed: Any) -> Row:
    """The row of one instruction that each member answered once; `votes` are those of JUDGES in their order."""
    responses = [response("i", member, 0) for member in votes]
    judgments = [
        judgment(f"i/{member}/0", judge, score)
        for member, scores in votes.items()
        for judge, score in zip(JUDGES, scores, strict=True)
    ]
    [row] = selected(([instruction("i")], responses, judgments), rule(**changed)).to_pylist()
    return dict(row)


# Three members with one response each: the votes of alpha, beta and kofi, the rule, who is picked, and what else.
FULL: dict[str, list[float | None]] = {"alpha": [4, 4, 4], "beta": [5, 5, 3], "gamma": [1, 1, 1]}
NONE: dict[str, list[float | None]] = {"alpha": [None] * 3, "beta": [None] * 3, "gamma": [None] * 3}
PARTIAL: dict[str, list[float | None]] = {"alpha": [4, 4, 4], "beta": [5, None, None], "gamma": [3, 3, 3]}
OWN: dict[str, list[float | None]] = {"alpha": [5, 2, 2], "beta": [3, 5, 2.5], "gamma": [1, 1, 1]}
EXPECTED: dict[str, tuple[dict[str, list[float | None]], dict[str, Any], str | None, dict[str, Any]]] = {
    "the best mean": (FULL, {}, "beta", {"value": 4.333333, "margin": 0.333333, "tied": 1, "candidates": 3}),
    "a missing vote is not a zero": (PARTIAL, {}, "beta", {"value": 5.0}),
    "one vote is too few": (PARTIAL, {"min_votes": 2}, "alpha", {"runner_up_id": "i/gamma/0", "candidates": 2}),
    "three of two judges are two": (FULL, {"min_votes": 3, "judges": ["alpha", "beta"]}, "beta", {}),
    "no votes at all": (NONE, {}, None, {"reason": "too few votes"}),
    "no votes needed": (NONE | {"gamma": [None, None, 1]}, {"min_votes": 0}, "gamma", {"margin": None}),
    "a judge that is not asked": (FULL, {"judges": ["kofi"]}, "alpha", {}),
    "a member that is not there": (FULL, {"members": ["alpha", "gamma"]}, "alpha", {}),
    "an outlier moves the mean": ({"alpha": [1, 5, 5], "beta": [4, 4, 4]}, {}, "beta", {}),
    "and not the median": ({"alpha": [1, 5, 5], "beta": [4, 4, 4]}, {"name": "median"}, "alpha", {"mean": 3.666667}),
    "the median of two is their middle": ({"alpha": [4, 1, None]}, {"name": "median"}, "alpha", {"value": 2.5}),
    "by the mean of all alpha's own vote decides": (OWN, {"members": ["alpha", "gamma"]}, "alpha", {"value": 3.0}),
    "left out, it doesn't": (OWN, {"name": "leave-own-judge-out"}, "beta", {"value": 2.75, "mean": 3.5}),
    "the votes are told all the same": (
        OWN,
        {"name": "leave-own-judge-out", "judges": ["beta", "kofi"]},
        "beta",
        {"value": 2.5, "votes": [{"judge": "beta", "score": 5.0}, {"judge": "kofi", "score": 2.5}]},
    ),
    "who has its own vote alone has too few": (
        {"alpha": [5, None, None], "gamma": [1, None, None]},
        {"name": "leave-own-judge-out"},
        "gamma",
        {"candidates": 1, "runner_up_id": None, "margin": None},
    ),
    "so nobody is picked where all have": (
        {"alpha": [5, None, None]},
        {"name": "leave-own-judge-out", "judges": ["alpha"]},
        None,
        {"reason": "too few votes"},
    ),
    "votes needed are those that others can give": (
        FULL,
        {"name": "leave-own-judge-out", "judges": ["alpha", "beta"], "min_votes": 2},
        "beta",
        {"value": 5.0, "candidates": 3},
    ),
    "first takes the listed order": (FULL, {"name": "first", "members": ["gamma", "beta"]}, "gamma", {"value": None}),
    "first needs no judge": (FULL, {"name": "first", "judges": []}, "alpha", {"tied": 1, "votes": []}),
    "nor a score": (FULL, {"name": "first", "members": ["gamma"], "min_score": 4.0}, "gamma", {"mean": 1.0}),
    "good enough": (FULL, {"min_score": 4.333333}, "beta", {}),
    "not good enough": (FULL, {"min_score": 4.34}, None, {"reason": "below minimum score", "value": 4.333333}),
    "clear enough": (FULL, {"min_margin": 0.333333}, "beta", {}),
    "not clear enough": (FULL, {"min_margin": 0.34}, None, {"reason": "margin too small", "margin": 0.333333}),
    "nobody to be clear of": ({"beta": [5, 5, 3]}, {"min_margin": 1.0}, "beta", {"margin": None}),
    "the score before the margin": (FULL, {"min_score": 5, "min_margin": 1}, None, {"reason": "below minimum score"}),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_rules(name: str) -> None:
    votes, changed, member, told = EXPECTED[name]
    row = one(votes, **changed)
    assert row["member"] == member
    assert (row["reason"] is None) == (row["status"] == "ok") == (member is not None)
    assert {key: row[key] for key in told} == told


def test_held_out_comes_before_anything_else() -> None:
    tables: Tables = ([instruction("i"), instruction("j")], [response("i", "alpha", 0)], [])
    rows = selected(tables, rule(name="first"), heldout=1.0).to_pylist()
    assert [(row["reason"], row["member"], row["candidates"]) for row in rows] == [("held out", None, 0)] * 2


def many(count: int) -> Tables:
    instructions = [instruction(f"i{place}") for place in range(count)]
    responses = [response(row["instruction_id"], member, 0) for row in instructions for member in MEMBERS]
    judgments = [judgment(row["response_id"], judge, 3.3) for row in responses for judge in JUDGES]
    return instructions, responses, judgments


@pytest.mark.parametrize("name", RULES)
def test_equal_bytes_over_threads(name: str, tmp_path: Path) -> None:
    instructions, responses, judgments = many(4000)
    draw = random.Random(17)
    judgments = [row | {"score": draw.choice([None, 3.1, 3.2, 3.3, draw.uniform(1, 5)])} for row in judgments]
    chosen = rule(name=name, tie=0.05, min_margin=0.01, min_score=2.0)
    written = set()
    for threads in (1, 2, 4):
        path = tmp_path / f"{threads}.parquet"
        for rows in (instructions, responses, judgments):
            draw.shuffle(rows)
        table = selected((instructions, responses, judgments), chosen, 0.2, threads=threads)
        records.write(path, table, records.SELECTED, ["instruction_id"])
        written.add(path.read_bytes())
    assert len(written) == 1
    assert len(table.filter(pa.compute.equal(table["status"], "ok"))) > 1000


@pytest.mark.parametrize("name", ["mean", "median", "leave-own-judge-out", "random"])
def test_ties_go_to_no_member_by_order_and_change_with_the_seed(name: str) -> None:
    tables = many(900)
    picks = [selected(tables, rule(name=name), seed=seed).to_pylist() for seed in (17, 18)]
    for rows in picks:
        kept = [row["member"] for row in rows]
        assert all(0.25 < kept.count(member) / len(kept) < 0.42 for member in MEMBERS)  # a third, 5 standard errors
        assert {row["tied"] for row in rows} == {3}
    assert picks[0] != picks[1]


def test_near_ties_are_all_within_the_tie_of_the_best_and_no_chain() -> None:
    """4.0, 4.4 and 4.8 with a tie of 0.5: 4.4 is near both, and only it and the best are tied."""
    instructions = [instruction(f"i{place}") for place in range(300)]
    responses = [response(row["instruction_id"], member, 0) for row in instructions for member in MEMBERS]
    score = dict(zip(MEMBERS, (4.0, 4.4, 4.8), strict=True))
    judgments = [judgment(row["response_id"], "kofi", score[row["member"]]) for row in responses]
    rows = selected((instructions, responses, judgments), rule(tie=0.5)).to_pylist()
    assert {row["tied"] for row in rows} == {2}
    assert {(row["member"], row["margin"] > 0) for row in rows} >= {("beta", False), ("gamma", True)}
    assert "alpha" not in {row["member"] for row in rows}
    # The runner-up is what would be picked of the rest: without gamma, alpha and beta are tied.
    second = {(row["member"], row["runner_up_id"].split("/")[1]) for row in rows}
    assert second == {("beta", "gamma"), ("gamma", "beta"), ("gamma", "alpha")}


def test_thresholds_keep_what_they_dropped_in_the_counts() -> None:
    tables = many(40)
    for changed, reason in (({"min_score": 4.0}, "below_minimum_score"), ({"min_margin": 0.1}, "margin_too_small")):
        counts = selection.counts(selected(tables, rule(**changed), heldout=0.2), MEMBERS)
        assert counts[f"dropped.{reason}"] == 32
        assert (counts["kept"], counts["ties"], counts["dropped.held_out"]) == (0, 0, 8)
    counts = selection.counts(selected(tables, rule(), heldout=0.2), MEMBERS)
    assert counts["kept"] == counts["ties"] == sum(counts[f"picked.{member}"] for member in MEMBERS) == 32


def test_the_held_out_share_is_exact_and_the_same_for_every_variant() -> None:
    tables = many(30)
    held = []
    for members in (["alpha"], MEMBERS):
        rows = selected(tables, rule(members=members), heldout=0.2).to_pylist()
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
    write_conversations(tmp_path, instructions)
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
