"""Figures about judges equal their definitions and those of reference libraries; the SQL they are made from."""

import math
import random
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from panels import FEW, MEMBERS, NAN, Judge, Rows, judgment, of_scores, scored, votes_of

from anamnesis import agreement, preferences, records, selection, sql
from anamnesis.agreement import Bootstrap

# ------------------------------------------------------------------------------------------- equal to the definitions

# Krippendorff's worked example ("Computing Krippendorff's Alpha-Reliability", 2011): twelve units, four observers.
EXAMPLE = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
).T


def test_alpha_of_the_published_example() -> None:
    found = agreement.alphas(of_scores(EXAMPLE), FEW)
    assert found["ordinal"].value == pytest.approx(0.815, abs=5e-4)
    assert found["interval"].value == pytest.approx(0.849, abs=5e-4)
    assert found["ordinal"].n == 11  # the last unit has one value, so nothing to agree with


def brute_alpha(scores: np.ndarray, ordinal: bool) -> float:
    """By definition: the mean distance of pairs within a unit, each unit by its number of values, over that of all."""
    units = [row[np.isfinite(row)] for row in scores]
    units = [unit for unit in units if len(unit) >= 2]
    everything = np.concatenate(units)

    def distance(x: float, y: float) -> float:
        if not ordinal:
            return (x - y) ** 2
        low, high = min(x, y), max(x, y)
        between = ((everything >= low) & (everything <= high)).sum()
        return float(between - ((everything == low).sum() + (everything == high).sum()) / 2) ** 2

    n = len(everything)
    observed = sum(sum(distance(x, y) for x, y in permutations(unit, 2)) / (len(unit) - 1) for unit in units) / n
    expected = sum(distance(x, y) for x, y in permutations(everything, 2)) / (n * (n - 1))
    return 1 - observed / expected


@pytest.mark.parametrize("seed", range(5))
def test_alpha_equals_its_definition_with_missing_votes(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = np.clip(rng.normal(3, 1, (15, 1)) + rng.normal(0, 0.8, (15, 3)), 1, 5)
    scores[rng.random(scores.shape) < 0.25] = NAN
    found = agreement.alphas(of_scores(scores), FEW)
    assert found["ordinal"].value == pytest.approx(brute_alpha(agreement.ratings(scores), True))
    assert found["interval"].value == pytest.approx(brute_alpha(scores, False))


def test_a_strict_judge_lowers_alpha_but_not_the_centred_one() -> None:
    scores = np.array([[1, 3], [2, 4], [3, 5], [2.5, 4.5], [1.5, 3.5], [2, 4], [1, 3.0]])
    found = agreement.alphas(of_scores(scores), FEW)
    assert found["interval"].value is not None
    assert found["interval"].value < 0
    assert found["centred"].value == pytest.approx(1.0)


@pytest.mark.parametrize("judges", [2, 4])
def test_centred_alpha_takes_the_means_out_of_every_resample(judges: int) -> None:
    """Of whatever rows, what the sums give is alpha of the scores centred on those rows' own means."""
    rng = np.random.default_rng(judges)
    scores = rng.normal(3, 1, (30, 1)) + rng.normal(0, 0.8, (30, judges)) + np.arange(judges)
    scores[rng.random(scores.shape) < 0.2] = NAN
    scores[np.isfinite(scores).sum(axis=1) < 2] = NAN
    sums = agreement._judge_moments(of_scores(scores))
    for _ in range(5):
        times = np.bincount(rng.integers(0, 30, 30), minlength=30)
        drawn = np.repeat(scores, times, axis=0)
        centred = drawn - np.nanmean(drawn, axis=0)
        assert agreement.alpha_centred(times @ sums, judges) == pytest.approx(brute_alpha(centred, False))


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_scikit_learn_s(seed: int) -> None:
    from sklearn.metrics import cohen_kappa_score

    rng = np.random.default_rng(seed)
    scores = np.clip(rng.normal(3, 1, (40, 1)) + rng.normal(0, 0.7, (40, 2)), 1, 5)
    scores[3, 0] = scores[5, 1] = NAN
    found = agreement.pair(of_scores(scores), 0, 1, no_orders(), FEW)
    both = np.isfinite(scores).all(axis=1)
    x, y = agreement.ratings(scores[both]).T.astype(int)
    assert found["kappa"].value == pytest.approx(cohen_kappa_score(x, y, weights="quadratic", labels=[1, 2, 3, 4, 5]))
    assert found["kappa"].n == 38


def no_orders() -> pa.Table:
    names = ("one", "two", "pairs", "same")
    return pa.table({"instruction_id": pa.array([], pa.string())} | {name: pa.array([], pa.int64()) for name in names})


def test_spearman_is_scipy_s_also_when_instructions_come_twice() -> None:
    from scipy.stats import spearmanr

    rng = np.random.default_rng(2)
    a, b = rng.integers(1, 6, 60).astype(float), rng.integers(1, 6, 60) + rng.random(60).round(1)
    groups = np.arange(60) // 4
    found = agreement.spearman(groups, a, b, 15, FEW)
    assert found.value == pytest.approx(spearmanr(a, b).statistic)
    times = rng.integers(0, 4, 60)
    ranks = agreement._Ranked.of(a).ranks(times.astype(float))
    repeated = np.repeat(a, times)
    assert spearmanr(np.repeat(ranks, times), repeated).statistic == pytest.approx(1.0)
    below = [(repeated < value).sum() + ((repeated == value).sum() + 1) / 2 for value in a]
    assert ranks[times > 0] == pytest.approx(np.array(below)[times > 0])


def test_ratings_round_half_a_point_up() -> None:
    assert agreement.ratings(np.array([1.0, 1.5, 2.499999, 2.5, 4.5, 5.0])).tolist() == [1, 2, 2, 3, 5, 5]


@pytest.mark.parametrize("count", [400, 3 * agreement.BLOCKS + 500])
def test_the_interval_of_a_mean_is_that_of_its_standard_error(count: int) -> None:
    values = np.random.default_rng(3).normal(0, 1, count)
    columns = np.stack([values, np.ones(count)], axis=1)
    found = Bootstrap(2000, 1).estimate(lambda sums: agreement.divide(sums[..., 0], sums[..., 1]), columns, count, "")
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / count**0.5, rel=0.1)


