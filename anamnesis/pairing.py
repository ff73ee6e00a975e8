"""Every model's values on the items of one measure, paired with base: what all numbers of the report are made from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from anamnesis.measures import Measure, ordered, spec
from anamnesis.records import seed_of
from anamnesis.stats import (
    Comparison,
    Seeds,
    across_seeds,
    comparison,
    holm,
    paired,
    percentiles,
    replicates,
    sign_flip,
    weighted_mean,
)

Rows = Sequence[dict[str, Any]]
# A distance from base is 0 for base itself and above 0 after any training: "worse" would be a foregone conclusion.
DISTANCES = {"own_kl"}
UNSORTED = "other"  # items without a category in a measure that has some


@dataclass(frozen=True)
class Run:
    """One trained model: a variant or an interpolation under the main seed, or a variant under a further one."""

    model: str
    seed: int | None = None  # None: the main one

    def __str__(self) -> str:
        return self.model if self.seed is None else f"{self.model} under seed {self.seed}"


@dataclass(frozen=True)
class Paired:
    """One measure. `values` and `found` have a row for each of `runs`; items are in the order of `ids`."""

    measure: str
    ids: list[str]
    rows: dict[str, dict[str, Any]]  # of base, by item
    weights: np.ndarray
    base: np.ndarray
    runs: list[Run]
    values: np.ndarray
    found: np.ndarray | None  # replicates of tuned minus base ([runs, resamples]); None with fewer than two items
    seed: int

    @property
    def spec(self) -> Measure:
        return spec(self.measure)

    @property
    def sign(self) -> int:
        """What turns a difference into a gain."""
        return 1 if self.spec.higher_is_better else -1

    @property
    def base_mean(self) -> float:
        return float(weighted_mean(self.base, self.weights))

    def mean(self, model: str) -> float:
        return float(weighted_mean(self.values[self.place(Run(model))], self.weights))

    def place(self, run: Run) -> int:
        return self.runs.index(run)

    def seeds(self, model: str) -> list[int]:
        """The places of a model's runs, the main seed's first."""
        return [i for i, run in enumerate(self.runs) if run.model == model]

    def difference(self, place: int) -> float:
        return float(weighted_mean(self.values[place] - self.base, self.weights))

    def comparison(self, model: str, against: str | None = None) -> Comparison:
        """A model against base, or against another model: `Comparison.seeds` where it was trained several times."""
        place = self.place(Run(model))
        if against is None:
            before, found = self.base, None if self.found is None else self.found[place]
        else:
            other = self.place(Run(against))
            before = self.values[other]
            found = None if self.found is None else self.found[place] - self.found[other]
        told = comparison(self.measure, before, self.values[place], self.weights, found, self.seed)
        return told if against is not None else replace(told, seeds=self.across_seeds(model))

    def across_seeds(self, model: str) -> Seeds | None:
        places = self.seeds(model)
        return across_seeds(
            [self.difference(place) for place in places],
            None if self.found is None else self.found[places],
            seed_of("seeds", self.seed, self.measure),
            self.spec.higher_is_better,
        )

    def categories(self) -> list[str]:
        """The categories of its items, in alphabetical order; empty where no item has one."""
        names = {row["category"] for row in self.rows.values()} - {None}
        return sorted(names) + ([UNSORTED] if names and any(r["category"] is None for r in self.rows.values()) else [])

    def part(self, category: str, resamples: int) -> "Paired":
        """The items of one category alone."""
        kept = np.array([(self.rows[item]["category"] or UNSORTED) == category for item in self.ids])
        values, base, weights = self.values[:, kept], self.base[kept], self.weights[kept]
        ids = [item for item, keep in zip(self.ids, kept, strict=True) if keep]
        draws = seed_of("bootstrap", self.seed, self.measure, category)
        return replace(
            self,
            ids=ids,
            rows={item: self.rows[item] for item in ids},
            weights=weights,
            base=base,
            values=values,
            found=replicates(values - base, weights, resamples, draws),
        )


def pair(samples: Mapping[str, Rows], reseeded: Mapping[Run, Rows], resamples: int, seed: int) -> list[Paired]:
    """One `Paired` a measure, in the order of every table. `samples` has base; `reseeded` may be empty.

    Raises `UserError` where two models did not answer the same items.
    """
    runs = [Run(name) for name in samples if name != "base"] + list(reseeded)
    rows = {str(run): samples[run.model] if run.seed is None else reseeded[run] for run in runs}
    split = {name: _by_measure(given) for name, given in {"base": samples["base"], **rows}.items()}
    found = []
    for measure in ordered(name for measures in split.values() for name in measures):
        ids, (base, *others), weights = paired(
            measure, {name: measures.get(measure, []) for name, measures in split.items()}
        )
        values = np.array(others).reshape(len(runs), len(ids))
        draws = seed_of("bootstrap", seed, measure)
        found.append(
            Paired(
                measure=measure,
                ids=ids,
                rows={row["item_id"]: row for row in split["base"][measure]},
                weights=weights,
                base=base,
                runs=runs,
                values=values,
                found=replicates(values - base, weights, resamples, draws),
                seed=seed,
            )
        )
    return found


def _by_measure(rows: Rows) -> dict[str, list[dict[str, Any]]]:
    split: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        split.setdefault(row["measure"], []).append(row)
    return split


def adjusted(cells: Mapping[str, Comparison], to_base: bool = True) -> dict[str, Comparison]:
    """One model's comparisons by measure with Holm's adjusted p-values; a distance from base is no test there."""
    tested = [name for name in cells if not to_base or name not in DISTANCES]
    found = dict(zip(tested, holm([cells[name].p_value for name in tested]), strict=True))
    return {name: replace(cell, holm=found.get(name)) for name, cell in cells.items()}


@dataclass(frozen=True)
class Contrast:
    """A mean of differences over measures: each measure has weight `share`, its items are resampled by themselves.

    `moved` are the items' parts of the value, for a sign-flip test; `found` the replicates, None without an interval.
    """

    value: float
    found: np.ndarray | None
    moved: np.ndarray
    n: int

    def interval(self) -> tuple[float, float] | tuple[None, None]:
        """The percentile interval; none where no item changed."""
        return (None, None) if self.found is None or not self.moved.any() else percentiles(self.found)

    def p_value(self, seed: int) -> float:
        return sign_flip(self.moved, seed)


def contrast(parts: Sequence[tuple[Paired, float]], run: Run, against: Run | None = None) -> Contrast:
    """The sum over measures of share x (a run's mean minus base's, or minus another run's): a stratified bootstrap."""
    value, found, moved, n = 0.0, np.zeros(1), [], 0
    for measured, share in parts:
        place = measured.place(run)
        before = measured.base if against is None else measured.values[measured.place(against)]
        mean = measured.difference(place) - (0.0 if against is None else measured.difference(measured.place(against)))
        value += share * mean
        moved.append(share * (measured.values[place] - before) * measured.weights / measured.weights.sum())
        n += len(measured.ids)
        if measured.found is None:
            found = np.full(1, np.nan)
        else:
            drawn = (
                measured.found[place]
                if against is None
                else (measured.found[place] - measured.found[measured.place(against)])
            )
            found = found + share * drawn
    whole = None if not parts or np.isnan(found).any() else found
    return Contrast(value, whole, np.concatenate(moved) if moved else np.zeros(0), n)
