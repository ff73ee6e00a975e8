"""The sentences and the table of text that a `Results` is told in."""

from collections.abc import Mapping, Sequence
from typing import Any

from anamnesis.pairing import DISTANCES
from anamnesis.results import DISTANCE, NOT_SHOWN, Results, Row
from anamnesis.scores import Score, Scores
from anamnesis.stats import ALPHA, MIN_ITEMS, Comparison, Seeds
from anamnesis.wording import signed


def interval(cell: Comparison, decimals: int) -> str:
    """`+0.150 [+0.050, +0.250]`, or the difference alone where there is no interval."""
    difference = signed(cell.difference, decimals)
    if cell.low is None or cell.high is None:
        return f"{difference} [no interval]"
    return f"{difference} [{signed(cell.low, decimals)}, {signed(cell.high, decimals)}]"


def score_text(score: Score, decimals: int) -> str:
    """`+0.055 [+0.010, +0.100]`, or the value alone where there is no interval."""
    value = signed(score.value, decimals)
    if score.low is None or score.high is None:
        return f"{value} [no interval]"
    return f"{value} [{signed(score.low, decimals)}, {signed(score.high, decimals)}]"


def p_text(p_value: float) -> str:
    """A p-value with two digits; three where two would round it across `ALPHA`, or below 0.01."""
    if p_value < 0.001:
        return "p < 0.001"
    short = f"{p_value + 1e-9:.2f}"  # 0.125 is 0.13 to a reader
    return f"p {short if p_value >= 0.01 and (float(short) <= ALPHA) == (p_value <= ALPHA) else f'{p_value:.3f}'}"


def verdict_note(cell: Comparison) -> str:
    """What a reader of difference and verdict would miss; empty where the two speak for themselves.

    Why an interval without zero gives no verdict, that the exact test alone would have given one, and whether a verdict
    outlives Holm's adjustment.
    """
    if cell.verdict == NOT_SHOWN:
        return _disagreement(cell.low, cell.high, cell.n, cell.p_value)
    return f"Holm {p_text(cell.holm)}" if cell.holm is not None and cell.holm > ALPHA else ""


def _disagreement(low: float | None, high: float | None, n: int, p_value: float) -> str:
    """What keeps an interval without zero, or a small p-value, from being a verdict."""
    if low is None or high is None:
        return ""  # "no interval" says it
    if low <= 0 <= high:
        return f"though exact {p_text(p_value)}" if p_value <= ALPHA else ""
    if n < MIN_ITEMS:
        return f"fewer than {MIN_ITEMS} items"
    return f"exact {p_text(p_value)}" if p_value > ALPHA else ""


def noted(row: Row, variant: str) -> str:
    """`verdict_note` of one cell of the result table; a distance from base has no verdict to be noted."""
    return "" if row.verdict(variant) == DISTANCE else verdict_note(row.cells[variant])


def label_of(found: Results, model: str) -> str:
    """How a model's row is called."""
    return found.models[model].label if model in found.models else model


def _told(rows: Sequence[tuple[Row, Comparison]]) -> str:
    """Measures with what they were and are, e.g. `arithmetic (0.100 to 0.225 accuracy)`."""
    return "; ".join(
        f"{row.label} ({cell.base:.{row.decimals}f} to {cell.tuned:.{row.decimals}f} {row.spec.unit})"
        for row, cell in rows
    )


def _held_against(rows: Sequence[tuple[Row, Comparison]], values: bool) -> str:
    """Measures against another variant's, e.g. `arithmetic (0.225 instead of 0.075 accuracy)`."""
    return "; ".join(
        f"{row.label} ({cell.tuned:.{row.decimals}f} instead of {cell.base:.{row.decimals}f} {row.spec.unit})"
        if values
        else row.label
        for row, cell in rows
    )


