"""Planted faults of judges are found and said, odd panels are no crash: from rows to the section of the page."""

import json
import math
import random
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from panels import MEMBERS, Judge, Rows, fair, figures, noise, rows_of, votes_of

from anamnesis import records, trust
from stages import agree

# --------------------------------------------------------------------------------------------- planted faults are found


def test_a_self_preferring_judge_is_found_and_the_others_are_not() -> None:
    vain: Judge = lambda row, rng: fair(row, rng) + 0.5 * (row["member"] == "a")  # noqa: E731
    found = figures({"a": vain, "b": fair, "c": fair})
    assert found["judge.a.self_preference"]["low"] > 0.2
    assert found["judge.a.self_preference"]["value"] == pytest.approx(0.5, abs=0.15)
    for name in "bc":
        assert found[f"judge.{name}.self_preference"]["low"] < 0 < found[f"judge.{name}.self_preference"]["high"]
    said = " ".join(trust.trust(list(found.values()), MEMBERS, MEMBERS).sentences)
    assert "Judge a prefers its own responses" in said
    assert "Judge b: no self-preference shown" in said


def test_a_favoured_member_wins_more_than_its_share_of_the_candidates() -> None:
    kind: Judge = lambda row, rng: fair(row, rng) + 0.8 * (row["member"] == "b")  # noqa: E731
    found = figures({"x": kind, "y": kind})
    assert found["member.b.win_chance"]["value"] == pytest.approx(1 / 3)
    assert found["member.b.win_excess"]["low"] > 0 > found["member.a.win_excess"]["high"]
    section = trust.trust(list(found.values()), ["x", "y"], MEMBERS)
    (favoured,) = (text for text in section.sentences if "picked more often than by chance" in text)
    assert favoured.startswith("Member b")
    assert next(table for table in section.tables if table.name == "favoured").lines[0][0] == "b"


def test_a_random_judge_is_found_and_the_others_are_not() -> None:
    accused = []
    for seed in range(1, 6):
        found = figures({"x": fair, "y": fair, "dice": noise}, seed=seed)
        assert found["pair.x.y.same_order"]["low"] > 0.6
        assert found["pair.x.y.spearman"]["low"] > 0.5
        assert found["pair.x.y.kappa"]["low"] > 0.3
        for name in "xy":
            for figure in ("same_order", "spearman", "kappa"):
                assert found[f"pair.{name}.dice.{figure}"]["high"] < found[f"pair.x.y.{figure}"]["low"]
        said = trust.trust(list(found.values()), ["x", "y", "dice"], MEMBERS).sentences
        accused += [text.split()[1] for text in said if "agrees with no other judge beyond chance" in text]
    assert set(accused) == {"dice"}
    assert len(accused) >= 3  # with two others, one die in ten is above or below chance with one of them


def test_two_random_judges_agree_on_nothing() -> None:
    found = figures({"x": noise, "y": noise})
    said = trust.trust(list(found.values()), ["x", "y"], MEMBERS).sentences
    assert "No agreement beyond chance is shown." in said[0]
    assert "the votes of one of them, or of both, may be noise" in said[1]


def test_a_judge_of_length_is_found_and_a_fair_one_is_not() -> None:
    long: Judge = lambda row, rng: fair(row, rng) + 0.4 * (math.log2(row["tokens"]) - 6)  # noqa: E731
    found = figures({"long": long, "fair": fair})
    assert found["judge.long.length_slope"]["low"] > 0.2
    assert found["judge.fair.length_slope"]["low"] < 0 < found["judge.fair.length_slope"]["high"]
    said = " ".join(trust.trust(list(found.values()), ["long", "fair"], MEMBERS).sentences)
    assert "scores longer responses higher" in said


