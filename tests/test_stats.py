"""Paired comparison: published and hand-computed values, coverage on synthetic data, and what must be an error."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from anamnesis import pairing, stats
from anamnesis.errors import UserError
from anamnesis.measures import MEASURES

RESAMPLES = 500


def rows(measure, values, weights=None):
    weights = weights or [1.0] * len(values)
    return [
        {"measure": measure, "item_id": f"i{index:04d}", "value": float(value), "weight": float(weight), "output": None}
        for index, (value, weight) in enumerate(zip(values, weights, strict=True))
    ]


# gained, lost -> exact two-sided p.
# 1, 5: 2 * (C(6,0) + C(6,1)) / 2**6 = 2 * 7 / 64 = 0.21875
# 2, 10: 2 * (C(12,0) + C(12,1) + C(12,2)) / 2**12 = 2 * 79 / 4096 = 0.03857421875
# 0, 6: 2 / 2**6 = 0.03125; equal counts: the whole distribution, 1; no discordant pair: 1
EXPECTED_P = [
    (1, 5, 0.21875),
    (5, 1, 0.21875),
    (2, 10, 0.03857421875),
    (0, 6, 0.03125),
    (0, 5, 0.0625),
    (4, 4, 1.0),
    (0, 0, 1.0),
]


@pytest.mark.parametrize(("gained", "lost", "p"), EXPECTED_P)
def test_mcnemar_by_hand(gained, lost, p):
    assert stats.mcnemar(gained, lost) == pytest.approx(p, abs=1e-12)


def test_mcnemar_agrees_with_the_chi_square_form_in_a_large_table():
    # 86 and 150 discordant pairs (the approval-rating table of Agresti, Categorical Data Analysis): the textbook's
    # uncorrected statistic is (86 - 150)**2 / (86 + 150) = 17.36, p = 3e-5; the exact test agrees to a factor of 2.
    asymptotic = scipy_stats.chi2.sf((86 - 150) ** 2 / (86 + 150), 1)
    assert asymptotic / 2 < stats.mcnemar(86, 150) < asymptotic * 2


EXPECTED_VERDICT = [
    (0.1, 0.02, 0.2, True, "better"),
    (-0.1, -0.2, -0.02, True, "worse"),
    (0.1, 0.02, 0.2, False, "worse"),
    (-0.1, -0.2, -0.02, False, "better"),
    (0.1, -0.01, 0.2, True, "no difference shown"),
    (0.1, 0.0, 0.2, True, "no difference shown"),
    (0.0, 0.0, 0.0, False, "no difference shown"),
    (0.3, None, None, True, "no difference shown"),
]


@pytest.mark.parametrize(("difference", "low", "high", "higher", "word"), EXPECTED_VERDICT)
def test_verdict(difference, low, high, higher, word):
    assert stats.verdict(difference, low, high, higher) == word


def test_accuracy_counts_gains_and_losses():
    base, tuned = [1] * 10 + [0] * 10, [0] * 8 + [1] * 2 + [0] * 9 + [1]
    result = stats.compare(rows("arithmetic", base), rows("arithmetic", tuned), "arithmetic", RESAMPLES, 1)
    assert (result.base, result.tuned, result.n) == (0.5, 0.15, 20)
    assert (result.gained, result.lost) == (1, 8)
    assert result.difference == pytest.approx(-0.35)
    assert result.p_value == pytest.approx(2 * (1 + 9) / 2**9)
    assert result.low < -0.35 < result.high < 0
    assert result.verdict == "worse"


def test_weights_are_bytes_not_items():
    # 0.5 bits a byte less over 900 bytes, 1.0 more over 100: (-0.5 * 900 + 1.0 * 100) / 1000 = -0.35
    base, tuned = rows("general_text", [2.0, 1.0], [900, 100]), rows("general_text", [1.5, 2.0], [900, 100])
    result = stats.compare(base, tuned, "general_text", RESAMPLES, 1)
    assert result.base == pytest.approx(1.9)
    assert result.difference == pytest.approx(-0.35)
    assert (result.gained, result.lost, result.p_value) == (1, 1, 1.0)


def test_fewer_bits_are_better_and_more_are_worse():
    generator = np.random.default_rng(5)
    before = generator.normal(1.5, 0.3, 30)
    shift = generator.normal(0.2, 0.05, 30)
    base = rows("own_text", before)
    assert stats.compare(base, rows("own_text", before + shift), "own_text", RESAMPLES, 1).verdict == "worse"
    assert stats.compare(base, rows("own_text", before - shift), "own_text", RESAMPLES, 1).verdict == "better"


def test_four_lost_of_sixteen_is_no_verdict():
    # The bootstrap interval leaves zero out here, but McNemar's p is 2 / 2**4 = 0.125: four coin tosses decide nothing.
    base, tuned = [1] * 16, [0] * 4 + [1] * 12
    result = stats.compare(rows("arithmetic", base), rows("arithmetic", tuned), "arithmetic", 2000, 1)
    assert result.high < 0
    assert result.p_value == 0.125
    assert result.verdict == "no difference shown"


@pytest.mark.parametrize(("n", "word"), [(stats.MIN_ITEMS - 1, "no difference shown"), (stats.MIN_ITEMS, "worse")])
def test_a_handful_of_items_decides_nothing(n, word):
    base, tuned = rows("general_text", [1.0] * n), rows("general_text", [1.5] * n)
    assert stats.compare(base, tuned, "general_text", RESAMPLES, 1).verdict == word


def test_one_item_has_no_interval():
    result = stats.compare(rows("own_text", [1.0]), rows("own_text", [2.0]), "own_text", RESAMPLES, 1)
    assert (result.low, result.high, result.n, result.verdict) == (None, None, 1, "no difference shown")


@pytest.mark.parametrize("measure", MEASURES)
def test_the_same_model_differs_nowhere(measure):
    values = [0.0, 1.0] * 8
    result = stats.compare(rows(measure, values), rows(measure, values), measure, RESAMPLES, 1)
    assert (result.difference, result.low, result.high, result.p_value) == (0.0, None, None, 1.0)
    assert (result.gained, result.lost, result.verdict) == (0, 0, "no difference shown")


def test_order_of_rows_and_seed():
    generator = np.random.default_rng(2)
    base, tuned = rows("own_text", generator.normal(1, 0.2, 25)), rows("own_text", generator.normal(1, 0.2, 25))
    once = stats.compare(base, tuned, "own_text", RESAMPLES, 7)
    assert stats.compare(base[::-1], tuned[5:] + tuned[:5], "own_text", RESAMPLES, 7) == once
    assert stats.compare(base, tuned, "own_text", RESAMPLES, 8) != once


def test_interval_agrees_with_a_plain_loop():
    generator = np.random.default_rng(3)
    differences, weights = generator.normal(0.1, 0.5, 40), generator.integers(50, 400, 40).astype(float)
    low, high = stats.bootstrap_interval(differences, weights, 4000, 11)
    means = []
    for _ in range(4000):
        picked = generator.integers(0, 40, 40)
        means.append((differences[picked] * weights[picked]).sum() / weights[picked].sum())
    assert [low, high] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=0.02)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 300 synthetic experiments of 40 weighted items; the interval says 95 %. Binomial noise at 300 is 1.3 points (one
    # standard deviation) and the percentile method is a little narrow at 40: 0.90..0.98 holds for a sound interval and
    # fails for one that ignores the weights' spread, the pairing or a tail.
    covered = 0
    for experiment in range(300):
        generator = np.random.default_rng(experiment)
        differences, weights = generator.normal(0.05, 0.1, 40), generator.integers(80, 400, 40).astype(float)
        low, high = stats.bootstrap_interval(differences, weights, 400, experiment)
        covered += low <= 0.05 <= high
    assert 0.90 <= covered / 300 <= 0.98


@pytest.mark.parametrize("n", [6, 12, 24, 40])
def test_false_verdicts_are_rare_for_bits_per_byte(n):
    # No true difference, weighted items: the percentile interval alone leaves zero out in up to 15 % at n = 6. Of 300
    # experiments at a true 5 %, 24 or more have a chance of 2 %; the seeds are fixed.
    decided = 0
    for experiment in range(300):
        generator = np.random.default_rng(experiment)
        weights = generator.integers(80, 400, n).astype(float).tolist()
        base = rows("own_text", generator.normal(1.5, 0.3, n), weights)
        tuned = rows("own_text", [row["value"] + generator.normal(0, 0.1) for row in base], weights)
        decided += stats.compare(base, tuned, "own_text", 300, experiment).verdict != "no difference shown"
    assert decided < 24


def test_sign_flip_by_hand():
    # All of six moved one way: 2 of the 64 sign patterns are as far out. 3, 2, -1 sum to 4: of the eight patterns,
    # 6, 4, -4 and -6 are at least as far out.
    assert stats.sign_flip(np.array([1.0, 2, 3, 4, 5, 6]), 1) == pytest.approx(2 / 64)
    assert stats.sign_flip(np.array([3.0, 2, -1]), 1) == pytest.approx(4 / 8)


@pytest.mark.parametrize("kind", ["all different", "one size"])
def test_sign_flip_agrees_with_scipys_draws(kind: str) -> None:
    generator = np.random.default_rng(12)
    for shift in (0.0, 0.15, 0.3):
        moved = generator.normal(shift, 0.5, 60) if kind == "all different" else generator.choice([-1, 1, 0], 60)
        moved = moved if kind == "all different" else np.where(generator.random(60) < shift, 1, moved).astype(float)
        theirs = scipy_stats.permutation_test(
            (moved, np.zeros(60)),
            lambda x, y, axis: (x - y).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
            rng=np.random.default_rng(3),
        ).pvalue
        assert stats.sign_flip(moved, 4) == pytest.approx(theirs, abs=0.025)


def test_false_verdicts_are_rare_for_accuracies():
    # No true difference: each item flips either way with equal chance. McNemar's exact test keeps "better" and "worse"
    # together at or below 5 %.
    decided = 0
    for experiment in range(200):
        generator = np.random.default_rng(experiment)
        base, tuned = generator.integers(0, 2, 24), generator.integers(0, 2, 24)
        result = stats.compare(rows("arithmetic", base), rows("arithmetic", tuned), "arithmetic", 200, experiment)
        decided += result.verdict != "no difference shown"
    assert decided / 200 <= 0.07


EXPECTED_ERRORS = [
    ("other items", lambda base: [{**row, "item_id": "x" + row["item_id"]} for row in base], "do not pair"),
    ("an item less", lambda base: base[:-1], "1 only in base"),
    ("no items", lambda base: [], "do not pair"),
    ("an item twice", lambda base: [*base, base[0]], "twice"),
    ("another weight", lambda base: [{**base[0], "weight": 2.0}, *base[1:]], "weighs 1 in base and 2"),
]


@pytest.mark.parametrize(("what", "change", "says"), EXPECTED_ERRORS, ids=[case[0] for case in EXPECTED_ERRORS])
def test_what_does_not_pair_is_an_error(what, change, says):
    base = rows("arithmetic", [1, 0, 1, 1])
    with pytest.raises(UserError, match=says):
        stats.compare(base, change(base), "arithmetic", RESAMPLES, 1)


def test_measures_in_keeps_the_table_order():
    found = stats.measures_in(rows("own_kl", [0.1]) + rows("domain_choice", [1.0]))
    assert found == ["domain_choice", "own_kl"]


# ------------------------------------------------------------------------------------------- against scipy and by hand


def test_the_interval_is_scipys() -> None:
    generator = np.random.default_rng(3)
    differences, weights = generator.normal(0.1, 0.5, 37), generator.integers(50, 400, 37).astype(float)
    theirs = scipy_stats.bootstrap(
        (differences, weights),
        stats.weighted_mean,
        paired=True,
        vectorized=True,
        n_resamples=700,
        method="percentile",
        rng=np.random.default_rng(11),
    ).confidence_interval
    assert stats.bootstrap_interval(differences, weights, 700, 11) == pytest.approx(tuple(theirs), abs=1e-12)


def test_every_model_has_the_same_resamples_however_they_are_split(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(4)
    differences, weights = generator.normal(size=(3, 50)), generator.integers(1, 9, 50).astype(float)
    together = stats.replicates(differences, weights, 200, 5)
    with monkeypatch.context() as patch:
        patch.setattr(stats, "AT_ONCE", 50 * 7)  # 29 parts of 7 resamples, the last one of 4
        assert stats.replicates(differences, weights, 200, 5) == pytest.approx(together)
    alone = [stats.replicates(row[None], weights, 200, 5)[0] for row in differences]
    assert together == pytest.approx(np.array(alone))
    assert together[0] - together[1] == pytest.approx(
        stats.replicates((differences[0] - differences[1])[None], weights, 200, 5)[0]
    )


# Unadjusted and adjusted. The first is the example of Wikipedia's article on the method: with alpha 0.05 the first and
# the fourth hypothesis are rejected. 4 x 0.005 = 0.02, 3 x 0.01 = 0.03, 2 x 0.03 = 0.06, and 0.04 may not be below it.
EXPECTED_HOLM = [
    ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
    ([0.5, 0.6], [1.0, 1.0]),
    ([0.02], [0.02]),
    ([], []),
]


@pytest.mark.parametrize(("given", "expected"), EXPECTED_HOLM)
def test_holm_by_hand(given: list[float], expected: list[float]) -> None:
    assert stats.holm(given) == pytest.approx(expected)


def test_holm_is_the_closed_procedure_of_bonferroni() -> None:
    # Another way to the same numbers: a hypothesis is rejected where every intersection with it is, each by Bonferroni;
    # its adjusted p-value is the largest of min(1, size x smallest p) over those intersections.
    given = np.random.default_rng(6).uniform(0, 0.2, 6)
    subsets = [[i for i in range(6) if mask >> i & 1] for mask in range(1, 64)]
    closed = [max(min(1.0, len(s) * min(given[s])) for s in subsets if i in s) for i in range(6)]
    assert stats.holm(list(given)) == pytest.approx(closed)


def test_seeds_interval_is_students() -> None:
    values = [0.031, 0.012, 0.044, 0.02]
    theirs = scipy_stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = stats.across_seeds(values, None, 1)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert (found.mean, found.sd, found.n) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)), 4)
    assert found.verdict == "better"
    assert stats.across_seeds(values, None, 1, higher_is_better=False).verdict == "worse"


def test_one_seed_has_no_spread_and_equal_seeds_no_interval() -> None:
    assert stats.across_seeds([0.1], None, 1) is None
    same = stats.across_seeds([0.1, 0.1, 0.1], None, 1)
    assert (same.low, same.sd, same.verdict) == (None, 0.0, "no difference shown")


def test_the_crossed_interval_knows_of_seeds_and_items() -> None:
    # Items add a standard error of 0.1 / sqrt(100) to a mean over seeds, seeds 0.05 / sqrt(8): the crossed interval is
    # about 2 x 1.96 x sqrt(0.01**2 + 0.0177**2 x 7 / 8) = 0.076 wide (a bootstrap of 8 loses an eighth of a variance).
    widths, errors = [], []
    for experiment in range(40):
        generator = np.random.default_rng(experiment)
        items = generator.normal(0, 0.1, 100)
        seeds = generator.normal(0, 0.05, 8)[:, None] + items
        found = stats.replicates(seeds, np.ones(100), 500, experiment)
        told = stats.across_seeds(seeds.mean(axis=1), found, experiment)
        widths.append(told.crossed_high - told.crossed_low)
        errors.append(told.item_error)
    assert np.mean(widths) == pytest.approx(0.076, rel=0.1)
    assert np.mean(errors) == pytest.approx(0.01, rel=0.05)


def test_fieller_ends_are_where_the_test_turns() -> None:
    generator = np.random.default_rng(8)
    found = generator.multivariate_normal([2.0, 4.0], [[0.3, 0.1], [0.1, 0.4]], 4000)
    above, below = found.mean(axis=0)
    variance = np.cov(found.T)
    for ratio in stats.fieller(above, below, found[:, 0], found[:, 1]):
        error = np.sqrt(variance[0, 0] - 2 * ratio * variance[0, 1] + ratio**2 * variance[1, 1])
        assert abs(above - ratio * below) / error == pytest.approx(1.959964, abs=1e-5)


def test_fieller_covers_the_ratio_and_gives_up_near_zero() -> None:
    covered = 0
    for experiment in range(300):
        generator = np.random.default_rng(experiment)
        below = generator.normal(0.4, 1.0, 60)
        above = 0.5 * below + generator.normal(0, 0.3, 60)
        found = stats.replicates(np.array([above, below]), np.ones(60), 300, experiment)
        ends = stats.fieller(above.mean(), below.mean(), *found)
        covered += ends is None or ends[0] <= 0.5 <= ends[1]
    assert 0.91 <= covered / 300 <= 0.99
    flat = np.random.default_rng(1).normal(0, 1, (2, 500))
    assert stats.fieller(1.0, 0.5, flat[0], flat[1]) is None


def test_a_stratified_average_is_scipys_of_unpaired_samples() -> None:
    # Two measures of other sizes: each is resampled by itself, and their means are averaged.
    generator = np.random.default_rng(9)
    one, two = generator.normal(0.2, 0.5, 60), generator.normal(-0.1, 0.5, 25)
    theirs = scipy_stats.bootstrap(
        (one, two),
        lambda x, y, axis: (x.mean(axis=axis) + y.mean(axis=axis)) / 2,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    base = rows("arithmetic", [0] * 60) + rows("gsm8k", [0] * 25)
    tuned = rows("arithmetic", one) + rows("gsm8k", two)
    measured = pairing.pair({"base": base, "tuned": tuned}, {}, 20000, 1)
    found = pairing.contrast([(part, 0.5) for part in measured], pairing.Run("tuned"))
    assert found.value == pytest.approx((one.mean() + two.mean()) / 2)
    assert found.interval() == pytest.approx(tuple(theirs), abs=0.006)
    assert found.n == 85


def test_false_verdicts_are_rare_for_an_average() -> None:
    # No true difference, two measures of 20 and 12 items: "better" and "worse" together in at most 24 of 300, as above.
    decided = 0
    for experiment in range(300):
        generator = np.random.default_rng(experiment)
        base, tuned = [], []
        for name, n in (("own_text", 20), ("general_text", 12)):
            before = generator.normal(1.5, 0.3, n)
            base += rows(name, before)
            tuned += rows(name, before + generator.normal(0, 0.1, n))
        measured = pairing.pair({"base": base, "tuned": tuned}, {}, 300, experiment)
        found = pairing.contrast([(part, 0.5) for part in measured], pairing.Run("tuned"))
        word = stats.decide(found.value, *found.interval(), found.n, found.p_value(experiment), True)
        decided += word != "no difference shown"
    assert decided < 24
