"""The result tables as the page draws them: texts, verdicts, sort values and the geometry of the small bars.

Two ways round: measures down and models across for a few models, models down and measures across for many.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from anamnesis.findings import interval, label_of, noted, p_text, seeds_note, seeds_text
from anamnesis.pairing import DISTANCES
from anamnesis.results import DISTANCE, Results, Row
from anamnesis.stats import Comparison
from anamnesis.tables import Column, Entry, Table
from anamnesis.wording import signed

MARKS = {"better": "▲", "worse": "▼"}
NOTE = 60  # characters of a note that stands in its cell; a longer one is told below the table
HEADINGS = {
    "learnt": "The domain: what was to be learnt",
    "kept": "Everything else: what was to be kept",
    "safety": "Safety: what is refused",
}
SHORT = {"learnt": "domain", "kept": "everything else", "safety": "safety"}


@dataclass(frozen=True)
class Cell:
    """One comparison as the page draws it; positions are per cent of a bar in which right is better."""

    variant: str  # its name; `label` is how it is called
    label: str
    value: str
    told: str
    verdict: str
    mark: str
    note: str
    middle: float
    left: float
    width: float
    sort: float  # the difference, larger is better
    p: str
    p_sort: float
    holm: str
    holm_sort: float | None
    gained: int
    lost: int
    seeds: str  # mean over training seeds with its interval; empty for a model trained once
    seeds_note: str
    n: int


@dataclass(frozen=True)
class Line:
    measure: str
    label: str
    unit: str
    suite: str
    base: str
    cells: list[Cell]
    counts: bool  # whether an item is right or wrong, so that gained and lost items are told


@dataclass(frozen=True)
class Head:
    """A column of a grid."""

    label: str
    unit: str
    base: str  # what its differences are to, and n


@dataclass(frozen=True)
class Grid:
    """Models down, measures or categories across."""

    name: str
    caption: str
    groups: list[tuple[str, int]]  # headings above the columns and how many each spans
    heads: list[Head]
    lines: list[tuple[str, list[Cell]]]  # by model, its label first


def _scale(row: Row) -> float:
    ends = [
        abs(end) for cell in row.cells.values() for end in (cell.low, cell.high, cell.difference) if end is not None
    ]
    return max(ends, default=0.0) or 1.0


def lines_of(found: Results, rows: Sequence[Row]) -> list[Line]:
    """One line a measure, a cell a model."""
    return [
        Line(
            row.measure,
            row.label,
            row.unit,
            row.spec.suite,
            f"{row.base:.{row.decimals}f}",
            [_cell(found, row, *item, _scale(row)) for item in row.cells.items()],
            row.spec.binary,
        )
        for row in rows
    ]


def sides(found: Results, rows: Sequence[Row]) -> list[tuple[str, list[Line]]]:
    """Lines under the heading of their side."""
    by_side = [(text, [row for row in rows if row.spec.side == side]) for side, text in HEADINGS.items()]
    return [(text, lines_of(found, own)) for text, own in by_side if own]


def _cell(found: Results, row: Row, variant: str, cell: Comparison, scale: float) -> Cell:
    direction = 1 if row.spec.higher_is_better else -1
    low = cell.difference if cell.low is None else cell.low
    high = cell.difference if cell.high is None else cell.high
    left, middle, right = sorted(round(50 + 48 * direction * end / scale, 2) for end in (low, cell.difference, high))
    verdict = row.verdict(variant)
    return Cell(
        variant=variant,
        label=label_of(found, variant),
        value=f"{cell.tuned:.{row.decimals}f}",
        told=interval(cell, row.decimals),
        verdict=verdict,
        mark=MARKS.get(verdict, ""),
        note=noted(row, variant),
        middle=middle,
        left=left,
        width=round(right - left, 2),
        sort=round(direction * cell.difference, 6) + 0.0,
        p=p_text(cell.p_value).removeprefix("p "),
        p_sort=round(cell.p_value, 6),
        holm="–" if cell.holm is None else p_text(cell.holm).removeprefix("p "),
        holm_sort=None if cell.holm is None else round(cell.holm, 6),
        gained=cell.gained,
        lost=cell.lost,
        seeds=seeds_text(cell.seeds, row.decimals) if cell.seeds else "",
        seeds_note=seeds_note(cell.seeds, row.decimals, decided=verdict != DISTANCE) if cell.seeds else "",
        n=cell.n,
    )


def _base_of(row: Row, against: str = "base") -> str:
    return f"{against} {row.base:.{row.decimals}f}, n = {row.n}"


def grid(
    found: Results, name: str, caption: str, rows: Sequence[Row], variants: Sequence[str], against: str = "base"
) -> Grid:
    """Every measure in one table, a line a model; measures of a side stand together. `against` is called so there."""
    by_side = [(text, [row for row in rows if row.spec.side == side]) for side, text in HEADINGS.items()]
    ordered = [row for _, own in by_side for row in own]
    cells = [{cell.variant: cell for cell in line.cells} for line in lines_of(found, ordered)]
    return Grid(
        name,
        caption,
        [(text.partition(":")[0], len(own)) for text, own in by_side if own],
        [Head(row.label, f"{row.spec.unit} {row.arrow}", _base_of(row, against)) for row in ordered],
        [(label_of(found, variant), [of_row[variant] for of_row in cells]) for variant in variants],
    )


def category_grids(found: Results) -> list[tuple[Row, Grid]]:
    """Of each measure with categories, the differences in each; an empty list where no suite names any."""
    grids = []
    for row in found.rows:
        if len(row.categories) < 2:
            continue
        parts = {
            category: Row(row.measure, next(iter(cells.values())).base, next(iter(cells.values())).n, dict(cells))
            for category, cells in row.categories.items()
            if cells
        }
        cells_of = {name: {c.variant: c for c in lines_of(found, [part])[0].cells} for name, part in parts.items()}
        grids.append(
            (
                row,
                Grid(
                    f"categories-{row.measure}",
                    f"{row.label} by category: difference to base with its 95 % interval",
                    [],
                    [Head(name, "", _base_of(part)) for name, part in parts.items()],
                    [(label_of(found, v), [cells_of[name][v] for name in parts]) for v in found.variants],
                ),
            )
        )
    return grids


@dataclass(frozen=True)
class TableCell:
    """One cell of a paper's table in our numbers."""

    value: str
    interval: str  # of the difference to base, or of the value where the column is a difference
    verdict: str
    mark: str
    paper: str
    note: str
    sort: float | None