def test_missing_votes_are_counted_and_never_read_as_a_score() -> None:
    """Half of one judge's votes are gone at random: its figures stay about what they were, from half as many."""
    patchy: Judge = lambda row, rng: None if rng.random() < 0.5 else fair(row, rng)  # noqa: E731
    found = figures({"x": fair, "y": patchy}, instructions=80)
    assert found["judge.y.parse_rate"]["low"] < 0.5 < found["judge.y.parse_rate"]["high"]
    assert (
        found["judge.y.missing"]["value"] + found["judge.y.rung.logprobs"]["value"] == found["judge.y.asked"]["value"]
    )
    assert found["judge.y.mean"]["value"] == pytest.approx(3, abs=0.15)
    assert found["alpha.interval"]["n"] == found["pair.x.y.kappa"]["n"] == found["judge.y.rung.logprobs"]["value"]
    assert found["pair.x.y.spearman"]["low"] > 0.5


# ------------------------------------------------------------------------------------------ perfect or no agreement


def steady(row: dict[str, Any], rng: random.Random) -> float:
    """The same vote by every such judge."""
    return 1 + 4 * random.Random(row["response_id"]).random()


def opposite(row: dict[str, Any], rng: random.Random) -> float:
    return 6 - steady(row, rng)


def said_of(judges: dict[str, Judge], **options: Any) -> list[str]:
    return trust.trust(list(figures(judges, **options).values()), list(judges), MEMBERS).sentences


@pytest.mark.parametrize("names", ["xy", "xyz"])
def test_perfect_agreement_is_said_to_be_agreement(names: str) -> None:
    panel = dict.fromkeys(names, steady)
    found = figures(panel, instructions=20)
    room = 1 - 0.025 ** (1 / 20)
    assert (found["alpha.interval"]["value"], found["alpha.interval"]["high"]) == (1.0, 1.0)
    assert found["alpha.centred"]["low"] == pytest.approx(1 - 2 * room, abs=1e-6)
    assert found["pair.x.y.same_order"]["low"] == pytest.approx(1 - room, abs=1e-6)
    assert found["pair.x.y.spearman"]["low"] == pytest.approx(1 - 2 * room, abs=1e-6)
    said = said_of(panel, instructions=20)
    assert said[0].endswith("Apart from how strict each of them is, the judges agree well.")
    assert not re.search("noise|No agreement|ruled out", " ".join(said))
    if names == "xyz":
        assert "x tends to prefer the same one as y and z." in said[1]


@pytest.mark.parametrize("names", ["xy", "xyz"])
def test_too_few_instructions_accuse_nobody(names: str) -> None:
    said = said_of(dict.fromkeys(names, steady), instructions=5)
    assert "agreement is neither shown nor ruled out" in said[0]
    assert all(trust.UNCERTAIN in text for text in said[: 1 + len(names) - (names == "xy")])
    assert not re.search("noise|No agreement|no other judge", " ".join(said))


def test_one_response_each_leaves_nothing_to_put_in_order_and_accuses_nobody() -> None:
    responses, judgments = votes_of(dict.fromkeys("xyz", steady), instructions=20)
    ones = [row for row in responses if row["member"] == "a" and row["sample_index"] == 0]
    said = trust.trust(rows_of(ones, judgments, list("xyz")), list("xyz"), MEMBERS).sentences
    assert "the judges agree well" in said[0]
    for judge, text in zip("xyz", said[1:4], strict=True):
        assert text.startswith(f"Whether judge {judge} orders two responses as others do can't be said")
        assert "not defined: no two responses to one instruction that both tell apart" in text


def test_an_opposite_judge_is_no_noise() -> None:
    said = said_of({"x": steady, "y": steady, "z": opposite}, instructions=20)
    assert "x tends to prefer the same one as y and to prefer the other one than z." in said[1]
    assert "z tends to prefer the other one than x and y." in said[3]
    assert "opposite ones" in said_of({"x": steady, "z": opposite}, instructions=20)[1]


def test_judges_that_give_one_score_each_are_not_said_to_disagree() -> None:
    said = said_of({"x": lambda row, rng: 2.0, "y": lambda row, rng: 4.0}, instructions=20)
    assert "not defined: each judge gave every response the same score" in said[0]
    assert said[0].endswith("apart from how strict each of them is can't be said.")


def test_a_member_that_always_wins_is_favoured() -> None:
    best: Judge = lambda row, rng: 5.0 if row["member"] == "b" else 1.0  # noqa: E731
    said = said_of({"x": best}, instructions=20)
    assert any(text.startswith("Member b") and "picked more often than by chance" in text for text in said)


