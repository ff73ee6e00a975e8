"""Learning, forgetting and net: what several measures of one unit say together, with intervals over their items.

An accuracy and bits per byte are never averaged: each unit has its own scores. docs/statistics.md has the definitions
and where they come from.
"""

from dataclasses import dataclass
from typing import Literal

from anamnesis.stats import Seeds, Verdict

Family = Literal["accuracy", "text"]  # accuracy, bits per byte


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
    avoided: Avoided | None  # None without a variant without rehearsal that was measured, and for that one itself
