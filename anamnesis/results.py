"""What was learnt and what was forgotten: every model against base on the same items, in rows, sentences and numbers.

The one place that turns comparisons into words: the page, the Markdown table, the terminal table and the flat metrics
all show a `Results`, so they can't disagree.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from anamnesis import measures
from anamnesis.changes import Changes
from anamnesis.measures import Measure
from anamnesis.scores import Family, Scores
from anamnesis.stats import Comparison, compare, measures_in
from anamnesis.tables import Table

DIGITS = 6  # of numbers in metrics files
LEARNT, FORGOTTEN = "domain_text", "own_text"  # the frontier's axes: both in bits per byte
NOT_SHOWN = "no difference shown"
# A distance from base is 0 for base itself and above 0 after any training: "worse" would be a foregone conclusion.
DISTANCES = {"own_kl"}
DISTANCE = "distance from base"

Samples = Sequence[dict[str, Any]]

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@dataclass(frozen=True)
class Model:
    """One row of every table: what it is, and how it is called there."""

    name: str  # as in params.yaml; the key everywhere
    kind: Literal["base", "variant", "interpolation"]
    label: str  # `name` where params.yaml gives none
    stands_for: str | None = None  # the paper's row that it stands in for
    paper: str | None = None  # the paper's row that it is: a key of `tables`
    rehearsal: str | None = None  # reconstructed, none or a source; None for base and interpolations
    tuning: str = ""  # full, lora, …; empty for base and interpolations
    variant: str | None = None  # of an interpolation: the variant between which and base it lies
    alpha: float | None = None  # 0 is base, 1 the variant
    seeds: tuple[int, ...] = ()  # training seeds that were measured, the main one first; empty for base


@dataclass(frozen=True)
class Row:
    """One measure: base and every variant against it."""

    measure: str
    base: float
    n: int
    cells: dict[str, Comparison]  # by variant
    to_base: bool = True  # or to the variant without rehearsal
    categories: dict[str, dict[str, Comparison]] = field(default_factory=dict)  # by category and variant

    @property
    def spec(self) -> Measure:
        return measures.spec(self.measure)

    @property
    def label(self) -> str:
        return self.spec.label.replace("||", "‖")  # a double bar would end a Markdown cell

    @property
    def unit(self) -> str:
        return f"{self.spec.unit}, {'higher' if self.spec.higher_is_better else 'lower'} is better, n = {self.n}"

    @property
    def decimals(self) -> int:
        """Decimals to show: for continuous measures a fourth where every interval lies within 0.1 of zero."""
        if self.spec.binary:
            return 3
        bounds = [abs(end) for cell in self.cells.values() for end in (cell.low, cell.high) if end is not None]
        return 4 if bounds and max(bounds) < 0.1 else 3

    @property
    def arrow(self) -> str:
        return "↑" if self.spec.higher_is_better else "↓"

    def verdict(self, variant: str) -> str:
        """The comparison's verdict; none on a distance, which can't but grow from base."""
        return DISTANCE if self.to_base and self.measure in DISTANCES else self.cells[variant].verdict


@dataclass(frozen=True)
class Results:
    """Rows against base, and against the variant without rehearsal where there is one."""

    variants: list[str]  # every model but base, interpolations among them
    rows: list[Row]
    reference: str | None  # the variant trained on the domain only
    against_reference: list[Row]  # its `base` is the reference
    models: dict[str, Model] = field(default_factory=dict)  # base first, in the order of params.yaml
    scores: dict[Family, dict[str, Scores]] = field(default_factory=dict)  # by model; a unit not measured has no key
    changes: list[Changes] = field(default_factory=list)  # right-or-wrong measures, models within
    tables: list[Table] = field(default_factory=list)  # the paper's two, where there are rows for them

    @property
    def comparisons(self) -> int:
        """How many verdicts against base there are."""
        return sum(len(row.cells) for row in self.rows if row.measure not in DISTANCES)


def _rows(samples: Mapping[str, Samples], base: str, others: Sequence[str], resamples: int, seed: int) -> list[Row]:
    found = []
    for measure in measures_in([row for rows in samples.values() for row in rows]):
        cells = {name: compare(samples[base], samples[name], measure, resamples, seed) for name in others}
        alone = compare(samples[base], samples[base], measure, resamples, seed)
        found.append(Row(measure, alone.base, alone.n, cells, to_base=base == "base"))
    return found


def results(samples: Mapping[str, Samples], reference: str | None, resamples: int, seed: int) -> Results:
    """Compare every variant with `base`, and every other variant with `reference`, a variant without rehearsal.

    `samples` holds rows of `records.SAMPLES` by model, `base` among them. A measure that nobody answered has no row.
    Raises `UserError` where two models did not answer the same items.
    """
    variants = [name for name in samples if name != "base"]
    others = [name for name in variants if name != reference] if reference else []
    return Results(
        variants=variants,
        rows=_rows(samples, "base", variants, resamples, seed),
        reference=reference if others else None,
        against_reference=_rows(samples, reference, others, resamples, seed) if reference and others else [],
    )


def summary(found: Results) -> dict[str, float | int]:
    """The flat numbers of metrics/summary.json that come from comparisons, rounded to `DIGITS` digits."""
    flat: dict[str, float | int] = {}
    for row in found.rows:
        flat[f"base.{row.measure}"] = row.base
        for variant, cell in row.cells.items():
            flat[f"{variant}.{row.measure}"] = cell.tuned
            flat |= _parts(f"{variant}.{row.measure}", cell)
            flat[f"{variant}.{row.measure}.n"] = cell.n
    for row in found.against_reference:
        for variant, cell in row.cells.items():
            flat |= _parts(f"{variant}.{row.measure}.against.{found.reference}", cell)
    return rounded(flat)


def _parts(key: str, cell: Comparison) -> dict[str, float]:
    """Difference and interval of one comparison; an interval that is not there has no key."""
    parts = {"diff": cell.difference, "low": cell.low, "high": cell.high}
    return {f"{key}.{name}": value for name, value in parts.items() if value is not None}


def rounded(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Floats rounded to `DIGITS` digits, without negative zeros."""
    return {key: round(value, DIGITS) + 0.0 if isinstance(value, float) else value for key, value in flat.items()}