def test_the_rank_correlation_s_interval_is_fisher_s_for_few_and_for_many() -> None:
    rng = np.random.default_rng(8)
    for count in (300, 2 * agreement.BLOCKS):
        a = rng.normal(0, 1, count)
        found = agreement.spearman(np.arange(count), a, a + rng.normal(0, 1, count), count, Bootstrap(400, 1))
        assert found.value is not None
        assert found.low is not None
        assert found.high is not None
        width = np.arctanh(found.high) - np.arctanh(found.low)
        wanted = 2 * 1.96 * ((1 + found.value**2 / 2) / (count - 3)) ** 0.5  # Bonett and Wright 2000
        assert width == pytest.approx(wanted, rel=0.2)


@pytest.mark.parametrize("count", [6, 20])
def test_more_agreement_never_has_the_lower_bound_of_less(count: int) -> None:
    """Of `count` instructions some are in the opposite order; where none is, there is room for some all the same."""
    lows = []
    for wrong in range(count):
        sums = np.stack([np.arange(count) >= wrong, np.ones(count)], axis=1).astype(float)
        share = Bootstrap(300, 1).estimate(
            lambda sums: agreement.divide(sums[..., 0], sums[..., 1]), sums, count, "", agreement.SHARE
        )
        assert share.low is not None
        lows.append(share.low)
    assert lows[0] == pytest.approx(0.025 ** (1 / count))  # Clopper and Pearson's bound
    assert lows == sorted(lows, reverse=True)


def test_copies_of_a_response_do_not_narrow_an_interval() -> None:
    rng = random.Random(4)
    rows = [(i, "a" if i % 2 else "b", 10, [rng.uniform(1, 5), rng.uniform(1, 5)]) for i in range(30)]
    once, ten_times = (
        preferences.self_preference(scored("a k", [row for row in rows for _ in range(n)]), 0, FEW) for n in (1, 10)
    )
    assert (once.low, once.high) == (pytest.approx(ten_times.low), pytest.approx(ten_times.high))


# ----------------------------------------------------------------------------------------------------------- SQL tables


def small() -> tuple[Rows, Rows]:
    """Two instructions, two members; one response truncated, one to a held-out instruction, one vote missing."""
    responses, _ = votes_of({}, instructions=3)
    keep = {"000a0": "ok", "000a1": "truncated", "000b0": "ok", "001a0": "ok", "001b0": "ok", "002a0": "ok"}
    responses = [row | {"status": keep[row["response_id"]]} for row in responses if row["response_id"] in keep]
    scores = {"000a0": (4.0, 2.5), "000b0": (3.0, None), "001a0": (2.0, 5.0), "001b0": (4.0, 1.0), "gone": (5.0, 5.0)}
    judgments = [
        judgment(key, name, score) for key, pair in scores.items() for name, score in zip("xy", pair, strict=True)
    ]
    return responses, judgments