def table_cell(column: Column, entry: Entry) -> TableCell:
    """An entry of `tables` as text."""
    decimals = column.decimals
    value = "–" if entry.value is None else (signed if column.signed else _plain)(entry.value, decimals)
    ends = ""
    if entry.low is not None and entry.high is not None:
        bounds = f"[{signed(entry.low, decimals)}, {signed(entry.high, decimals)}]"
        ends = bounds if entry.difference is None else f"{signed(entry.difference, decimals)} {bounds}"
    return TableCell(
        value,
        ends,
        entry.verdict,
        MARKS.get(entry.verdict, ""),
        "" if entry.paper is None else _plain(entry.paper, 2),
        entry.note if len(entry.note) <= NOTE else entry.note.partition(":")[0],
        None if entry.value is None else round(entry.value, 6) + 0.0,
    )


def footnotes(table: Table) -> list[str]:
    """Notes of cells that are too long for their cell, once each."""
    notes = [entry.note for line in table.lines for entry in line.cells.values() if len(entry.note) > NOTE]
    return [f"{note[0].upper()}{note[1:]}." for note in dict.fromkeys(notes)]


def _plain(value: float, decimals: int) -> str:
    return f"{value:.{decimals}f}"


def table_lines(table: Table) -> list[tuple[str, str | None, list[TableCell]]]:
    """Label, what it stands in for, and cells of every line of a table."""
    return [
        (line.label, line.stands_for, [table_cell(column, line.cells[column.key]) for column in table.columns])
        for line in table.lines
    ]


def measured(found: Results) -> int:
    """Measures that get a verdict: a distance from base gets none."""
    return sum(row.measure not in DISTANCES for row in found.rows)


def moved_sides(found: Results) -> list[str]:
    """The sides that have a right-or-wrong measure, in the order of `HEADINGS`."""
    return [side for side in HEADINGS if any(row.spec.binary and row.spec.side == side for row in found.rows)]


def moved(found: Results) -> Mapping[str, list[tuple[int, int]]]:
    """Items gained and lost by model, over the right-or-wrong measures of each of `moved_sides`.

    Apart, since items gained on the domain make up for none that were lost elsewhere.
    """
    by_side = [
        [row.cells for row in found.rows if row.spec.binary and row.spec.side == side] for side in moved_sides(found)
    ]
    return {
        name: [(sum(of[name].gained for of in cells), sum(of[name].lost for of in cells)) for cells in by_side]
        for name in found.variants
    }
