"""Paired comparison of models on the same items: bootstrap intervals, exact tests, gained and lost, training seeds.

Rows are those of data/samples/<variant>.parquet (`records.SAMPLES`). A measure is a weighted mean over its items: the
weight is the bytes or tokens behind an item, 1 for an accuracy. Everything is seeded; the order of rows doesn't matter.
"""

from collections.abc import Mapping, Sequence
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
EXACT = 13  # items whose sign patterns are all looked at: 8,192
FLIPS = 9999  # seeded patterns of more items
AT_ONCE = 4_000_000  # drawn items held in memory: 32 MB of counts
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


def replicates(differences: np.ndarray, weights: np.ndarray, resamples: int, seed: int) -> np.ndarray | None:
    """Weighted means of `differences` ([models, items]) over resampled items: [models, resamples].

    Items are resampled with their weights, and each resample is the same for all models: differences between two rows
    of the result are those of a paired bootstrap. None with fewer than two items.
    """
    items = len(weights)
    if items < 2:
        return None
    rng = np.random.default_rng(seed)
    weighted = differences * weights
    found = np.empty((len(differences), resamples))
    step = max(1, AT_ONCE // items)  # resamples at a time
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        picks = rng.integers(0, items, (size, items)) + items * np.arange(size)[:, None]
        counts = np.bincount(picks.ravel(), minlength=size * items).reshape(size, items)
        found[:, start : start + size] = (weighted @ counts.T) / (counts @ weights)
    # No spread to resample: rounding must not make one.
    still = np.ptp(differences, axis=1) == 0
    found[still] = differences[still, :1]
    return found


def percentiles(found: np.ndarray) -> tuple[float, float]:
    """The percentile interval of bootstrap replicates.

    Percentile and not BCa: on synthetic sets of our sizes both cover equally often, and BCa is undefined where all
    differences agree.
    """
    low, high = np.percentile(found, [50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)])
    return float(low), float(high)