def test_two_judges_who_are_the_two_authors_are_told_of_together() -> None:
    vain: Judge = lambda row, rng: fair(row, rng) + 0.8 * (row["member"] == "a")  # noqa: E731
    responses, judgments = votes_of({"a": vain, "b": fair})
    ours = [row for row in responses if row["member"] in "ab"]
    rows = rows_of(ours, judgments, ["a", "b"], ["a", "b"])
    flat = agree.metrics_of(rows)
    assert flat["pair.a.b.self_preference_sum.low"] > 0.4
    assert not any(".self_preference" in key for key in flat if key.startswith("judge."))
    assert "judge.a.own_minus_others.low" in flat
    said = trust.trust(rows, ["a", "b"], ["a", "b"]).sentences
    (told,) = (text for text in said if "together" in text)
    assert told.startswith("a and b together favour their own by +0.")
    assert told.endswith("points; which of them can't be told.")
    assert sum("self-preference is not defined" in text for text in said) == 2
    assert not any("self_preference_sum" in key for key in figures({"a": vain, "b": fair}))  # c's responses tell


def test_the_stage_prints_what_it_found() -> None:
    found = list(figures({"x": fair, "a": fair}).values())
    control = {"judge": "x", "kind": "cut", "n": 20, "auc": 0.9, "low": 0.8, "high": 0.97, "tells": True}
    rows = found + agree.control_rows([control | {"length_auc": 1.0, "overlap_auc": 0.7}])
    said = trust.summary(rows, ["x", "a"], MEMBERS)
    assert [text.split(":")[0] for text in said[:6]] == [
        *(f"alpha, {label}" for label in trust.ALPHAS.values()), "x and a", "x", "a",
    ]  # fmt: skip
    assert re.match(r"x and a: kappa 0\.\d\d \[.*\], same order \d\d % \[", said[3])
    assert re.match(r"a: winners changed without it \d\d % \[.*\], self-preference [+-]0\.\d\d \[", said[5])
    assert said[6:] == [rows[-3]["note"]]


def test_written_figures_have_as_many_digits_as_the_metrics() -> None:
    found = figures({"x": fair, "y": fair}, instructions=8)
    for row in found.values():
        for value in (row["value"], row["low"], row["high"]):
            assert value is None or value == round(value, 6)


# ------------------------------------------------------------------------------------------------------- odd panels

RESPONSES, JUDGMENTS = votes_of({"a": fair, "b": fair}, instructions=8)
ALIKE = [row | {"score": 3.0} for row in JUDGMENTS]
SILENT = [row | {"score": None} for row in JUDGMENTS]
ONE_MEMBER = [row for row in RESPONSES if row["member"] == "a"]
ONE_EACH = [row for row in RESPONSES if row["sample_index"] == 0 and row["member"] == "a"]