def _side(rows: Sequence[Row], variant: str, side: str) -> dict[str, list[tuple[Row, Comparison]]]:
    """One variant's rows of one side by verdict."""
    by_verdict: dict[str, list[tuple[Row, Comparison]]] = {"better": [], "worse": [], NOT_SHOWN: []}
    for row in rows:
        if row.spec.side == side and row.verdict(variant) in by_verdict:
            by_verdict[row.verdict(variant)].append((row, row.cells[variant]))
    return by_verdict


def _learnt(by_verdict: Mapping[str, list[Any]], total: int) -> str:
    if not total:
        return "No domain measure was taken, so nothing can be said about learning."
    better, worse = by_verdict["better"], by_verdict["worse"]
    if better:
        text = f"Learnt: better on {len(better)} of {total} domain measures: {_told(better)}."
    else:
        text = f"Learnt: nothing shown on the {total} domain measures."
    return text + (f" Worse on the domain itself: {_told(worse)}." if worse else "")


def _forgot(by_verdict: Mapping[str, list[Any]], total: int) -> str:
    if not total:
        return "Nothing outside the domain was measured, so nothing can be said about forgetting."
    better, worse = by_verdict["better"], by_verdict["worse"]
    if worse:
        text = f"Forgot: worse on {len(worse)} of {total} other measures: {_told(worse)}."
    else:
        text = f"Forgot: nothing shown on the {total} other measures, which does not prove that nothing was lost."
    return text + (f" Better outside the domain: {_told(better)}." if better else "")


def findings(found: Results) -> dict[str, list[str]]:
    """Plain sentences by variant, from the verdicts: learnt, forgot, safety where it was measured, left after Holm."""
    sentences = {}
    for variant in found.variants:
        learnt, kept = (_side(found.rows, variant, side) for side in ("learnt", "kept"))
        sentences[variant] = [
            _learnt(learnt, sum(map(len, learnt.values()))),
            _forgot(kept, sum(map(len, kept.values()))),
            *_safety(_side(found.rows, variant, "safety")),
            *_outlived(found, variant),
        ]
    return sentences


def score_sentences(found: Results, variant: str) -> list[str]:
    """Learning, forgetting and net of a model in each unit, then over its training seeds where there are several."""
    every = [by_model[variant] for by_model in found.scores.values()]
    return [*map(_scored, every), *(_seeded(one) for one in every if seeds_of(one))]


def _safety(by_verdict: Mapping[str, list[Any]]) -> list[str]:
    """A sentence where refusals were measured."""
    if not any(by_verdict.values()):
        return []
    better, worse = by_verdict["better"], by_verdict["worse"]
    told = [f"{word}: {_told(rows)}" for word, rows in (("worse", worse), ("better", better)) if rows]
    return [f"Safety: {'; '.join(told) or 'no difference shown'}."]


def decimals_of(one: Scores) -> int:
    """Decimals of a model's scores."""
    return 3 if one.family == "accuracy" else 4


def _scored(one: Scores) -> str:
    """Learning, forgetting and net of one unit in a sentence."""
    parts = []
    for name, score in (("learning", one.learning), ("forgetting", one.forgetting), ("net", one.net)):
        if score:
            over = "" if name == "net" else f" over {_count(len(score.measures), 'measure')}"
            parts.append(f"{name} {score_text(score, decimals_of(one))}{over}{_bracketed(score_note(score))}")
    return f"In {one.unit}: {', '.join(parts)}."


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _outlived(found: Results, variant: str) -> list[str]:
    """How many verdicts remain after Holm's adjustment, where there is one."""
    cells = [row.cells[variant] for row in found.rows if row.measure not in DISTANCES]
    told = [cell for cell in cells if cell.verdict != NOT_SHOWN]
    left = [cell for cell in told if cell.holm is not None and cell.holm <= ALPHA]
    if not told:
        return []
    return [f"Of {_count(len(told), 'verdict')}, {len(left)} remain after Holm's adjustment for {len(cells)} measures."]


