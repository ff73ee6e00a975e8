"""The paper's two tables in our numbers: rehearsal sources, and ablations of the committee."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from anamnesis.measures import spec
from anamnesis.paper import AVERAGE, ROWS, SOURCES, TABLE_1, TABLE_2
from anamnesis.scores import PAPER_FOUR, Family, Score, Scores
from anamnesis.stats import Comparison

SUFFIX: dict[Family, str] = {"accuracy": "", "text": "-text"}


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
    members: tuple[str, ...] = ()  # of the committee that wrote its rehearsal rows
    init: str | None = None  # of a continued variant: the one whose weights it starts from; None: base's
    seeds: tuple[int, ...] = ()  # training seeds that were measured, the main one first; empty for base


@dataclass(frozen=True)
class Column:
    key: str  # a measure, or average, learning, forgetting, net, avoided, with -text for bits per byte
    label: str
    unit: str
    decimals: int
    higher_is_better: bool
    signed: bool  # a difference, shown with its sign
    n: int = 0  # items behind it


@dataclass(frozen=True)
class Entry:
    """One cell: our number with the interval of its difference to base, and the paper's where it is known."""

    value: float | None  # in the column's unit, accuracies in per cent; None: not measured
    difference: float | None = None  # to base; None for base itself and for columns that are differences
    low: float | None = None  # of `difference`, or of `value` where the column is a difference
    high: float | None = None
    verdict: str = ""
    paper: float | None = None
    note: str = ""


@dataclass(frozen=True)
class Line:
    key: str  # sortable and stable: the paper's row, or the model
    label: str
    model: str | None  # None: a row of the paper that this run has no model for
    stands_for: str | None  # the paper's row that it stands in for, not the same data
    cells: dict[str, Entry]  # by column


@dataclass(frozen=True)
class Table:
    name: str  # table-1, table-2
    title: str
    columns: list[Column]
    lines: list[Line]
    paper: bool  # whether the paper's numbers stand beside ours
    notes: list[str]  # below it, in this order


Row = tuple[str, Model | None]  # the paper's row or the model, and the model; None: a row that was not run


def tables(
    models: Sequence[Model],
    cells: Mapping[str, Mapping[str, Comparison]],
    base: Mapping[str, float],
    scored: Mapping[Family, Mapping[str, Scores]],
    paper_size: bool,
) -> list[Table]:
    """Table 1 and table 2, those that have a row beside base and a column.

    `cells` holds every model's comparisons to base by measure, `base` base's own values, `paper_size` says whether the
    paper's numbers may stand beside ours: the same target, as many instructions and every item. They do so only where
    all four benchmarks were asked as the leaderboard asks them: others are other tests under the same names.
    """
    four = next((one.paper.measures for one in scored.get("accuracy", {}).values() if one.paper), ())
    columns = _columns(list(base), four, scored, next(iter(cells.values()), {}))
    ours = our_own([model for model in models if model.init is None])
    from_base = [m for m in models if m.init is None]  # the paper has no other
    sources = [m for m in from_base if m.rehearsal not in (None, "none", "reconstructed")]
    plain = [m for m in from_base if m.rehearsal == "none" and m.tuning in ("", "full")]
    shown = {m.name for m in [*sources, *plain]}
    ablations = [m for m in models if m.kind != "base" and m.name not in shown]
    first = _ordered([*plain, *sources, *([ours] if ours else [])], TABLE_1, paper_size, ours_last=True)
    second = _ordered([*plain, *ablations], TABLE_2, paper_size, ours_last=False)
    titles = {
        "table-1": ("What is rehearsed, and what is kept", first),
        "table-2": ("Parts of the method left out or replaced", second),
    }
    beside = paper_size and bool(four) and all(spec(name).suite == "leaderboard" for name in four)
    found = []
    by_name = {model.name: model for model in models}
    for name, (title, rows) in titles.items():
        lines = [_line("base", by_name.get("base"), columns, cells, base, scored, beside)]
        lines += [_line(key, model, columns, cells, base, scored, beside) for key, model in rows]
        if columns and len(lines) > 1:
            found.append(Table(name, title, columns, lines, beside, _notes(lines, columns, four, beside)))
    return found


