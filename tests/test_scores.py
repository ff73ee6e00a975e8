"""Learning, forgetting, net, shares, seeds and the notes on verdicts, on tables small enough to do by hand."""

import pytest
from compared import compared, samples

from anamnesis import findings, flat, results
from anamnesis.errors import UserError


def test_an_average_is_over_measures_and_not_over_items() -> None:
    # arithmetic: 10 of 20 right, then 8; gsm8k: 4 of 4, then 3. Means 0.75 and 0.575; pooled over items: 14/24, 11/24.
    base = samples("arithmetic", [1] * 10 + [0] * 10) + samples("gsm8k", [1] * 4)
    tuned = samples("arithmetic", [0, 0] + [1] * 8 + [0] * 10) + samples("gsm8k", [0, 1, 1, 1])
    one = results.results({"base": base, "tuned": tuned}, None, 500, 1).scores["accuracy"]["tuned"]
    assert one.kept is not None
    assert one.forgetting is not None
    assert (one.kept.base, one.kept.tuned) == (pytest.approx(0.75), pytest.approx(0.575))
    assert one.forgetting.value == pytest.approx(0.175)
    assert one.forgetting.n == 24
    assert one.forgetting.low is not None
    assert one.forgetting.low < 0.175
    assert (one.learnt, one.learning, one.net) == (None, None, None)


def test_net_is_learning_less_forgetting_and_units_stay_apart() -> None:
    before = {"domain_choice": [0, 0, 0, 1], "arithmetic": [1, 1, 1, 1], "domain_text": [3, 3], "own_text": [1, 1.5]}
    after = {"domain_choice": [1, 1, 0, 1], "arithmetic": [1, 1, 1, 0], "domain_text": [2, 2.5], "own_text": [1.2, 2]}
    base, tuned = ([row for name, values in given.items() for row in samples(name, values)]
                   for given in (before, after))  # fmt: skip
    numbers = flat.summary(results.results({"base": base, "tuned": tuned}, None, 500, 1))
    assert numbers["tuned.learning"] == 0.5
    assert numbers["tuned.forgetting"] == 0.25
    assert numbers["tuned.net"] == 0.25
    assert numbers["tuned.learning-text"] == pytest.approx(0.75)
    assert numbers["tuned.forgetting-text"] == pytest.approx(0.35)
    assert numbers["tuned.net-text"] == pytest.approx(0.4)


def test_distances_and_safety_take_no_part_in_forgetting() -> None:
    base = samples("arithmetic", [1] * 8) + samples("own_kl", [0] * 8) + samples("refused_harmful", [1] * 8)
    tuned = samples("arithmetic", [1] * 8) + samples("own_kl", [0.5] * 8) + samples("refused_harmful", [0] * 8)
    found = results.results({"base": base, "tuned": tuned}, None, 500, 1)
    assert list(found.scores) == ["accuracy"]
    forgetting = found.scores["accuracy"]["tuned"].forgetting
    assert forgetting is not None
    assert forgetting.measures == ("arithmetic",)
    assert "Safety: worse: refused, harmful prompts (1.000 to 0.000 rate)." in findings.findings(found)["tuned"]


def test_what_was_kept_of_what_was_forgotten() -> None:
    # domain-only loses 8 of 20, the other 2 of the same 20: three quarters of what was forgotten is avoided.
    base = samples("arithmetic", [1] * 20)
    alone = samples("arithmetic", [0] * 8 + [1] * 12)
    other = samples("arithmetic", [0] * 2 + [1] * 18)
    found = results.results({"base": base, "alone": alone, "other": other}, "alone", 2000, 1)
    kept = found.scores["accuracy"]["other"].avoided
    assert kept is not None
    assert kept.difference.value == pytest.approx(0.3)
    assert kept.share == pytest.approx(0.75)
    assert kept.share_low is not None
    assert kept.share_high is not None
    assert kept.share_low < 0.75 < kept.share_high
    assert found.scores["accuracy"]["alone"].avoided is None
    assert "75 % of what alone forgot" in findings.rehearsal_findings(found)["other"]