def seeds_of(one: Scores) -> int:
    """How many training seeds are behind a model's scores; 0 for one trained once."""
    return next((s.seeds.n for s in (one.learning, one.forgetting) if s and s.seeds), 0)


def _bracketed(note: str) -> str:
    return f" ({note})" if note else ""


def seeds_text(seeds: Seeds, decimals: int) -> str:
    """Mean over training seeds with its t interval."""
    if seeds.low is None or seeds.high is None:
        return f"{signed(seeds.mean, decimals)} [no interval]"
    return f"{signed(seeds.mean, decimals)} [{signed(seeds.low, decimals)}, {signed(seeds.high, decimals)}]"


def seeds_note(seeds: Seeds, decimals: int, decided: bool = True) -> str:
    """The standard deviation between seeds, and the words where their t interval covers 0 or there is none.

    `decided` is False for a distance from base, which gets no verdict.
    """
    spread = [] if seeds.sd is None else [f"sd {seeds.sd:.{decimals}f}"]
    return ", ".join(spread + ([NOT_SHOWN] if decided and seeds.verdict == NOT_SHOWN else []))


def _seeded(one: Scores) -> str:
    """The scores over training seeds: their spread is another than that over items."""
    named = (("learning", one.learning), ("forgetting", one.forgetting), ("net", one.net))
    decimals = decimals_of(one)
    parts = [
        f"{name} {seeds_text(score.seeds, decimals)}{_bracketed(seeds_note(score.seeds, decimals))}"
        for name, score in named
        if score and score.seeds
    ]
    return f"Over {seeds_of(one)} training seeds (mean, its t interval, sd), in {one.unit}: {'; '.join(parts)}."


def rehearsal_findings(found: Results, values: bool = True) -> dict[str, str]:
    """A sentence or two by variant with rehearsal: what it kept and learnt, against the variant without."""
    sentences = {}
    for variant in found.variants if found.reference else []:
        if variant == found.reference:
            continue
        learnt, kept = (_side(found.against_reference, variant, side) for side in ("learnt", "kept"))
        told = {
            f"Kept more than {found.reference}": kept["better"],
            f"Kept less than {found.reference}": kept["worse"],
            "Learnt more": learnt["better"],
            "Learnt less": learnt["worse"],
        }
        parts = [f"{what}: {_held_against(rows, values)}." for what, rows in told.items() if rows]
        parts = parts or [f"No difference to {found.reference} shown on any measure."]
        sentences[variant] = " ".join([*parts, *kept_sentences(found, variant)])
    return sentences


def chain_findings(found: Results, values: bool = True) -> dict[str, str]:
    """A sentence or two by continued variant: what changed against the one whose weights it started from."""
    sentences = {}
    for init, rows in found.against_init.items():
        for variant in rows[0].cells if rows else ():
            learnt, kept = (_side(rows, variant, side) for side in ("learnt", "kept"))
            told = {
                f"Better than {init} on domain measures": learnt["better"],
                f"Worse than {init} on domain measures": learnt["worse"],
                f"Better than {init} elsewhere": kept["better"],
                f"Worse than {init} elsewhere": kept["worse"],
            }
            parts = [f"{what}: {_held_against(of, values)}." for what, of in told.items() if of]
            sentences[variant] = " ".join(parts) or f"No difference to {init} shown on any measure."
    return {name: sentences[name] for name in found.variants if name in sentences}


def kept_sentences(found: Results, variant: str) -> list[str]:
    """How much of what the variant without rehearsal forgot a model kept, in each unit."""
    told = []
    for by_model in found.scores.values():
        one = by_model[variant]
        if not one.avoided:
            continue
        kept = one.avoided
        text = f"Forgetting avoided, in {one.unit}: {score_text(kept.difference, decimals_of(one))}"
        text += _bracketed(score_note(kept.difference))
        if kept.share is not None and kept.share_low is not None and kept.share_high is not None:
            ends = f"{100 * kept.share_low:.0f} % to {100 * kept.share_high:.0f} %"
            text += f", {100 * kept.share:.0f} % of what {kept.against} forgot ({ends})"
        told.append(f"{text}." if not kept.why else f"{text}; no share, as {kept.why}.")
    return told