def table_of(name: str, parameters: dict[str, Any]) -> Rows:
    responses, judgments = small()
    tables = {
        "responses": pa.Table.from_pylist(responses, records.RESPONSES),
        "judgments": pa.Table.from_pylist(judgments, records.JUDGMENTS),
    }
    panel = {"judges": ["x", "y"], "members": ["a", "b"]}
    found = sql.run(sql.statement("stages/sql/agree_scores.sql"), tables, panel)
    if name == "scores":
        return found.to_pylist()
    return sql.run(
        sql.statement(f"stages/sql/agree_{name}.sql"),
        {"scored": found} | ({"judgments": tables["judgments"]} if name == "votes" else {}),
        parameters,
    ).to_pylist()


def test_scores_are_those_of_complete_responses_that_were_judged() -> None:
    found = {row["response_id"]: row["scores"] for row in table_of("scores", {})}
    assert found == {"000a0": [4.0, 2.5], "000b0": [3.0, None], "001a0": [2.0, 5.0], "001b0": [4.0, 1.0]}


def test_votes_are_counted_by_rung_and_rating() -> None:
    found = [tuple(row.values()) for row in table_of("votes", {"judges": ["x", "y"]})]
    assert found == [
        ("x", "logprobs", 2, 1),
        ("x", "logprobs", 3, 1),
        ("x", "logprobs", 4, 2),
        ("y", "logprobs", 1, 1),
        ("y", "logprobs", 3, 1),  # 2.5
        ("y", "logprobs", 5, 1),
        ("y", "missing", 0, 1),
    ]


def test_orders_need_two_scores_of_both_judges() -> None:
    found = [tuple(row.values()) for row in table_of("orders", {})]
    assert found == [("i001", 0, 1, 1, 0)]  # x prefers b, y prefers a; instruction 0 lacks a vote of y


def winners_of(responses: Rows, judgments: Rows, rule: selection.Rule) -> dict[str, preferences.Winners]:
    ids = sorted({row["instruction_id"] for row in responses if row["status"] == "ok"})
    return preferences.winners(
        sql.statement("stages/sql/candidates.sql"),
        sql.statement("stages/sql/select.sql"),
        pa.table({"instruction_id": ids, "instruction": ids, "held_out": [False] * len(ids)}),
        pa.Table.from_pylist(responses, records.RESPONSES),
        pa.Table.from_pylist(judgments, records.JUDGMENTS),
        rule,
        17,
    )


def test_winners_with_all_judges_and_without_each() -> None:
    responses, judgments = small()
    found = winners_of(responses, judgments, selection.Rule("mean", ["a", "b"], ["x", "y"], 3, min_votes=2))
    picked = {
        (row["instruction_id"], dropped): row["response_id"]
        for dropped, winners in found.items()
        for row in winners.picks.to_pylist()
        if row["response_id"]
    }
    assert picked == {
        ("i000", ""): "000a0",  # the other has one vote of two
        ("i000", "x"): "000a0",
        ("i000", "y"): "000a0",
        ("i001", ""): "001a0",
        ("i001", "x"): "001a0",
        ("i001", "y"): "001b0",
    }
    assert preferences.flips(found, "y")["flip"].value == 1.0  # of the one with two candidates
    assert preferences.flips(found, "x")["flip"].value == 0.0
    assert preferences.flips(found, "x")["flip_at_random"].value == 0.5
    wins = preferences.wins(found, "a", FEW)
    assert (wins["win_share"].value, wins["win_chance"].value, wins["win_excess"].value) == (1.0, 0.75, 0.25)


def test_a_tie_that_is_wide_and_votes_that_are_not_asked_for_count_as_in_stage_select() -> None:
    """Under a wide tie every candidate may win, whatever its mean; under min_votes 0 one without a vote may, too."""
    responses, judgments = votes_of({"x": lambda row, rng: rng.uniform(1, 5)}, instructions=30)
    judgments = [row for row in judgments if not row["response_id"].endswith("c0")]
    none, wide = (
        winners_of(responses, judgments, selection.Rule("mean", MEMBERS, ["x"], 3, min_votes=votes, tie=tie))[""]
        for votes, tie in ((1, 0.0), (0, 5.0))
    )
    best = {row["instruction_id"]: row["response_id"] for row in none.picks.to_pylist()}
    other = {row["instruction_id"]: row["response_id"] for row in wide.picks.to_pylist()}
    assert sum(best[key] != other[key] for key in best) > 15
    assert any(key.endswith("c0") for key in other.values())
    assert (none.shares("c")[0], wide.shares("c")[0]) == (2 / 8, 3 / 9)