def our_own(models: Sequence[Model]) -> Model | None:
    """The paper's method in this run: the model that is it or stands in for it, or else the one with most members."""
    named = sorted((model for model in models if _row(model) == "ours"), key=lambda model: model.paper != "ours")
    reconstructed = [model for model in models if model.rehearsal == "reconstructed" and model.members]
    return named[0] if named else max(reconstructed, key=lambda model: len(model.members), default=None)


def _ordered(models: Sequence[Model], order: Sequence[str], paper_size: bool, ours_last: bool) -> list[Row]:
    """Rows of a table: without rehearsal first, then the paper's in its order, and those of nobody's table.

    At the paper's size a row without a model is there as well.
    """
    placed: list[Row] = [(m.name, m) for m in models if m.rehearsal == "none" and m.tuning in ("", "full")]
    before, after = (order[1:-1], order[-1:]) if ours_last else (order[1:], ())
    known = {model.name for _, model in placed if model}
    others: list[Row] = [(m.name, m) for m in models if _row(m) not in order[1:] and m.name not in known]
    for keys, rest in ((before, others), (after, [])):
        for key in keys:
            own: list[Row] = [(key, model) for model in models if _row(model) == key and model.name not in known]
            placed += own or ([(key, None)] if paper_size else [])
        placed += rest
    return placed


def _row(model: Model) -> str | None:
    """The paper's row that a model is, or whose rehearsal source it has or stands in for."""
    if model.paper:
        return model.paper
    if model.stands_for:
        wanted = model.stands_for.casefold()
        return next((key for key, row in ROWS.items() if wanted in (key, row.label.casefold())), None)
    return model.rehearsal if model.rehearsal in TABLE_1 else None


def _columns(
    measures: Sequence[str],
    four: Sequence[str],
    scored: Mapping[Family, Mapping[str, Scores]],
    cells: Mapping[str, Comparison],
) -> list[Column]:
    """The paper's four and their average where all were taken, else every accuracy that was to be kept; then scores."""
    accuracies = [name for name in measures if spec(name).side == "kept" and spec(name).unit == "accuracy"]
    own = list(four) or accuracies
    items = {name: cells[name].n if name in cells else 0 for name in own}
    found = [Column(name, spec(name).paper or spec(name).label if four else spec(name).label, "%", 2, True, False, n)
             for name, n in items.items()]  # fmt: skip
    if len(own) > 1:
        found.append(Column(AVERAGE, "average", "%", 2, True, False, sum(items.values())))
    for family, by_model in scored.items():
        some = next(iter(by_model.values()))
        unit, decimals = ("points", 2) if family == "accuracy" else ("bits per byte", 4)
        suffix = SUFFIX[family]
        if some.learning:
            found.append(Column(f"learning{suffix}", "learning", unit, decimals, True, True, some.learning.n))
        if some.forgetting:
            found.append(Column(f"forgetting{suffix}", "forgetting", unit, decimals, False, True, some.forgetting.n))
            if any(one.avoided for one in by_model.values()):
                title = "forgetting avoided"
                found.append(Column(f"avoided{suffix}", title, unit, decimals, True, True, some.forgetting.n))
    return found


def _line(
    key: str,
    model: Model | None,
    columns: Sequence[Column],
    cells: Mapping[str, Mapping[str, Comparison]],
    base: Mapping[str, float],
    scored: Mapping[Family, Mapping[str, Scores]],
    beside: bool,
) -> Line:
    known = ROWS[key].numbers if beside and key in ROWS and not (model and model.stands_for) else {}
    entries = {}
    for column in columns:
        name = column.key if column.key == AVERAGE else spec(column.key).paper if column.key in base else None
        entry = _entry(column, model, cells, base, scored)
        paper = known.get(name) if name else None
        entries[column.key] = replace(entry, paper=paper)
    label = model.label if model else ROWS[key].label
    if beside and model and key in ROWS and model.label == model.name and not model.stands_for:
        label = ROWS[key].label
    return Line(key, label, model.name if model else None, model.stands_for if model else None, entries)


