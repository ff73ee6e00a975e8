"""Paired comparison of two models on the same items: a bootstrap interval, an exact test, gained and lost.

Rows are those of data/samples/<variant>.parquet (`records.SAMPLES`). A measure is a weighted mean over its items: the
weight is the bytes or tokens behind an item, 1 for an accuracy. Everything is seeded; the order of rows doesn't matter.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from anamnesis.errors import UserError
from anamnesis.measures import ordered
from anamnesis.measures import spec as spec_of
from anamnesis.records import seed_of

CONFIDENCE = 0.95
ALPHA = 0.05
# With fewer items even "every item moved the same way" has a two-sided sign-test p of 2 ** (1 - n) > 0.05.
MIN_ITEMS = 6
MIN_SEEDS = 3  # an interval over two would be 12.7 standard errors wide to each side

Verdict = Literal["better", "worse", "no difference shown"]


@dataclass(frozen=True)
class Seeds:
    """What several training seeds gave, the main one first: `values` are what the one-seed number beside it is of."""

    values: tuple[float, ...]
    mean: float
    sd: float | None  # between seeds, n - 1 below; None for one seed
    low: float | None  # Student's t over seeds, 95 %; None with fewer than `MIN_SEEDS`
    high: float | None
    crossed_low: float | None  # seeds and items resampled, each by itself; None where there is no such interval
    crossed_high: float | None
    item_error: float | None  # standard error over the items of the mean over seeds
    verdict: Verdict  # by the t interval

    @property
    def n(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class Comparison:
    """One measure of a tuned model against base, on paired items; `difference` is tuned minus base."""

    measure: str
    base: float
    tuned: float
    difference: float
    low: float | None  # the 95 % interval of the difference; None with fewer than two items or where none changed
    high: float | None
    n: int
    gained: int  # items on which tuned does better than base, whichever way the measure runs
    lost: int
    p_value: float  # McNemar's exact test where an item is right or wrong, a sign-flip test elsewhere
    verdict: Verdict
    holm: float | None = None  # `p_value` adjusted for the other measures of the model (Holm 1979)
    seeds: Seeds | None = None  # of the difference; None for a model trained once


def measures_in(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The measures that have rows, in the order of every table."""
    return ordered(row["measure"] for row in rows)


def weighted_mean(values: np.ndarray, weights: np.ndarray, axis: int = -1) -> Any:
    """Sum of value x weight over sum of weights, along `axis`."""
    return (values * weights).sum(axis=axis) / weights.sum(axis=axis)


def bootstrap_interval(
    differences: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The percentile bootstrap interval of a weighted mean: items are resampled with their weights.

    Percentile and not BCa: on synthetic sets of our sizes both cover equally often, and BCa is undefined where all
    differences agree. (None, None) with fewer than two items.
    """
    if len(differences) < 2:
        return None, None
    if np.ptp(differences) == 0:  # no spread to resample; scipy would warn
        return float(differences[0]), float(differences[0])
    from scipy.stats import bootstrap

    interval = bootstrap(
        (differences, weights),
        weighted_mean,
        paired=True,
        vectorized=True,
        n_resamples=resamples,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: the discordant pairs are fair coin tosses (McNemar 1947; binomial form)."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip(moved: np.ndarray, seed: int) -> float:
    """Two-sided permutation test of paired differences: under no effect each has either sign (Fisher 1935).

    `moved` holds difference x weight of each item. Exact up to 13 items, 9,999 seeded draws beyond.
    """
    if len(moved) < 2 or not moved.any():
        return 1.0
    from scipy.stats import permutation_test

    tested = permutation_test(
        (moved, np.zeros_like(moved)),
        lambda x, y, axis: (x - y).sum(axis=axis),
        permutation_type="samples",
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return float(tested.pvalue)


def verdict(difference: float, low: float | None, high: float | None, higher_is_better: bool) -> Verdict:
    """Better or worse where the interval leaves zero out, else no difference shown."""
    if low is None or high is None or low <= 0 <= high:
        return "no difference shown"
    return "better" if (difference > 0) == higher_is_better else "worse"


def compare(
    base: Sequence[dict[str, Any]], tuned: Sequence[dict[str, Any]], measure: str, resamples: int, seed: int
) -> Comparison:
    """Compare two models' rows on one measure.

    A verdict other than "no difference shown" needs an interval without zero and p <= 0.05 in an exact test as well:
    McNemar's for a right-or-wrong measure, a sign-flip test for the others. The interval alone is too narrow for a few
    items. Where no item changed there is no interval: it would claim to know the next item too.
    Raises `UserError` where the two did not answer exactly the same items.
    """
    before, after = (_items(rows, measure) for rows in (base, tuned))
    if before.keys() != after.keys() or not before:
        raise UserError(
            f"{measure}: the items do not pair ({len(before.keys() - after.keys())} only in base, "
            f"{len(after.keys() - before.keys())} only in the variant, {len(before.keys() & after.keys())} in both); "
            "run `dvc repro` so that both are measured on the same items"
        )
    order = sorted(before)
    if reweighted := [item for item in order if before[item]["weight"] != after[item]["weight"]]:
        raise UserError(
            f"{measure}: item {reweighted[0]} weighs {before[reweighted[0]]['weight']:g} in base and "
            f"{after[reweighted[0]]['weight']:g} in the variant; run `dvc repro` to measure both again"
        )
    spec = spec_of(measure)
    x, y = (np.array([rows[item]["value"] for item in order], float) for rows in (before, after))
    weights = np.array([before[item]["weight"] for item in order], float)
    gain = (y - x) if spec.higher_is_better else (x - y)
    gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
    base_mean, tuned_mean = float(weighted_mean(x, weights)), float(weighted_mean(y, weights))
    low, high = bootstrap_interval(y - x, weights, resamples, seed_of("bootstrap", seed, measure))
    if not gained and not lost:
        low = high = None
    draws = seed_of("sign flip", seed, measure)
    p_value = mcnemar(gained, lost) if spec.binary else sign_flip((y - x) * weights, draws)
    decided = len(order) >= MIN_ITEMS and p_value <= ALPHA
    difference = tuned_mean - base_mean
    return Comparison(
        measure=measure,
        base=base_mean,
        tuned=tuned_mean,
        difference=difference,
        low=low,
        high=high,
        n=len(order),
        gained=gained,
        lost=lost,
        p_value=p_value,
        verdict=verdict(difference, low, high, spec.higher_is_better) if decided else "no difference shown",
    )


def _items(rows: Sequence[dict[str, Any]], measure: str) -> dict[str, dict[str, Any]]:
    """A measure's rows by item id. Raises `UserError` where an id comes twice."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["measure"] == measure:
            if row["item_id"] in found:
                raise UserError(f"{measure}: item {row['item_id']} is there twice; run `dvc repro` to measure again")
            found[row["item_id"]] = row
    return found
