"""Figures about judges: equal to their definitions and to reference libraries; planted faults are found; no crash."""

import json
import math
import random
from collections.abc import Callable
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from anamnesis import agreement, preferences, records, selection, sql, trust
from anamnesis.agreement import Bootstrap, Estimate, Scored
from stages import agree

NAN = math.nan
FEW = Bootstrap(100, 17)
MEMBERS = ["a", "b", "c"]

Rows = list[dict[str, Any]]
Judge = Callable[[dict[str, Any], random.Random], float | None]


def scored(judges: str, rows: list[tuple[int, str, int, list[float]]]) -> Scored:
    """Rows of instruction, member, characters and scores, in the order of instructions."""
    instruction, member, characters, scores = zip(*rows, strict=True)
    return Scored(
        np.array(instruction),
        np.array(member),
        np.array(characters, float),
        np.array(scores, float),
        judges.split(),
        [str(i) for i in range(max(instruction) + 1)],
    )


def of_scores(scores: np.ndarray) -> Scored:
    """One response an instruction."""
    names = " ".join(f"j{i}" for i in range(scores.shape[1]))
    return scored(names, [(i, "a", 10, list(row)) for i, row in enumerate(scores)])


def votes_of(judges: dict[str, Judge], instructions: int = 40, seed: int = 1) -> tuple[Rows, Rows]:
    """Responses of three members, three each, with a hidden quality; and every judge's votes on them."""
    rng = random.Random(seed)
    responses, judgments = [], []
    for i in range(instructions):
        for member in MEMBERS:
            for index in range(3):
                length = int(rng.lognormvariate(4, 0.8)) + 1
                row = {
                    "response_id": f"{i:03}{member}{index}",
                    "instruction_id": f"i{i:03}",
                    "member": member,
                    "sample_index": index,
                    "text": "x" * length,
                    "finish_reason": "stop",
                    "tokens": length,
                    "status": "ok",
                    "reason": None,
                }
                responses.append(row)
                hidden = row | {"quality": rng.gauss(0, 1)}
                for name, judge in judges.items():
                    judgments.append(judgment(row["response_id"], name, judge(hidden, rng)))
    return responses, judgments


def judgment(response_id: str, judge: str, score: float | None, parse: str = "logprobs") -> dict[str, Any]:
    return {
        "response_id": response_id,
        "judge": judge,
        "score": score,
        "parse": parse if score is not None else "missing",
        "justification": "",
        "tokens": 1,
        "status": "ok" if score is not None else "failed",
        "reason": None if score is not None else "no readable last line",
    }


def fair(row: dict[str, Any], rng: random.Random) -> float:
    return min(5.0, max(1.0, 3 + 0.7 * row["quality"] + rng.gauss(0, 0.4)))


def noise(row: dict[str, Any], rng: random.Random) -> float:
    return rng.uniform(1, 5)


def rows_of(responses: Rows, judgments: Rows, judges: list[str], members: list[str] | None = None) -> Rows:
    """Every row that the stage writes, but for control pairs."""
    return agree.agree(
        pa.Table.from_pylist(responses, records.RESPONSES),
        pa.Table.from_pylist(judgments, records.JUDGMENTS),
        records.CONTROLS.empty_table(),
        records.INSTRUCTIONS.empty_table(),
        members=MEMBERS if members is None else members,
        judges=judges,
        min_votes=1,
        bootstrap=Bootstrap(200, 17),
    )


def figures(judges: dict[str, Judge], **options: Any) -> dict[str, dict[str, Any]]:
    """Rows by their key as in metrics/judging.json."""
    rows = rows_of(*votes_of(judges, **options), list(judges))
    return {".".join(filter(None, (row[column] for column in agree.KEY))): row for row in rows}


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


def test_the_interval_of_a_mean_is_that_of_its_standard_error() -> None:
    values = np.random.default_rng(3).normal(0, 1, 400)
    columns = np.stack([values, np.ones(400)], axis=1)
    found = Bootstrap(2000, 1).estimate(lambda sums: agreement.divide(sums[..., 0], sums[..., 1]), columns, 400, "")
    assert found.low is not None
    assert found.high is not None
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


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


