"""Planted pairs have the fault they are named for; the control tells a judge that sees it from one that doesn't."""

import random
from collections import Counter
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from anamnesis import controls, records
from anamnesis.controls import KINDS, auc, auc_interval, auc_rows, overlap, plant, sentence

TEXTS = [
    "Paris is the capital of France, with 2 million people.",
    "Boil the eggs for 7 minutes and cool them under water.",
    "1. Rest\n2. Drink water\n3. Sleep for 8 hours, 8 at least.",
    "A bicycle can stand up because its front wheel steers.",
    "Yes.",
    "The colours of the rainbow are not always easy to count.",
    "Work expands until 100 % of the time is gone.",
    "You should not fear the dark.",
]


def judged(count: int = 8, samples: int = 1, members: tuple[str, ...] = ("m",)) -> list[dict[str, Any]]:
    """Judged responses as stage judge has them."""
    rows = []
    for i in range(count):
        for member in members:
            for index in range(samples):
                name = records.digest("made", i)
                text = TEXTS[i % len(TEXTS)] + (f" {index}" if index else "") + ("" if member == "m" else f" {member}")
                rows.append(
                    {
                        "response_id": records.digest("response", name, member, index),
                        "instruction_id": name,
                        "instruction": f"Question number {i} about something?",
                        "context": [],
                        "member": member,
                        "sample_index": index,
                        "text": text,
                    }
                )
    return rows


def by_kind(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [row for row in rows if row["kind"] == kind]


def planted(kind: str, text: str) -> str | None:
    row = {"instruction_id": "i", "response_id": "r", "text": text}
    return KINDS[kind][0](row, {"text": "the neighbour's"}, 17)[0]


def test_every_planted_pair_stands_beside_a_genuine_one_and_has_a_text_or_a_reason() -> None:
    genuine = {row["response_id"]: row for row in judged()}
    rows = plant(judged(), 1.0, 17)
    assert Counter(row["kind"] for row in rows) == dict.fromkeys(KINDS, 8)
    assert len({row["pair_id"] for row in rows}) == len(rows)
    for row in rows:
        beside = genuine[row["response_id"]]
        assert (beside["instruction_id"], beside["instruction"]) == (row["instruction_id"], row["instruction"])
        assert (row["status"] == "ok") == (row["reason"] is None) == (row["text"] is not None)
        assert row["text"] != beside["text"]


def test_the_other_instructions_answers_are_a_derangement() -> None:
    genuine = {row["response_id"]: row["text"] for row in judged()}
    rows = by_kind(plant(judged(), 1.0, 17), "other_instruction")
    assert sorted(row["text"] for row in rows) == sorted(genuine.values())  # so their length alone can tell nothing
    assert all(row["text"] != genuine[row["response_id"]] for row in rows)


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("cut", "A bicycle can stand up because its front wheel steers.", "A bicycle can stand"),
        ("cut", "Twenty letters, not.", None),
        ("negated", "Paris is the capital.", "Paris is not the capital."),
        ("negated", "It is not the capital.", "It is the capital."),
        ("negated", "You can swim.", "You cannot swim."),
        ("negated", "You can't swim there.", None),
        ("negated", "Swim!", None),
        ("wrong_number", "No number here, but B12 and v2.", None),
        ("wrong_number", "1. First\n2. Second", None),
        ("shuffled", "One two three", None),
        ("shuffled", "no no no no", None),
        ("other_instruction", "the neighbour's", None),
        ("other_instruction", "mine", "the neighbour's"),
    ],
)
def test_a_fault_is_made_or_left(kind: str, text: str, expected: str | None) -> None:
    assert planted(kind, text) == expected


def test_a_wrong_number_is_wrong_everywhere_and_as_long() -> None:
    text = "1. Rest\n3. Sleep for 8 hours, 8 at least, not 8.5 or 18."
    made = planted("wrong_number", text)
    assert made
    assert len(made) == len(text)
    assert made.startswith("1. Rest\n3. Sleep for ")
    assert ("for 8 hours" in made) == ("hours, 8 at" in made)
    assert sum(one != other for one, other in zip(text, made, strict=True)) in (1, 2)


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=200))
def test_shuffling_keeps_every_character(text: str) -> None:
    made = planted("shuffled", text)
    if made is not None:
        assert made != text
        assert sorted(made) == sorted(text)
        assert sorted(made.split()) == sorted(text.split())


def test_an_order_of_rows_changes_nothing_and_a_new_instruction_little() -> None:
    rows = judged(40)
    before = plant(rows, 0.5, 17)
    mixed = random.Random(3).sample(rows, len(rows))
    assert plant(mixed, 0.5, 17) == before
    old = {(row["pair_id"], row["text"]) for row in before}
    new = {(row["pair_id"], row["text"]) for row in plant(judged(41), 0.5, 17)}
    assert len(new - old) <= len(KINDS) + 1  # its own, and its neighbour's of one kind