def test_no_share_of_a_forgetting_that_is_not_shown() -> None:
    base = samples("arithmetic", [1] * 20)
    alone = samples("arithmetic", [0] * 2 + [1] * 18)  # 2 of 20: McNemar's p is 0.5
    found = results.results({"base": base, "alone": alone, "other": base}, "alone", 500, 1)
    kept = found.scores["accuracy"]["other"].avoided
    assert kept is not None
    assert kept.share is None
    assert kept.difference.value == pytest.approx(0.1)
    assert "other.avoided.share" not in flat.summary(found)
    assert "no share, as alone is not shown to have forgotten anything" in findings.rehearsal_findings(found)["other"]


def test_the_papers_average_needs_all_four_and_prefers_the_leaderboard() -> None:
    four = {"leaderboard_gpqa": 0.5, "leaderboard_ifeval": 0.75, "leaderboard_math_hard": 0.25, "mmlu_pro": 1.0}
    base = [
        row for name, level in four.items() for row in samples(name, [1] * int(4 * level) + [0] * int(4 - 4 * level))
    ]
    found = results.results({"base": base, "tuned": base}, None, 500, 1)
    average = found.scores["accuracy"]["tuned"].paper
    assert average is not None
    assert average.base == pytest.approx(0.625)
    assert average.measures == ("mmlu_pro", "leaderboard_gpqa", "leaderboard_ifeval", "leaderboard_math_hard")
    both = base + samples("leaderboard_mmlu_pro", [0, 0, 0, 0])
    average = results.results({"base": both, "tuned": both}, None, 500, 1).scores["accuracy"]["tuned"].paper
    assert average is not None
    assert average.measures[0] == "leaderboard_mmlu_pro"
    three = [row for row in base if row["measure"] != "mmlu_pro"]
    assert results.results({"base": three, "tuned": three}, None, 500, 1).scores["accuracy"]["tuned"].paper is None


def test_seeds_are_told_apart_from_items() -> None:
    base = samples("arithmetic", [1] * 20)
    runs = [samples("arithmetic", [0] * lost + [1] * (20 - lost)) for lost in (4, 6, 8)]
    found = results.results(
        {"base": base, "tuned": runs[0]}, None, 500, 1, reseeded={("tuned", 18): runs[1], ("tuned", 19): runs[2]}
    )
    seeds = found.rows[0].cells["tuned"].seeds
    assert seeds is not None
    assert seeds.values == pytest.approx((-0.2, -0.3, -0.4))
    assert (seeds.mean, seeds.sd, seeds.n) == (pytest.approx(-0.3), pytest.approx(0.1), 3)
    numbers = flat.summary(found)
    assert numbers["tuned.arithmetic.diff"] == -0.2  # the main seed's, as ever
    assert numbers["tuned.forgetting.seeds.mean"] == pytest.approx(0.3)
    assert numbers["tuned.forgetting.seeds.low"] == pytest.approx(0.3 - 4.302653 * 0.1 / 3**0.5, abs=1e-6)
    assert numbers["tuned.forgetting.seeds.n"] == 3
    (changed,) = found.changes
    assert changed.lost_ids == ("0", "1", "2", "3")
    assert [(item.seeds, item.of) for item in changed.lost] == [(3, 3)] * 4


def test_no_difference_shown_is_said_of_scores_shares_and_seeds_that_cover_zero() -> None:
    base = samples("arithmetic", [1] * 20)
    alone, other = samples("arithmetic", [0] * 8 + [1] * 12), samples("arithmetic", [0] * 7 + [1] * 13)
    again = [samples("arithmetic", [0] * lost + [1] * (20 - lost)) for lost in (1, 0)]  # of `other`: 7, 1 and 0
    found = results.results(
        {"base": base, "alone": alone, "other": other}, "alone", 500, 1,
        reseeded={("other", 18): again[0], ("other", 19): again[1]},
    )  # fmt: skip
    by_model = found.scores["accuracy"]
    assert by_model["other"].forgetting.verdict == "worse"  # of its main seed
    lines = findings.score_table(by_model, found)
    first = next(i for i, line in enumerate(lines) if line[0] == "over 3 seeds")
    assert lines[first][2].startswith("+0.133 [-0.")
    assert lines[first + 1] == ["", "", "sd 0.189, no difference shown", ""]
    said = findings.score_sentences(found, "other")
    assert "(no difference shown)" not in said[0]
    assert "(sd 0.189, no difference shown)" in said[1]
    kept = findings.kept_table(by_model, found)
    assert kept[0][1].startswith("+0.050 [0.000, ")
    assert kept[1] == ["", "no difference shown", "", ""]
    assert "(no difference shown), 13 % of what alone forgot" in findings.rehearsal_findings(found)["other"]


