"""Which items a model gained and lost against base, to be browsed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from anamnesis.pairing import Paired
from anamnesis.records import digest

SHOWN = 30  # items of each kind a measure and model


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


def changes(
    measured: Sequence[Paired], models: Sequence[str], outputs: Mapping[str, Sequence[dict[str, Any]]]
) -> list[Changes]:
    """Gained and lost items of every right-or-wrong measure and model; `outputs` are the models' rows of SAMPLES."""
    said = {name: {(row["measure"], row["item_id"]): row["output"] for row in rows} for name, rows in outputs.items()}
    found = []
    for one in measured:
        if not one.spec.binary:
            continue
        for model in models:
            moves = one.sign * (one.values[one.seeds(model)] - one.base)  # runs x items: below zero is lost
            own = moves[0]
            sides = {}
            for side in (-1, 1):
                same = (np.sign(moves) == side).sum(axis=0)
                places = np.flatnonzero(np.sign(own) == side)
                shown = sorted(places, key=lambda i: (-same[i], digest("changed", one.measure, one.ids[i])))[:SHOWN]
                sides[side] = (
                    tuple(one.ids[i] for i in places),
                    tuple(_change(one, int(i), said["base"], said[model], int(same[i]), len(moves)) for i in shown),
                )
            found.append(
                Changes(
                    measure=one.measure,
                    label=one.spec.label,
                    model=model,
                    lost_ids=sides[-1][0],
                    gained_ids=sides[1][0],
                    lost=sides[-1][1],
                    gained=sides[1][1],
                    hidden_lost=len(sides[-1][0]) - len(sides[-1][1]),
                    hidden_gained=len(sides[1][0]) - len(sides[1][1]),
                )
            )
    return found


def _change(
    one: Paired, place: int, before: Mapping[Any, str | None], after: Mapping[Any, str | None], same: int, of: int
) -> Change:
    item = one.ids[place]
    row = one.rows[item]
    key = (one.measure, item)
    return Change(item, row["category"], row["question"], before.get(key), after.get(key), same, of)
