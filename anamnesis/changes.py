"""Which items a model gained and lost against base, to be browsed."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Change:
    """One item that base had right and the model has wrong (lost), or the other way round (gained)."""

    item_id: str
    category: str | None
    question: str | None  # None where the suite asks that items are not shown, as GPQA's authors do
    base_output: str | None
    output: str | None
    seeds: int  # training seeds that changed it the same way, of `of`
    of: int


@dataclass(frozen=True)
class Changes:
    """What one model gained and lost on one right-or-wrong measure."""

    measure: str
    label: str  # of the measure
    model: str
    lost_ids: tuple[str, ...]  # all of them, by id
    gained_ids: tuple[str, ...]
    lost: tuple[Change, ...]  # the first `SHOWN` in a seeded order, those lost under most seeds first
    gained: tuple[Change, ...]
    hidden_lost: int  # how many are not among `lost`
    hidden_gained: int