def test_more_samples_plant_the_same_pairs_and_other_members_share_in_them() -> None:
    assert plant(judged(20, samples=3), 0.5, 17) == plant(judged(20), 0.5, 17)
    beside = {row["response_id"] for row in plant(judged(20, members=("m", "n")), 1.0, 17)}
    who = Counter(row["member"] for row in judged(20, members=("m", "n")) if row["response_id"] in beside)
    assert min(who["m"], who["n"]) >= 4


def test_the_share_is_of_instructions() -> None:
    assert len(plant(judged(14, samples=3), 0.5, 17)) == 7 * len(KINDS)
    assert plant(judged(14), 0.0, 17) == []
    assert plant([], 1.0, 17) == []
    alone = plant(judged(1), 1.0, 17)
    assert by_kind(alone, "other_instruction")[0]["reason"] == "no other instruction"


SCORES = st.lists(st.integers(1, 5), min_size=1, max_size=30)


@given(SCORES, SCORES)
def test_auc_is_mann_whitney_u_over_all_pairs(genuine: list[int], planted: list[int]) -> None:
    u = mannwhitneyu(genuine, planted).statistic / len(genuine) / len(planted)
    assert auc(np.array(genuine), np.array(planted)) == pytest.approx(u)


def test_the_interval_covers_as_often_as_it_says() -> None:
    """Genuine scores one deviation above planted ones, both of an instruction alike: the AUC is Phi(1 / sqrt 2)."""
    from scipy.stats import norm

    truth = norm.cdf(1 / np.sqrt(2))
    rng, hit, runs = np.random.default_rng(5), 0, 120
    for run in range(runs):
        common, noise = rng.normal(size=60), rng.normal(size=(2, 60))
        genuine, planted = (np.sqrt(0.5) * (common + each) for each in noise)
        low, high = auc_interval(genuine + 1, planted, np.arange(60), 200, run)
        assert low is not None
        hit += low <= truth <= high
    assert 0.90 <= hit / runs <= 0.985


def test_an_interval_without_spread_still_leaves_room_for_the_next_pair() -> None:
    ones = np.ones(10)
    groups = np.arange(10)
    low, high = auc_interval(5 * ones, ones, groups, 100, 1)
    assert (low, high) == (pytest.approx(0.025**0.1), 1.0)  # Clopper and Pearson's bound for 10 of 10
    low, high = auc_interval(ones, ones, groups, 100, 1)
    assert low is not None
    assert low < 0.5 < high
    assert auc_interval(ones[:1], ones[:1], groups[:1], 100, 1) == (None, None)


@pytest.mark.parametrize("count", [6, 7, 20, 60])
def test_a_judge_that_is_wrong_more_often_gets_no_better_interval(count: int) -> None:
    """From a clean separation on, one genuine score after the other falls below all planted ones."""
    planted, groups = np.arange(count) / count, np.arange(count)
    falling = [np.where(groups < wrong, -1.0, 2.0) + planted for wrong in range(count + 1)]
    ends = [auc_interval(genuine, planted, groups, 100, 1) for genuine in falling]
    lows, highs = ([end or 0.0 for end in side] for side in zip(*ends, strict=True))
    assert lows == sorted(lows, reverse=True)
    assert highs == sorted(highs, reverse=True)
    assert (highs[0], lows[-1]) == (1.0, 0.0)
    # the least fault there is: one planted response above one genuine one, of other instructions
    nearly = planted + 2.0
    nearly[1] = planted[-1] - 0.5 / count
    low, _ = auc_interval(nearly, planted, groups, 100, 1)
    assert low is not None
    assert low < lows[0]


@pytest.mark.parametrize("count", [6, 7, 10, 20])
def test_a_coin_is_hardly_ever_said_to_tell(count: int) -> None:
    rng, told, runs = np.random.default_rng(4), 0, 200
    for run in range(runs):
        common, noise = rng.normal(size=count), rng.normal(size=(2, count))
        low, _ = auc_interval(*(common + noise), np.arange(count), 100, run)
        told += low is not None and low > 0.5
    assert told / runs <= 0.06


def test_pairs_of_one_instruction_are_drawn_together() -> None:
    rng = np.random.default_rng(2)
    genuine, planted = rng.normal(1, 1, 20), rng.normal(0, 1, 20)
    alone = auc_interval(genuine, planted, np.arange(20), 500, 1)
    copied = auc_interval(np.tile(genuine, 9), np.tile(planted, 9), np.tile(np.arange(20), 9), 500, 1)
    assert copied == pytest.approx(alone)  # nine copies of a pair are no nine pairs