ODD: dict[str, tuple[Rows, Rows, list[str], list[str]]] = {
    "no judge": (RESPONSES, [], [], MEMBERS),
    "no response": ([], [], ["a", "b"], MEMBERS),
    "no vote": (RESPONSES, SILENT, ["a", "b"], MEMBERS),
    "one judge": (RESPONSES, JUDGMENTS, ["a"], MEMBERS),
    "one member": (ONE_MEMBER, JUDGMENTS, ["a", "b"], ["a"]),
    "one judge, one member": (ONE_MEMBER, JUDGMENTS, ["a"], ["a"]),
    "one response each": (ONE_EACH, JUDGMENTS, ["a", "b"], ["a"]),
    "one instruction": (RESPONSES[:9], JUDGMENTS[:18], ["a", "b"], MEMBERS),
    "all alike": (RESPONSES, ALIKE, ["a", "b"], MEMBERS),
    "one is silent": (RESPONSES, [row for row in JUDGMENTS if row["judge"] == "a"], ["a", "b"], MEMBERS),
}
UNDEFINED = {
    "no judge": {"alpha.interval": "there is no judge", "member.a.win_share": "no instruction was decided"},
    "no response": {
        "alpha.interval": "no response has two votes",
        "judge.a.parse_rate": "it was asked about no response",
    },
    "no vote": {"judge.a.mean": "no votes", "pair.a.b.kappa": "no response has a vote of both"},
    "one judge": {"judge.a.self_preference": "there is no other judge", "judge.a.flip": "no judge is left without it"},
    "one member": {
        "judge.a.self_preference": "it wrote every response",
        "judge.b.self_preference": "it wrote no judged",
    },
    "one judge, one member": {"alpha.ordinal": "there is one judge alone"},
    "one response each": {"judge.a.flip": "no instruction with two", "judge.a.length_slope": "no two voted responses"},
    "all alike": {
        "alpha.ordinal": "all votes are the same",
        "pair.a.b.kappa": "both rounded to one",
        "pair.a.b.spearman": "gave every response the same score",
        "pair.a.b.same_order": "no two responses",
    },
    "one is silent": {"alpha.interval": "no response has two votes"},
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("case", ODD)
def test_odd_panels_are_no_crash_and_say_why(case: str, tmp_path: Path) -> None:
    responses, judgments, judges, members = ODD[case]
    rows = rows_of(responses, judgments, judges, members)
    assert all((row["value"] is None) <= bool(row["note"]) for row in rows)
    found = {".".join(filter(None, (row[column] for column in agree.KEY))): row for row in rows}
    for key, reason in UNDEFINED.get(case, {}).items():
        assert found[key]["value"] is None
        assert found[key]["note"].startswith(reason) or reason in found[key]["note"]
    flat = agree.metrics_of(rows)
    assert all(math.isfinite(value) for value in flat.values())
    assert "NaN" not in json.dumps(flat)
    records.write(tmp_path / "agreement.parquet", rows, records.AGREEMENT, agree.KEY)
    section = trust.trust(records.read(tmp_path / "agreement.parquet", records.AGREEMENT), judges, members)
    said = " ".join([*section.sentences, *(cell for table in section.tables for line in table.lines for cell in line)])
    assert "nan" not in said
    assert "None" not in said
    assert bool(judges) == any(table.name == "ratings" for table in section.tables)


def test_the_order_of_rows_changes_nothing() -> None:
    responses, judgments = votes_of({"a": fair, "b": noise}, instructions=12)
    shuffled = random.Random(1).sample(responses, len(responses)), random.Random(2).sample(judgments, len(judgments))
    assert rows_of(responses, judgments, ["a", "b"]) == rows_of(*shuffled, ["a", "b"])


def test_an_interval_that_leaves_chance_out_is_seen_to_do_so() -> None:
    row = {"value": -0.02, "low": -0.03, "high": -0.0004, "note": None}
    assert trust.told(row, sign=True) == "-0.0200 [-0.0300, -0.0004]"
    assert trust.told(row | {"high": 0.0004}, sign=True) == "-0.02 [-0.03, 0.00]"
    assert trust._share({"value": 0.4, "low": 0.3, "high": 0.4996, "note": None}) == "40.00 % [30.00 %, 49.96 %]"


def test_control_rows_keep_their_sentence() -> None:
    found = {"judge": "a", "kind": "cut", "n": 20, "auc": 0.9, "low": 0.8, "high": 0.97, "tells": True}
    rows = agree.control_rows([found | {"length_auc": 1.0, "overlap_auc": 0.7}])
    assert [(row["figure"], row["value"]) for row in rows] == [("auc", 0.9), ("length_auc", 1.0), ("overlap_auc", 0.7)]
    section = trust.trust(rows, ["a"], ["a"])
    assert section.control_sentences == [rows[0]["note"]]
    assert "can tell" in rows[0]["note"]
    assert section.telling == [trust.Mark("a: cut", 0.9, 0.8, 0.97, (1.0, 0.7))]
    assert agree.metrics_of(rows)["control.a.cut.auc.low"] == 0.8


def test_every_pair_has_its_row() -> None:
    found = figures(dict.fromkeys("wxyz", fair), instructions=8)
    assert {key for key in found if key.endswith(".kappa")} == {
        f"pair.{a}.{b}.kappa" for a, b in combinations("wxyz", 2)
    }