def _entry(
    column: Column,
    model: Model | None,
    cells: Mapping[str, Mapping[str, Comparison]],
    base: Mapping[str, float],
    scored: Mapping[Family, Mapping[str, Scores]],
) -> Entry:
    """Our number of one cell; accuracies and their differences are in per cent and points."""
    if model is None:
        return Entry(None, note="not run")
    if column.key in base:
        if model.kind == "base":
            return Entry(100 * base[column.key])
        cell = cells[model.name][column.key]
        return _scaled(cell.tuned, 100, cell.difference, cell.low, cell.high, cell.verdict)
    family: Family = "text" if column.key.endswith("-text") else "accuracy"
    by_model = scored.get(family, {})
    if column.key == AVERAGE:
        some = by_model.get(model.name) or next(iter(by_model.values()), None)
        average = (some.paper or some.kept) if some else None
        if average is None:
            return Entry(None)
        if model.kind == "base":
            return Entry(100 * average.base)
        return _scaled(average.tuned, 100, average.difference, average.low, average.high, average.verdict)
    if model.kind == "base":
        return Entry(0.0 if not column.key.startswith("avoided") else None)
    own = by_model.get(model.name)
    score, note = _score(own, column.key.removesuffix("-text"))
    if score is None:
        return Entry(None, note=note)
    scale = 100 if family == "accuracy" else 1
    return _scaled(score.value, scale, None, score.low, score.high, score.verdict, note)


def _score(own: Scores | None, name: str) -> tuple[Score | None, str]:
    """A score by its column's name, and what is said beside it: of forgetting avoided, its share."""
    if own is None:
        return None, ""
    if name != "avoided":
        return (own.learning if name == "learning" else own.forgetting), ""
    if own.avoided is None:
        return None, ""
    kept = own.avoided
    if kept.share is None or kept.share_low is None or kept.share_high is None:
        return kept.difference, f"no share: {kept.why}"
    ends = f"{100 * kept.share_low:.0f} % to {100 * kept.share_high:.0f} %"
    return kept.difference, f"{100 * kept.share:.0f} % of what {kept.against} forgot ({ends})"


def _scaled(
    value: float, scale: int, difference: float | None, low: float | None, high: float | None, word: str, note: str = ""
) -> Entry:
    def times(number: float | None) -> float | None:
        return None if number is None else scale * number

    return Entry(scale * value, times(difference), times(low), times(high), word, None, note)


def _notes(lines: Sequence[Line], columns: Sequence[Column], four: Sequence[str], beside: bool) -> list[str]:
    notes = []
    stand_ins = [f"{line.label} stands in for {line.stands_for}" for line in lines if line.stands_for]
    if stand_ins:
        notes.append("; ".join(stand_ins) + ": not the same rows, so no number of the paper is beside it.")
    if four and any(spec(name).suite != "leaderboard" for name in four):
        notes.append(
            "The columns are the nearest to the paper's: "
            + ", ".join(f"{spec(name).paper} is {spec(name).label}" for name in four)
            + "."
        )
    if any(column.key == AVERAGE for column in columns) and not four:
        notes.append(f"The average is over the accuracies to its left, not over the paper's {', '.join(PAPER_FOUR)}.")
    if beside:
        notes.append(f"The paper's numbers are {SOURCES}; an empty cell is a number that is not known.")
        doubtful = [
            ROWS[line.key].label
            for line in lines
            if line.key in ROWS and ROWS[line.key].doubtful and any(cell.paper for cell in line.cells.values())
        ]
        if doubtful:
            notes.append(
                f"{' and '.join(doubtful)}: the write-up that gives these contradicts itself, since it also calls "
                "ShareGPT, with a lower number, the best public set."
            )
    else:
        notes.append("The paper's numbers are left out: this run has another target, size or suite.")
    return notes
