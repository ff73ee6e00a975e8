"""Which items were lost: what base had right and a model has wrong, item by item, to be browsed on the page."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from anamnesis.changes import Change, Changes
from anamnesis.findings import label_of
from anamnesis.results import Results

ITEMS = 40  # shown of a measure: every model has its share of them
ANSWERS = 6  # different answers shown to one item
NO_TEXT = "not shown"  # as the authors of the benchmark ask, or because the suite keeps no text


@dataclass(frozen=True)
class Answer:
    """What one or several models said: those with equal answers are told together."""

    models: list[str]  # labels, with the seeds where there are several
    text: str | None


@dataclass(frozen=True)
class Item:
    """One item that base had right, with the answers of the models that lost it."""

    item_id: str
    category: str | None
    question: str | None
    base: str | None
    answers: list[Answer]
    models: list[str]  # names of all that lost it
    more: int  # answers that are left out


@dataclass(frozen=True)
class Measure:
    measure: str
    label: str
    total: int  # items that at least one model lost
    counts: dict[str, int]  # lost items by model, those that lost any
    items: list[Item]  # most models first


def lost(found: Results) -> list[Measure]:
    """The lost items of every measure that has some; of each model the same number is shown, most seeds first."""
    by_measure: dict[str, list[Changes]] = {}
    for one in found.changes:
        if one.lost_ids:
            by_measure.setdefault(one.measure, []).append(one)
    return [_measure(found, measure, changed) for measure, changed in by_measure.items()]


def _measure(found: Results, measure: str, changed: Sequence[Changes]) -> Measure:
    known = {(one.model, change.item_id): change for one in changed for change in one.lost}
    turns = zip_longest(*(one.lost for one in changed))  # the first of every model, then the second, ...
    every = dict.fromkeys(change.item_id for turn in turns for change in turn if change)
    shown = list(every)[: max(ITEMS, len(changed))]
    losers = {item: [one for one in changed if item in one.lost_ids] for item in shown}
    order = sorted(shown, key=lambda item: (-len(losers[item]), item))
    return Measure(
        measure,
        changed[0].label,
        len({item for one in changed for item in one.lost_ids}),
        {one.model: len(one.lost_ids) for one in changed},
        [_item(found, item, losers[item], known) for item in order],
    )


def _item(found: Results, item: str, losers: Sequence[Changes], known: dict[tuple[str, str], Change]) -> Item:
    by_text: dict[str | None, list[str]] = {}
    for one in losers:
        change = known.get((one.model, item))  # None: lost, and not among those that are shown in full
        if change:
            seeds = f" ({change.seeds} of {change.of} seeds)" if change.of > 1 else ""
            by_text.setdefault(change.output, []).append(label_of(found, one.model) + seeds)
    some = next(known[one.model, item] for one in losers if (one.model, item) in known)
    answers = [Answer(models, text) for text, models in sorted(by_text.items(), key=lambda pair: -len(pair[1]))]
    return Item(
        item,
        some.category,
        some.question,
        some.base_output,
        answers[:ANSWERS],
        [one.model for one in losers],
        max(0, len(answers) - ANSWERS),
    )