def test_winners_with_all_judges_and_without_each() -> None:
    rows = table_of("winners", {"judges": ["x", "y"], "min_votes": 2, "seed": 17})
    found = {(row["instruction_id"], row["dropped"]): row["response_id"] for row in rows}
    assert found == {
        ("i000", ""): "000a0",  # the other has one vote of two
        ("i000", "x"): "000a0",
        ("i000", "y"): "000a0",
        ("i001", ""): "001a0",
        ("i001", "x"): "001a0",
        ("i001", "y"): "001b0",
    }
    assert preferences.flips(rows, "y", ["x", "y"])["flip"].value == 1.0  # of the one with two candidates
    assert preferences.flips(rows, "x", ["x", "y"])["flip"].value == 0.0
    assert preferences.flips(rows, "x", ["x", "y"])["flip_at_random"].value == 0.5
    wins = preferences.wins(rows, "a", FEW)
    assert (wins["win_share"].value, wins["win_chance"].value, wins["win_excess"].value) == (1.0, 0.75, 0.25)


def test_winners_are_those_that_selection_picks() -> None:
    """Whole ratings of three judges tie often, so the seeded hash decides as well."""
    coarse: Judge = lambda row, rng: None if rng.random() < 0.2 else float(rng.randint(2, 4))  # noqa: E731
    responses, judgments = votes_of({"x": coarse, "y": coarse, "z": coarse})
    tables = [
        pa.Table.from_pylist(responses, records.RESPONSES),
        pa.Table.from_pylist(judgments, records.JUDGMENTS),
    ]
    panel = {"judges": ["x", "y", "z"]}
    both = {"responses": tables[0], "judgments": tables[1]}
    found = sql.run(sql.statement("stages/sql/agree_scores.sql"), both, panel | {"members": MEMBERS})
    rows = sql.run(
        sql.statement("stages/sql/agree_winners.sql"), {"scored": found}, panel | {"min_votes": 2, "seed": 17}
    ).to_pylist()
    ids = sorted({row["instruction_id"] for row in responses})
    pool = pa.table({"instruction_id": ids, "instruction": ids, "held_out": [False] * len(ids)})
    for dropped, judges in {"": ["x", "y", "z"], "y": ["x", "z"]}.items():
        picked = selection.select_variant(
            sql.statement("stages/sql/select.sql"),
            pool,
            *tables,
            members=MEMBERS,
            judges=judges,
            samples=3,
            rule="mean",
            min_votes=2,
            seed=17,
        ).to_pylist()
        ours = {row["instruction_id"]: row["response_id"] for row in rows if row["dropped"] == dropped}
        assert ours == {row["instruction_id"]: row["response_id"] for row in picked if row["response_id"]}


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
    rows = [(i, "ab"[i % 2], 9, [3 + (i % 2 == 0), 3.0]) for i in range(20)]
    mine, yours = (preferences.self_preference(scored("a b", rows), judge, FEW) for judge in (0, 1))
    assert mine.value == yours.value == 1.0
    assert mine.note == yours.note == preferences.BOTH


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
    found = figures({"x": fair, "y": fair, "dice": noise})
    assert found["pair.x.y.same_order"]["low"] > 0.6
    assert found["pair.x.y.spearman"]["low"] > 0.5
    assert found["pair.x.y.kappa"]["low"] > 0.3
    for name in "xy":
        assert found[f"pair.{name}.dice.same_order"]["low"] < 0.5
        assert found[f"pair.{name}.dice.spearman"]["low"] < 0
    assert found["judge.dice.flip"]["value"] > found["judge.x.flip"]["value"]
    said = trust.trust(list(found.values()), ["x", "y", "dice"], MEMBERS).sentences
    accused = [text for text in said if "agrees with no other judge" in text]
    assert len(accused) == 1
    assert "dice" in accused[0]


def test_two_random_judges_agree_on_nothing() -> None:
    found = figures({"x": noise, "y": noise})
    said = trust.trust(list(found.values()), ["x", "y"], MEMBERS).sentences
    assert "No agreement beyond chance is shown." in said[0]
    assert "At least one of them sees nothing that the other sees" in said[1]


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
    assert isinstance(Estimate(None).value, type(None))