def bootstrap_interval(
    differences: np.ndarray, weights: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The percentile bootstrap interval of a weighted mean. (None, None) with fewer than two items."""
    found = replicates(differences[None], weights, resamples, seed)
    return (None, None) if found is None else percentiles(found[0])


def mcnemar(gained: int, lost: int) -> float:
    """Exact two-sided McNemar test: the discordant pairs are fair coin tosses (McNemar 1947; binomial form)."""
    from scipy.stats import binomtest

    return float(binomtest(gained, gained + lost, 0.5).pvalue) if gained + lost else 1.0


def sign_flip(moved: np.ndarray, seed: int) -> float:
    """Two-sided permutation test of paired differences: under no effect each has either sign (Fisher 1935).

    `moved` holds difference x weight of each item; one that did not move has no sign to flip. Exact up to 13 items that
    moved, `FLIPS` seeded draws beyond, counted as scipy's permutation_test does.
    """
    moved = moved[moved != 0]
    if len(moved) < 2:
        return 1.0
    if len(moved) <= EXACT:
        from scipy.stats import permutation_test

        tested = permutation_test(
            (moved, np.zeros_like(moved)),
            lambda x, y, axis: (x - y).sum(axis=axis),
            permutation_type="samples",
            vectorized=True,
        )
        return float(tested.pvalue)
    # Items that moved equally far are one binomial draw: thousands of right-or-wrong items cost as much as a few.
    sizes, counts = np.unique(np.abs(moved), return_counts=True)
    rng = np.random.default_rng(seed)
    drawn = np.zeros(FLIPS)
    for start in range(0, len(sizes), 400):
        part = slice(start, start + 400)
        drawn += (2 * rng.binomial(counts[part], 0.5, (FLIPS, len(counts[part]))) - counts[part]) @ sizes[part]
    observed, slack = moved.sum(), 1e-9 * sizes @ counts
    tails = [(drawn <= observed + slack).sum(), (drawn >= observed - slack).sum()]
    return float(min(1.0, 2 * (min(tails) + 1) / (FLIPS + 1)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for one another, in the same order: the chance of one false finding or more stays at ALPHA.

    The smallest is multiplied by their number, the next by one less, and none may be below the one before it (Holm
    1979, "A simple sequentially rejective multiple test procedure").
    """
    adjusted = [0.0] * len(p_values)
    least = 0.0
    for place, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        least = max(least, min(1.0, p_values[i] * (len(p_values) - place)))
        adjusted[i] = least
    return adjusted


def verdict(difference: float, low: float | None, high: float | None, higher_is_better: bool) -> Verdict:
    """Better or worse where the interval leaves zero out, else no difference shown."""
    if low is None or high is None or low <= 0 <= high:
        return "no difference shown"
    return "better" if (difference > 0) == higher_is_better else "worse"


def decide(
    difference: float, low: float | None, high: float | None, n: int, p_value: float, higher_is_better: bool
) -> Verdict:
    """`verdict`, where there are `MIN_ITEMS` items and the exact test agrees with the interval."""
    decided = n >= MIN_ITEMS and p_value <= ALPHA
    return verdict(difference, low, high, higher_is_better) if decided else "no difference shown"


def across_seeds(
    values: Sequence[float], found: np.ndarray | None, seed: int, higher_is_better: bool = True
) -> Seeds | None:
    """What several training seeds gave; None for fewer than two.

    `values` holds a difference of each seed, `found` its bootstrap replicates over items ([seeds, resamples], every
    resample the same items for all seeds). The crossed interval resamples seeds as well as items (the pigeonhole
    bootstrap, Owen 2007): every seed answers the same items, so neither is nested in the other.
    """
    if len(values) < 2:
        return None
    from scipy.stats import t

    mean, sd = float(np.mean(values)), float(np.std(values, ddof=1))
    sd = 0.0 if np.ptp(values) < 1e-12 else sd  # rounding is no spread
    low = high = crossed_low = crossed_high = error = None
    if len(values) >= MIN_SEEDS and sd > 0:  # without any spread the interval would claim to know the next seed
        low, high = map(float, t.interval(CONFIDENCE, len(values) - 1, mean, sd / len(values) ** 0.5))
    if found is not None and np.ptp(found) > 0:
        rng = np.random.default_rng(seed)
        picks = rng.integers(0, len(values), (len(values), found.shape[1]))
        crossed_low, crossed_high = percentiles(np.take_along_axis(found, picks, axis=0).mean(axis=0))
        error = float(found.mean(axis=0).std(ddof=1))
    return Seeds(
        values=tuple(map(float, values)),
        mean=mean,
        sd=sd,
        low=low,
        high=high,
        crossed_low=crossed_low,
        crossed_high=crossed_high,
        item_error=error,
        verdict=verdict(mean, low, high, higher_is_better),
    )


def fieller(above: float, below: float, found_above: np.ndarray, found_below: np.ndarray) -> tuple[float, float] | None:
    """The 95 % interval of a ratio `above / below`, from bootstrap replicates of both (Fieller 1954).

    It holds every ratio r for which above - r x below lies within 1.96 standard errors of zero. None where no such
    interval is finite: where the denominator lies within 1.96 standard errors of zero.
    """
    from scipy.stats import norm

    z = float(norm.ppf(0.5 + CONFIDENCE / 2))
    (a, ab), (_, b) = z * z * np.cov(found_above, found_below)
    denominator = below * below - b
    if denominator <= 0:
        return None
    middle = above * below - ab
    reach = max(0.0, middle * middle - denominator * (above * above - a)) ** 0.5
    return float((middle - reach) / denominator), float((middle + reach) / denominator)


def compare(
    base: Sequence[dict[str, Any]], tuned: Sequence[dict[str, Any]], measure: str, resamples: int, seed: int
) -> Comparison:
    """Compare two models' rows on one measure.

    A verdict other than "no difference shown" needs an interval without zero and p <= 0.05 in an exact test as well:
    McNemar's for a right-or-wrong measure, a sign-flip test for the others. The interval alone is too narrow for a few
    items. Where no item changed there is no interval: it would claim to know the next item too.
    Raises `UserError` where the two did not answer exactly the same items.
    """
    _, (x, y), weights = paired(measure, {"base": base, "the variant": tuned})
    found = replicates((y - x)[None], weights, resamples, seed_of("bootstrap", seed, measure))
    return comparison(measure, x, y, weights, None if found is None else found[0], seed)


def comparison(
    measure: str, x: np.ndarray, y: np.ndarray, weights: np.ndarray, found: np.ndarray | None, seed: int
) -> Comparison:
    """What `compare` says, from values on the same items and the replicates of their mean difference."""
    spec = spec_of(measure)
    gain = (y - x) if spec.higher_is_better else (x - y)
    gained, lost = int((gain > 0).sum()), int((gain < 0).sum())
    base_mean, tuned_mean = float(weighted_mean(x, weights)), float(weighted_mean(y, weights))
    low, high = (None, None) if found is None or not gained + lost else percentiles(found)
    draws = seed_of("sign flip", seed, measure)
    p_value = mcnemar(gained, lost) if spec.binary else sign_flip((y - x) * weights, draws)
    difference = tuned_mean - base_mean
    return Comparison(
        measure=measure,
        base=base_mean,
        tuned=tuned_mean,
        difference=difference,
        low=low,
        high=high,
        n=len(x),
        gained=gained,
        lost=lost,
        p_value=p_value,
        verdict=decide(difference, low, high, len(x), p_value, spec.higher_is_better),
    )


def paired(
    measure: str, answered: Mapping[str, Sequence[dict[str, Any]]]
) -> tuple[list[str], list[np.ndarray], np.ndarray]:
    """Items in order, every model's values on them, and their weights. `answered` has base first.

    Raises `UserError` where two did not answer exactly the same items, or an item has another weight.
    """
    base, *others = answered
    before = _items(answered[base], measure)
    order = sorted(before)
    values = [np.array([before[item]["value"] for item in order], float)]
    for name in others:
        after = _items(answered[name], measure)
        if before.keys() != after.keys() or not before:
            raise UserError(
                f"{measure}: the items do not pair ({len(before.keys() - after.keys())} only in {base}, "
                f"{len(after.keys() - before.keys())} only in {name}, {len(before.keys() & after.keys())} in both); "
                "run `dvc repro` so that both are measured on the same items"
            )
        if reweighted := [item for item in order if before[item]["weight"] != after[item]["weight"]]:
            raise UserError(
                f"{measure}: item {reweighted[0]} weighs {before[reweighted[0]]['weight']:g} in {base} and "
                f"{after[reweighted[0]]['weight']:g} in {name}; run `dvc repro` to measure both again"
            )
        values.append(np.array([after[item]["value"] for item in order], float))
    return order, values, np.array([before[item]["weight"] for item in order], float)


def _items(rows: Sequence[dict[str, Any]], measure: str) -> dict[str, dict[str, Any]]:
    """A measure's rows by item id. Raises `UserError` where an id comes twice."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["measure"] == measure:
            if row["item_id"] in found:
                raise UserError(f"{measure}: item {row['item_id']} is there twice; run `dvc repro` to measure again")
            found[row["item_id"]] = row
    return found