def tables(count: int, score: Any, judges: tuple[str, ...] = ("j",)) -> list[pa.Table]:
    """Judgments, controls, responses and instructions; `score(judge, kind or "genuine", row)` is the vote or None."""
    rows = judged(count)
    judgments = [
        {"response_id": row["response_id"], "judge": judge, "score": score(judge, "genuine", row)}
        for judge in judges
        for row in rows
    ]
    pairs = [
        row | {"judge": judge, "score": score(judge, row["kind"], row) if row["status"] == "ok" else None}
        for judge in judges
        for row in plant(rows, 1.0, 17)
    ]
    asked = {
        row["instruction_id"]: {"instruction_id": row["instruction_id"], "text": row["instruction"]} for row in rows
    }
    return [
        pa.Table.from_pylist(judgments, records.JUDGMENTS),
        pa.Table.from_pylist(pairs, records.CONTROLS),
        pa.Table.from_pylist(rows, records.RESPONSES),
        pa.Table.from_pylist(list(asked.values()), records.INSTRUCTIONS),
    ]


def noisy(judge: str, kind: str, row: dict[str, Any]) -> float:
    """Judge `good` gives genuine responses more, `random` whatever, `wrong` gives them less."""
    level = {"good": 1.5, "random": 0.0, "wrong": -1.5}[judge] if kind == "genuine" else 0.0
    return 3 + level + random.Random(f"{judge} {kind} {row['response_id']}").gauss(0, 1)


def test_a_judge_that_sees_a_fault_is_told_from_one_at_random() -> None:
    rows = auc_rows(*tables(60, noisy, ("random", "good", "wrong")), resamples=300, seed=17)
    assert [row["judge"] for row in rows[:: len(KINDS)]] == ["good", "random", "wrong"]
    for row in rows:
        assert row["tells"] == (row["judge"] == "good"), row
        assert ("can't tell" in sentence(row)) == (row["judge"] != "good")
        assert ("prefers the planted one" in sentence(row)) == (row["judge"] == "wrong")
    found = {row["kind"]: row for row in rows if row["judge"] == "good"}
    assert found["cut"]["length_auc"] > 0.99  # length alone does as well, and the sentence says so
    assert "so does length alone" in sentence(found["cut"])
    assert found["shuffled"]["length_auc"] == found["shuffled"]["overlap_auc"] == 0.5
    assert found["other_instruction"]["length_auc"] == 0.5
    assert found["wrong_number"]["n"] < 60  # not every response has a number


def test_rows_do_not_depend_on_the_order_of_tables() -> None:
    made = tables(30, noisy, ("good", "random"))
    turned = [table.take(list(range(table.num_rows))[::-1]) for table in made]
    assert auc_rows(*made, resamples=100, seed=17) == auc_rows(*turned, resamples=100, seed=17)


def test_missing_votes_are_no_pairs_and_few_pairs_no_verdict() -> None:
    def five(judge: str, kind: str, row: dict[str, Any]) -> float | None:
        return None if kind == "cut" else 5.0 if kind == "genuine" else 1.0

    rows = {row["kind"]: row for row in auc_rows(*tables(5, five), resamples=100, seed=17)}
    assert (rows["cut"]["n"], rows["cut"]["auc"], rows["cut"]["tells"]) == (0, None, False)
    assert (rows["evasive"]["n"], rows["evasive"]["auc"], rows["evasive"]["tells"]) == (5, 1.0, False)
    assert sentence(rows["evasive"]).startswith("5 pairs can't say")
    assert sentence(rows["cut"]).startswith("0 pairs can't say")
    rows = {row["kind"]: row for row in auc_rows(*tables(6, five), resamples=100, seed=17)}
    assert rows["evasive"]["tells"]
    assert 0.5 < rows["evasive"]["low"] < 1.0


def test_few_pairs_show_nothing_and_more_show_that_there_is_nothing() -> None:
    row = {"judge": "j", "kind": "cut", "auc": 0.55, "low": 0.3, "high": 0.8, "tells": False}
    assert sentence(row | {"n": 7}).startswith("Judge j isn't shown to tell a genuine answer from")
    assert "n = 7" in sentence(row | {"n": 7})
    assert sentence(row | {"n": 20}).startswith("Judge j can't tell")
    assert sentence(row | {"n": 7, "low": 0.1, "high": 0.4}).endswith("; it prefers the planted one.")


def test_no_control_gives_no_rows() -> None:
    made = tables(4, noisy, ("good",))
    assert auc_rows(made[0], made[1].slice(0, 0), *made[2:], resamples=100, seed=17) == []


def test_overlap_counts_words_that_mean_something() -> None:
    assert overlap("What is the capital of France?", "France has a CAPITAL") == pytest.approx(2 / 3)
    assert overlap("Is it so?", "so it is") == 0.0


def test_every_kind_has_words_for_a_sentence() -> None:
    assert all(words.startswith(("the ", "an ")) for _, words in KINDS.values())
    assert controls.EVASIONS


def test_a_planted_response_that_is_the_genuine_one_is_no_pair() -> None:
    rows = judged(1)
    evasion = by_kind(plant(rows, 1.0, 17), "evasive")[0]["text"]
    for text, kind in ((f"{evasion}\n", "evasive"), ("Twenty letters, not.   \n", "cut")):
        (row,) = by_kind(plant([rows[0] | {"text": text}], 1.0, 17), kind)
        assert (row["text"], row["status"]) == (None, "filtered")
        assert row["reason"] == "the same as the genuine answer"
