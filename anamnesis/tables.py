"""The paper's two tables in our numbers: rehearsal sources, and ablations of the committee."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    key: str  # a measure, or average, learning, forgetting, net, avoided, with -text for bits per byte
    label: str
    unit: str
    decimals: int
    higher_is_better: bool
    signed: bool  # a difference, shown with its sign


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