def test_a_distance_between_variants_is_in_holms_family() -> None:
    names = ("own_kl", "own_text")
    base = [row for name in names for row in samples(name, [0.0] * 8)]
    alone = [row for name in names for row in samples(name, [1.0] * 8)]
    other = [row for name in names for row in samples(name, [0.5 + i / 100 for i in range(8)])]
    found = results.results({"base": base, "alone": alone, "other": other}, "alone", 500, 1)
    p = 2 / 2**8
    assert [row.cells["other"].holm for row in found.against_reference] == [pytest.approx(2 * p)] * 2
    to_base = {row.measure: row.cells["other"].holm for row in found.rows}
    assert to_base == {"own_text": pytest.approx(p), "own_kl": None}


def test_two_seeds_have_no_interval() -> None:
    base, tuned = samples("arithmetic", [1] * 20), samples("arithmetic", [0] * 6 + [1] * 14)
    found = results.results({"base": base, "tuned": tuned}, None, 500, 1, reseeded={("tuned", 18): base})
    seeds = found.rows[0].cells["tuned"].seeds
    assert seeds is not None
    assert seeds.n == 2
    assert seeds.sd is not None
    assert (seeds.low, seeds.high, seeds.verdict) == (None, None, results.NOT_SHOWN)


def test_a_further_seed_that_answered_other_items_is_named() -> None:
    base = samples("arithmetic", [1] * 8)
    with pytest.raises(UserError, match="tuned under seed 18"):
        results.results({"base": base, "tuned": base}, None, 500, 1, reseeded={("tuned", 18): base[1:]})


NOTES = [
    (([1] * 16), ([0] * 4 + [1] * 12), "exact p 0.13"),
    (([1] * 16), ([0] * 8 + [1] * 8), ""),  # p 0.008, and alone in its family
    (([1] * 5), ([0] * 4 + [1]), "fewer than 6 items"),
    (([1] * 16), ([1] * 16), ""),
]


@pytest.mark.parametrize(("before", "after", "note"), NOTES)
def test_a_note_says_why_there_is_no_verdict(before: list[float], after: list[float], note: str) -> None:
    found = compared(arithmetic=(before, after))
    assert findings.noted(found.rows[0], "tuned") == note
    lines = findings.table(found)
    assert (lines[-1][4] == f"({note})") == bool(note)


def test_a_verdict_that_holm_takes_back_says_so() -> None:
    lost = {name: ([1.0] * 16, [0.0] * 6 + [1.0] * 10) for name in ("arithmetic", "instructions_followed")}
    same = {name: ([1.0] * 16, [1.0] * 16) for name in ("gsm8k", "hellaswag", "ifbench")}
    found = compared(**lost, **same)  # p 0.03125 twice, of five
    row = next(row for row in found.rows if row.measure == "arithmetic")
    assert row.verdict("tuned") == "worse"
    assert row.cells["tuned"].holm == pytest.approx(5 * 0.03125)
    assert findings.noted(row, "tuned") == "Holm p 0.16"
    assert "Of 2 verdicts, 0 remain after Holm's adjustment for 5 measures." in findings.findings(found)["tuned"]


@pytest.mark.parametrize(
    ("p_value", "text"), [(0.0702, "p 0.07"), (0.0504, "p 0.050"), (0.0496, "p 0.05"), (0.0012, "p 0.001"),
                          (0.0002, "p < 0.001"), (1.0, "p 1.00")]
)  # fmt: skip
def test_a_p_value_is_not_rounded_across_the_line(p_value: float, text: str) -> None:
    assert findings.p_text(p_value) == text