@pytest.mark.parametrize("thresholds", [{"min_votes": 2}, {"min_votes": 0, "tie": 0.5}, {"min_score": 3.0}])
def test_winners_are_those_that_stage_select_picks(thresholds: dict[str, Any]) -> None:
    """Whole ratings of three judges tie often, so the seeded hash decides as well; texts are no part of it."""
    coarse: Judge = lambda row, rng: None if rng.random() < 0.2 else float(rng.randint(2, 4))  # noqa: E731
    responses, judgments = votes_of({"x": coarse, "y": coarse, "z": coarse})
    rule = selection.Rule("mean", MEMBERS, ["x", "y", "z"], samples=3, **thresholds)
    found = winners_of(responses, judgments, rule)
    assert list(found) == ["", "x", "y", "z"]
    tables = (
        pa.Table.from_pylist(responses, records.RESPONSES),
        pa.Table.from_pylist(judgments, records.JUDGMENTS),
    )
    ids = sorted({row["instruction_id"] for row in responses})
    pool = pa.table({"instruction_id": ids, "instruction": ids, "held_out": [False] * len(ids)})
    for dropped, judges in {"": ["x", "y", "z"], "y": ["x", "z"]}.items():
        panel = replace(rule, judges=judges)
        query = selection.candidates_query(sql.statement("stages/sql/candidates.sql"), panel)
        best = sql.statement("stages/sql/select.sql")
        picked = selection.select_variant(best, query, pool, *tables, panel, seed=17).sort_by("instruction_id")
        assert found[dropped].picks.drop_columns("response") == picked.drop_columns("response")


# ------------------------------------------------------------------------------------------------ preferences by hand


def test_self_preference_by_hand() -> None:
    """Judge a gives itself 4 where b gives 2 and c 3; of b's response only c is asked, of c's only b."""
    table = scored("a b c", [(0, "a", 9, [4, 2, 3]), (0, "b", 9, [3, 5, 3.5]), (0, "c", 9, [2, 2.5, 5])])
    found = preferences.self_preference(table, 0, FEW)
    against_b = (4 - 2) - (2 - 2.5)  # the neutral response is c's
    against_c = (4 - 3) - (3 - 3.5)
    assert found.value == pytest.approx((against_b + against_c) / 2)
    assert found.note is None
    assert (found.low, found.n) == (None, 1)  # one instruction has no interval


def test_strictness_is_no_self_preference() -> None:
    rng = np.random.default_rng(5)
    quality = rng.normal(3, 0.5, 60)
    scores = quality[:, None] + np.array([0.9, -0.4, 0.1])
    rows = [(i // 3, MEMBERS[i % 3], 9, list(row)) for i, row in enumerate(scores)]
    del rows[4], rows[20]  # members need not be there equally often
    for judge in range(3):
        assert preferences.self_preference(scored("a b c", rows), judge, FEW).value == pytest.approx(0, abs=1e-9)


def test_two_judges_who_are_the_two_members_share_one_figure() -> None:
    """Judge a alone favours its own by a point: nothing in the votes says that it isn't b."""
    rows = [(i, "ab"[i % 2], 9, [3 + (i % 2 == 0) + i / 100, 3.0]) for i in range(20)]
    table = scored("a b", rows)
    for judge in (0, 1):
        found = preferences.self_preference(table, judge, FEW)
        assert (found.value, found.note) == (None, preferences.BOTH)
    both = preferences.self_preference_sum(table, 0, 1, FEW)
    assert both.value == pytest.approx(0.99)
    assert both.low is not None
    assert both.low > 0.8
    assert both.n == 20


def test_own_minus_others_is_over_its_own_responses_and_holds_strictness() -> None:
    table = scored("a b c", [(0, "a", 9, [4, 2, 3]), (0, "a", 9, [4, NAN, 2]), (0, "b", 9, [5, 1, 1])])
    found = preferences.own_minus_others(table, 0, FEW)
    assert (found.value, found.n) == (pytest.approx((1.5 + 2) / 2), 2)
    assert preferences.own_minus_others(table, 2, FEW).note == "it wrote no judged response"
    strict = scored("a b", [(i, "ab"[i % 2], 9, [2.0 + i / 50, 3.5 + i / 50]) for i in range(12)])
    assert preferences.own_minus_others(strict, 0, FEW).value == pytest.approx(-1.5)


def test_length_slope_is_within_instructions() -> None:
    rng = np.random.default_rng(6)
    rows = []
    for i in range(20):
        for length in rng.integers(5, 400, 4):
            rows.append((i, "a", int(length), [rng.normal(0, 1e-6) + 0.25 * math.log2(length) - 0.3 * i, 3.0]))
    table = scored("x y", rows)
    assert preferences.length_slope(table, 0, FEW).value == pytest.approx(0.25, abs=1e-4)
    flat = preferences.length_slope(table, 1, FEW)
    assert (flat.value, flat.low) == (0.0, None)