@dataclass(frozen=True)
class Point:
    """One model on the frontier, in bits per byte against base; positive is more learnt, more forgotten."""

    variant: str
    learnt: float
    learnt_low: float
    learnt_high: float
    forgotten: float
    forgotten_low: float
    forgotten_high: float
    seeds: tuple[tuple[float, float], ...] = ()  # learnt and forgotten of each training seed; empty for one seed


@dataclass(frozen=True)
class Frontier:
    """Learning against forgetting in one unit; base is its origin."""

    family: Family
    unit: str  # accuracy or bits per byte
    learnt: str  # what the horizontal axis is made of, for its title
    forgotten: str
    points: list[Point]


def frontier(found: Results) -> list[Point]:
    """Learning (fewer bits for held-out domain answers) against forgetting (more for the model's own), by variant.

    Empty where one of the two measures is missing. An interval that is not there is the point itself.
    """
    cells = {row.measure: row.cells for row in found.rows}
    if LEARNT not in cells or FORGOTTEN not in cells:
        return []
    points = []
    for variant in found.variants:
        learnt, forgotten = cells[LEARNT][variant], cells[FORGOTTEN][variant]
        numbers = [
            -learnt.difference,
            -learnt.difference if learnt.high is None else -learnt.high,
            -learnt.difference if learnt.low is None else -learnt.low,
            forgotten.difference,
            forgotten.difference if forgotten.low is None else forgotten.low,
            forgotten.difference if forgotten.high is None else forgotten.high,
        ]
        points.append(Point(variant, *(round(number, DIGITS) + 0.0 for number in numbers)))
    return points


def signed(value: float, decimals: int) -> str:
    """A number with its sign, no sign on what rounds to zero."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def interval(cell: Comparison, decimals: int) -> str:
    """`+0.150 [+0.050, +0.250]`, or the difference alone where there is no interval."""
    difference = signed(cell.difference, decimals)
    if cell.low is None or cell.high is None:
        return f"{difference} [no interval]"
    return f"{difference} [{signed(cell.low, decimals)}, {signed(cell.high, decimals)}]"


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
    """Plain sentences by variant, from the verdicts alone: what it learnt, what it forgot."""
    sentences = {}
    for variant in found.variants:
        learnt, kept = (_side(found.rows, variant, side) for side in ("learnt", "kept"))
        sentences[variant] = [
            _learnt(learnt, sum(map(len, learnt.values()))),
            _forgot(kept, sum(map(len, kept.values()))),
        ]
    return sentences


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
        sentences[variant] = " ".join(parts) or f"No difference to {found.reference} shown on any measure."
    return sentences


def plain(text: object) -> str:
    """One printable line: terminal sequences, control and direction characters removed, white space collapsed."""
    return " ".join(_CONTROL.sub(" ", _ANSI.sub("", str(text))).split())


def markdown_cell(text: object) -> str:
    """`plain` text that can't end a Markdown cell or start an HTML tag."""
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


HEADER = ["measure", "model", "value", "difference to base [95 %]", "verdict"]


def table(found: Results) -> list[list[str]]:
    """The result table as text: for each measure base, then the variants; the unit stands under the measure's name."""
    lines = []
    for row in found.rows:
        decimals = row.decimals
        block = [["", "base", f"{row.base:.{decimals}f}", "", ""]]
        for variant, cell in row.cells.items():
            block.append(["", variant, f"{cell.tuned:.{decimals}f}", interval(cell, decimals), row.verdict(variant)])
        block[0][0] = row.label if len(block) > 1 else f"{row.label} ({row.unit})"
        if len(block) > 1:
            block[1][0] = row.unit
        lines += block
    return lines


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """A Markdown table padded so that it reads as plain text too; `right` are the columns set flush right."""
    cells = [[markdown_cell(cell) for cell in line] for line in [header, *lines]]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(header))]

    def line_of(parts: Sequence[str]) -> str:
        padded = [part.rjust(widths[i]) if i in right else part.ljust(widths[i]) for i, part in enumerate(parts)]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (width - 1) + ":") if i in right else "-" * width for i, width in enumerate(widths)]
    return "\n".join([line_of(cells[0]), line_of(rule), *map(line_of, cells[1:])])
