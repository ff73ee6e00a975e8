"""What was learnt and what was forgotten: every model against base on the same items.

The page, the Markdown, the terminal table and the flat metrics all show a `Results`, in the words of findings.py: so
they can't disagree.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anamnesis.changes import Changes, changes
from anamnesis.measures import Measure, spec
from anamnesis.pairing import DISTANCES, Paired, Run, adjusted, pair
from anamnesis.scores import UNITS, Family, Score, Scores, scores
from anamnesis.stats import Comparison
from anamnesis.tables import Model, Table, tables
from anamnesis.wording import DIGITS

LEARNT, FORGOTTEN = "domain_text", "own_text"  # the first frontier's axes, where both were taken
NOT_SHOWN = "no difference shown"
DISTANCE = "distance from base"

Samples = Sequence[dict[str, Any]]


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
        return spec(self.measure)

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
    against_init: dict[str, list[Row]] = field(default_factory=dict)  # by init, what was continued from it
    models: dict[str, Model] = field(default_factory=dict)  # base first, in the order of params.yaml
    scores: dict[Family, dict[str, Scores]] = field(default_factory=dict)  # by model; a unit not measured has no key
    changes: list[Changes] = field(default_factory=list)  # right-or-wrong measures, models within
    tables: list[Table] = field(default_factory=list)  # the paper's two, where there are rows for them

    @property
    def comparisons(self) -> int:
        """How many verdicts against base there are."""
        return sum(len(row.cells) for row in self.rows if row.measure not in DISTANCES)


Cells = dict[str, dict[str, Comparison]]  # by model and measure


def _cells(measured: Sequence[Paired], names: Sequence[str], against: str | None = None) -> Cells:
    """Models against base or another one, with Holm's p-values over the measures of each model."""
    by_model = {name: {one.measure: one.comparison(name, against) for one in measured} for name in names}
    return {name: adjusted(cells, to_base=against is None) for name, cells in by_model.items()}


def _rows(measured: Sequence[Paired], cells: Cells, resamples: int) -> list[Row]:
    """Every model against base, by category as well."""
    rows = []
    for one in measured:
        parts = {category: one.part(category, resamples) for category in one.categories()}
        categories = {category: {name: part.comparison(name) for name in cells} for category, part in parts.items()}
        own = {name: found[one.measure] for name, found in cells.items()}
        rows.append(Row(one.measure, one.base_mean, len(one.ids), own, categories=categories))
    return rows


def _against(measured: Sequence[Paired], reference: str, others: Sequence[str]) -> list[Row]:
    """Every other model against one of them."""
    cells = _cells(measured, others, reference)
    base = {one.measure: one.mean(reference) for one in measured}
    return [
        Row(one.measure, base[one.measure], len(one.ids), {name: cells[name][one.measure] for name in others},
            to_base=False)
        for one in measured
    ]  # fmt: skip


def results(
    samples: Mapping[str, Samples],
    reference: str | None,
    resamples: int,
    seed: int,
    *,
    reseeded: Mapping[tuple[str, int], Samples] | None = None,
    models: Sequence[Model] = (),
    paper_size: bool = False,
) -> Results:
    """Compare every variant with `base`, and every other variant with `reference`, a variant without rehearsal.

    Those that start from another one's weights are compared with that one as well.

    `samples` holds rows of `records.SAMPLES` by model, `base` among them, `reseeded` those of further training seeds by
    model and seed; `models` says what each is, base first; `paper_size` whether the paper's numbers may stand beside
    ours. A measure that nobody answered has no row.
    Raises `UserError` where two models did not answer the same items.
    """
    variants = [name for name in samples if name != "base"]
    others = [name for name in variants if name != reference] if reference else []
    runs = {Run(*key): rows for key, rows in (reseeded or {}).items()}
    measured = pair(samples, runs, resamples, seed)
    known = models or [Model(name, "base" if name == "base" else "variant", name) for name in samples]
    against = reference if others else None
    inits = {model.name: model.init for model in known if model.init}
    scored = scores(measured, variants, against, seed)
    cells = _cells(measured, variants)
    base = {one.measure: one.base_mean for one in measured}
    return Results(
        variants=variants,
        rows=_rows(measured, cells, resamples),
        reference=against,
        against_reference=_against(measured, against, others) if against else [],
        against_init={
            init: _against(measured, init, [name for name in inits if inits[name] == init])
            for init in dict.fromkeys(inits.values())
        },
        models={model.name: model for model in known},
        scores=scored,
        changes=changes(measured, variants, samples),
        tables=tables(known, cells, base, scored, paper_size),
    )


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
    learnt_of: int = 1  # measures that the axis is a mean of
    forgotten_of: int = 1


def frontiers(found: Results) -> list[Frontier]:
    """Learning against forgetting by model, one frontier a unit; the first one is that of metrics/frontier.csv.

    In bits per byte: held-out domain answers against the answers that base itself gave, where both were taken, as no
    other pair is about two texts that are so clearly to be learnt and to be kept; otherwise the averages. Empty where
    one side was not measured. An interval that is not there is the point itself.
    """
    drawn = []
    rows = {row.measure: row for row in found.rows}
    families: tuple[Family, ...] = ("text", "accuracy")
    for family in families:
        scored = list(found.scores.get(family, {}).values())
        if family == "text" and LEARNT in rows and FORGOTTEN in rows:
            learnt, forgotten = rows[LEARNT], rows[FORGOTTEN]
            points = [_point(name, learnt.cells[name], forgotten.cells[name], -1) for name in found.variants]
            drawn.append(Frontier(family, UNITS[family], learnt.label, forgotten.label, points))
        elif scored and scored[0].learning and scored[0].forgetting:
            measures = [side.measures for side in (scored[0].learning, scored[0].forgetting)]
            titles = [", ".join(spec(name).label for name in names) for names in measures]
            of = map(len, measures)
            points = [_point(s.model, s.learning, s.forgetting, 1) for s in scored if s.learning and s.forgetting]
            drawn.append(Frontier(family, UNITS[family], titles[0], titles[1], points, *of))
    return drawn


def _point(name: str, learnt: Comparison | Score, forgotten: Comparison | Score, sign: int) -> Point:
    """A model's point; `sign` is -1 where less of what was measured is more learnt."""
    x, *across = _ends(learnt, sign)
    y, *up = _ends(forgotten, 1)
    over = [side.seeds.values if side.seeds else () for side in (learnt, forgotten)]
    seeds = tuple((round(sign * x, DIGITS) + 0.0, round(y, DIGITS) + 0.0) for x, y in zip(*over, strict=True))
    return Point(name, x, across[0], across[1], y, up[0], up[1], seeds)


def _ends(side: Comparison | Score, sign: int) -> list[float]:
    """Value, low and high."""
    value = side.difference if isinstance(side, Comparison) else side.value
    low, high = (value, value) if side.low is None or side.high is None else (side.low, side.high)
    return [round(sign * number, DIGITS) + 0.0 for number in (value, *((low, high) if sign > 0 else (high, low)))]


def frontier(found: Results) -> list[Point]:
    """The points of the first of `frontiers`; empty where there is none."""
    return next((one.points for one in frontiers(found)), [])
