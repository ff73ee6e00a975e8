"""Learning, forgetting and net: what several measures of one unit say together, with intervals over their items.

An accuracy and bits per byte are never averaged: each unit has its own scores. docs/statistics.md has the definitions
and where they come from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from anamnesis.pairing import Contrast, Paired, Run, contrast
from anamnesis.records import seed_of
from anamnesis.stats import Seeds, Verdict, across_seeds, decide, fieller

Family = Literal["accuracy", "text"]
UNITS: dict[Family, str] = {"accuracy": "accuracy", "text": "bits per byte"}
PAPER_FOUR = ("MMLU-Pro", "GPQA", "IFEval", "MATH")
Parts = list[tuple[Paired, float]]  # measures, and by what their differences are multiplied in a sum


@dataclass(frozen=True)
class Average:
    """The mean over measures of one side (or of the paper's four): base beside the model. Each measure weighs the same.

    `difference` is tuned minus base, as measured: of bits per byte more is worse.
    """

    base: float
    tuned: float
    difference: float
    low: float | None
    high: float | None
    p_value: float  # a sign-flip test over the items of all measures
    n: int  # items of all measures
    measures: tuple[str, ...]
    verdict: Verdict


@dataclass(frozen=True)
class Score:
    """Learning, forgetting, net or forgetting avoided: one number of one model, interval over items."""

    value: float
    low: float | None
    high: float | None
    p_value: float
    n: int
    measures: tuple[str, ...]
    verdict: Verdict  # better: more learnt, less forgotten
    seeds: Seeds | None = None


@dataclass(frozen=True)
class Avoided:
    """How much of what the variant without rehearsal forgot, this model did not: both answered the same items.

    `share` is 1 where nothing is forgotten and 0 where as much is. A ratio has no stable interval where its
    denominator may be 0 (Fieller 1954): it is None where the interval of the reference's forgetting covers 0.
    """

    against: str
    difference: Score  # the reference's forgetting minus this model's
    share: float | None
    share_low: float | None
    share_high: float | None
    why: str  # why there is no share; empty where there is one


@dataclass(frozen=True)
class Scores:
    """One model's scores in one unit; None where no measure of that side and unit was taken."""

    model: str
    family: Family
    unit: str
    learnt: Average | None
    kept: Average | None
    learning: Score | None  # more right on the domain, or fewer bits
    forgetting: Score | None  # fewer right on everything else, or more bits; below zero: it got better there
    net: Score | None  # learning - forgetting
    avoided: Avoided | None  # None without a variant without rehearsal, for that one itself, and where nothing was kept
    paper: Average | None = None  # over the paper's four, where all were taken


def paper_four(measured: Sequence[Paired]) -> list[Paired]:
    """The measures of the paper's average in its order: as the leaderboard asks, or else their nearest. Empty unless
    all four are there.
    """
    found: dict[str, Paired] = {}
    for one in sorted(measured, key=lambda one: one.spec.suite != "leaderboard"):
        if one.spec.paper:
            found.setdefault(one.spec.paper, one)
    return [found[column] for column in PAPER_FOUR] if set(PAPER_FOUR) <= set(found) else []


def _mean(measured: Sequence[Paired], sign: int = 1) -> Parts:
    """Measures with equal shares; `sign` 1 makes a gain positive, -1 a loss."""
    return [(one, sign * one.sign / len(measured)) for one in measured]


def _average(measured: Sequence[Paired], run: Run, seed: int) -> Average | None:
    if not measured:
        return None
    found = contrast([(one, 1 / len(measured)) for one in measured], run)
    base = sum(one.base_mean for one in measured) / len(measured)
    names = tuple(one.measure for one in measured)
    draws = seed_of("average", seed, *names)
    low, high = found.interval()
    p_value = found.p_value(draws)
    word = decide(found.value, low, high, found.n, p_value, measured[0].spec.higher_is_better)
    return Average(base, base + found.value, found.value, low, high, p_value, found.n, names, word)


def _score(parts: Parts, run: Run, seed: int, higher_is_better: bool, against: Run | None = None) -> Score | None:
    """The sum over `parts` for a run, against base or another run; with the runs of other seeds beside it."""
    if not parts:
        return None
    names = tuple(one.measure for one, _ in parts)
    draws = seed_of("score", seed, *names)
    found = contrast(parts, run, against)
    runs = parts[0][0].runs
    pairs = [(other, against and Run(against.model, other.seed)) for other in runs if other.model == run.model]
    every = [contrast(parts, *pair) for pair in pairs if pair[1] is None or pair[1] in runs]
    low, high = found.interval()
    p_value = found.p_value(draws)
    return Score(
        value=found.value,
        low=low,
        high=high,
        p_value=p_value,
        n=found.n,
        measures=names,
        verdict=decide(found.value, low, high, found.n, p_value, higher_is_better),
        seeds=across_seeds([one.value for one in every], _stacked(every), draws, higher_is_better),
    )


def _stacked(every: Sequence[Contrast]) -> np.ndarray | None:
    drawn = [one.found for one in every if one.found is not None]
    return np.array(drawn) if drawn and len(drawn) == len(every) else None


def _avoided(kept: Sequence[Paired], run: Run, against: Run, forgotten: Score, seed: int) -> Avoided | None:
    """What `against` forgot and `run` did not. `forgotten` is the forgetting of `against`."""
    difference = _score(_mean(kept), run, seed, True, against)
    if difference is None:
        return None
    share, why = None, ""
    if forgotten.verdict != "worse":
        why = f"{against.model} is not shown to have forgotten anything"
    else:
        above, below = contrast(_mean(kept), run, against), contrast(_mean(kept, -1), against)
        if above.found is not None and below.found is not None:
            share = fieller(above.value, below.value, above.found, below.found)
        if share is None:
            why = f"what {against.model} forgot is too close to zero for a ratio"
    value = difference.value / forgotten.value if share else None
    low, high = share or (None, None)
    return Avoided(against.model, difference, value, low, high, why)


def scores(
    measured: Sequence[Paired], models: Sequence[str], reference: str | None, seed: int
) -> dict[Family, dict[str, Scores]]:
    """Every model's scores by family of measures; a family without measures has no key. Distances take no part."""
    found: dict[Family, dict[str, Scores]] = {}
    for family, unit in UNITS.items():
        ours = [one for one in measured if one.spec.unit == unit and one.spec.side in ("learnt", "kept")]
        learnt = [one for one in ours if one.spec.side == "learnt"]
        kept = [one for one in ours if one.spec.side == "kept"]
        lost = _score(_mean(kept, -1), Run(reference), seed, False) if reference and kept else None
        for model in models if ours else ():
            run = Run(model)
            found.setdefault(family, {})[model] = Scores(
                model=model,
                family=family,
                unit=unit,
                learnt=_average(learnt, run, seed),
                kept=_average(kept, run, seed),
                learning=_score(_mean(learnt), run, seed, True),
                forgetting=_score(_mean(kept, -1), run, seed, False),
                net=_score(_mean(learnt) + _mean(kept), run, seed, True) if learnt and kept else None,
                avoided=_avoided(kept, run, Run(reference), lost, seed)
                if reference and lost and model != reference
                else None,
                paper=_average(paper_four(ours), run, seed),
            )
    return found