HEADER = ["measure", "model", "value", "difference to base [95 %]", "verdict"]


def table(found: Results) -> list[list[str]]:
    """The result table as text: for each measure base, then the variants; the unit stands under the measure's name.

    A note on a verdict stands in a line of its own, under it.
    """
    lines = []
    for row in found.rows:
        decimals = row.decimals
        block = [["", "base", f"{row.base:.{decimals}f}", "", ""]]
        for variant, cell in row.cells.items():
            word = row.verdict(variant)
            numbers = [f"{cell.tuned:.{decimals}f}", interval(cell, decimals)]
            block.append(["", label_of(found, variant), *numbers, word])
            if note := noted(row, variant):
                block.append(["", "", "", "", f"({note})"])
        block[0][0] = row.label if len(block) > 1 else f"{row.label} ({row.unit})"
        if len(block) > 1:
            block[1][0] = row.unit
        lines += block
    return lines


SCORE_HEADER = ["model", "learning", "forgetting", "net"]


def score_table(by_model: Mapping[str, Scores], found: Results) -> list[list[str]]:
    """The scores of one unit: a line a model, one for notes on it, and two for the mean over its training seeds."""
    lines = []
    for model, one in by_model.items():
        named = (one.learning, one.forgetting, one.net)
        decimals = decimals_of(one)
        lines.append([label_of(found, model), *(score_text(s, decimals) if s else "–" for s in named)])
        notes = [score_note(score) if score else "" for score in named]
        if any(notes):
            lines.append(["", *notes])
        if count := seeds_of(one):
            seeds = [score.seeds if score else None for score in named]
            lines.append([f"over {count} seeds", *(seeds_text(one, decimals) if one else "–" for one in seeds)])
            lines.append(["", *(seeds_note(one, decimals) if one else "" for one in seeds)])
    return lines


def score_note(score: Score) -> str:
    """The words for no verdict, with the p-value where it keeps an interval without zero from being one; else empty."""
    if score.verdict != NOT_SHOWN:
        return ""
    beside_zero = score.low is not None and score.high is not None and not score.low <= 0 <= score.high
    return f"{NOT_SHOWN}, {p_text(score.p_value)}" if beside_zero and score.n >= MIN_ITEMS else NOT_SHOWN


KEPT_HEADER = ["model", "forgetting avoided", "share of it", "interval of the share"]


def kept_table(by_model: Mapping[str, Scores], found: Results) -> list[list[str]]:
    """How much of what the variant without rehearsal forgot each other model kept, in one unit."""
    lines = []
    for model, one in by_model.items():
        if one.avoided:
            share, low, high = one.avoided.share, one.avoided.share_low, one.avoided.share_high
            known = share is not None and low is not None and high is not None
            ends = f"{100 * (low or 0):.0f} % to {100 * (high or 0):.0f} %" if known else "–"
            told = f"{100 * (share or 0):.0f} %" if known else "–"
            lines.append([label_of(found, model), score_text(one.avoided.difference, decimals_of(one)), told, ends])
            if note := score_note(one.avoided.difference):
                lines.append(["", note, "", ""])
    return lines


def unshared(by_model: Mapping[str, Scores]) -> list[str]:
    """Why there is no share where there is none, each reason once."""
    return list(dict.fromkeys(one.avoided.why for one in by_model.values() if one.avoided and one.avoided.why))


def changed_sentence(found: Results, model: str) -> str:
    """Items gained and lost by measure, e.g. `arithmetic +6 -1`."""
    own = [one for one in found.changes if one.model == model]
    told = [f"{one.label} +{len(one.gained_ids)} -{len(one.lost_ids)}" for one in own if one.gained_ids or one.lost_ids]
    return "; ".join(told) or "no item changed"
