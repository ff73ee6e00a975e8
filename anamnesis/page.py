"""The report as one self-contained HTML page, from one `Account`.

Text that models wrote is escaped by the template engine and its control characters are made visible; the page loads
nothing, and a Content-Security-Policy says so. Nothing in it depends on the clock: equal inputs give equal bytes.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from anamnesis import figures, findings, likeness, results, tallies, wording
from anamnesis.accounts import Account
from anamnesis.distribution import HALVINGS
from anamnesis.forest import forest
from anamnesis.params import Params
from anamnesis.plaintext import drops_sentence, percent, probe_sentence, sum_up
from anamnesis.results import Row
from anamnesis.sections import Model
from anamnesis.stats import MIN_ITEMS, Comparison

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
SHOWN_CHARACTERS = 3000  # of one model output
MARKS = {"better": "▲", "worse": "▼"}


@dataclass(frozen=True)
class Cell:
    """One comparison as the page draws it; positions are per cent of a bar in which right is better."""

    variant: str
    value: str
    told: str
    verdict: str
    mark: str
    middle: float
    left: float
    width: float


@dataclass(frozen=True)
class Line:
    label: str
    unit: str
    base: str
    cells: list[Cell]


def _line(row: Row) -> Line:
    ends = [
        abs(end) for cell in row.cells.values() for end in (cell.low, cell.high, cell.difference) if end is not None
    ]
    scale = max(ends, default=0.0) or 1.0
    return Line(
        row.label, row.unit, f"{row.base:.{row.decimals}f}", [_cell(row, *item, scale) for item in row.cells.items()]
    )


def _cell(row: Row, variant: str, cell: Comparison, scale: float) -> Cell:
    direction = 1 if row.spec.higher_is_better else -1
    low = cell.difference if cell.low is None else cell.low
    high = cell.difference if cell.high is None else cell.high
    left, middle, right = sorted(round(50 + 48 * direction * end / scale, 2) for end in (low, cell.difference, high))
    told = findings.interval(cell, row.decimals)
    value = f"{cell.tuned:.{row.decimals}f}"
    verdict = row.verdict(variant)
    return Cell(variant, value, told, verdict, MARKS.get(verdict, ""), middle, left, round(right - left, 2))


def _sides(rows: Sequence[Row]) -> list[tuple[str, list[Line]]]:
    """Rows of a result table under the heading of their side."""
    headings = {"learnt": "The domain: what was to be learnt", "kept": "Everything else: what was to be kept"}
    sides = [(text, [_line(row) for row in rows if row.spec.side == side]) for side, text in headings.items()]
    return [(text, lines) for text, lines in sides if lines]


def source_of(model: Model) -> list[str]:
    """Where a model comes from, one URI or server a line; of an address without user name, password and query."""
    if model.uri is not None:
        return [model.uri] if isinstance(model.uri, str) else list(model.uri)
    servers = []
    for url in model.base_urls:
        parts = urlsplit(url)
        port = f":{parts.port}" if parts.port else ""
        servers.append(f"{model.model} at {parts.scheme}://{parts.hostname or ''}{port}{parts.path}")
    return servers


def _roles(params: Params, key: str) -> str:
    roles = ["target"] if key == params.target else []
    roles += ["member"] if key in params.committee else []
    roles += ["judge"] if key in params.judges else []
    return ", ".join(roles) + ("" if params.models[key].enabled else " (disabled: took no part)")


def visible(text: str) -> str:
    """Model output for the page: control characters as pictures, direction marks replaced, very long text cut."""
    left_out = len(text) - SHOWN_CHARACTERS
    shown = text[:SHOWN_CHARACTERS] + (f"… ({left_out} more characters)" if left_out > 0 else "")
    shown = shown.replace("\r\n", "\n").replace("\r", "\n")
    shown = re.sub(r"[\x00-\x08\x0b-\x1f]", lambda match: chr(0x2400 + ord(match.group())), shown)
    return re.sub(r"[\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufffe\uffff]", "\ufffd", shown)


def _minus(text: object) -> str:
    """Hyphens before digits as minus signs."""
    return re.sub(r"(?<![\w-])-(?=\d)", "\u2212", str(text))


def _number(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else _minus(f"{value:.{decimals}f}")


def _figures(account: Account) -> dict[str, figures.Figure]:
    """The figures that there are numbers for."""
    drawn = {}
    if points := results.frontier(account.found):
        drawn["frontier"] = figures.frontier(points)
    if any(account.curves.values()):
        drawn["loss"] = figures.loss_curves(account.curves)
    if account.lengths:
        drawn["lengths"] = figures.lengths(account.lengths)
    if all(one.instructions for one in account.likeness.portraits.values()):
        shares = {name: one.types for name, one in account.likeness.portraits.items()}
        sizes = {name: one.instructions for name, one in account.likeness.portraits.items()}
        drawn["types"] = figures.types(shares, sizes)
    if account.judges:
        drawn["scores"] = figures.score_histograms({judge.judge: judge.scores for judge in account.judges})
    if agreeing := account.trust.agreeing:
        unit = "share of pairs in the same order"
        drawn["agreeing"] = forest("figure-agreeing", "Do two judges prefer the same response?", unit, agreeing, 0.5)
    if telling := account.trust.telling:
        unit, title = "AUC, genuine against planted", "Can a judge tell a planted response?"
        drawn["telling"] = forest("figure-telling", title, unit, telling, 0.5, "length and word overlap alone")
    return drawn


def html(account: Account, params: Params) -> str:
    """The whole page. Only our own style sheet and drawings go in unescaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "visible": visible,
        "plain": wording.plain,
        "minus": _minus,
        "percent": lambda share: percent(share).replace(" ", "\u00a0"),
        "number": _number,
    }

    def drawing(figure: figures.Figure) -> "Markup":
        return Markup(figure.svg)  # drawn here; text in it is escaped by the XML writer

    found = account.found
    return environment.get_template("report.html.jinja").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        account=account,
        found=found,
        params=params,
        sides=_sides(found.rows),
        rehearsal_sides=_sides(found.against_reference),
        rehearsal_variants=[name for name in found.variants if name != found.reference],
        findings=findings.findings(found),
        rehearsal=findings.rehearsal_findings(found, values=False),
        contests=[contest for contest in account.contests if len(contest.wins) > 1],
        sums={variant: sum_up(found, variant) for variant in found.variants},
        colours={variant: i % figures.COLOURS + 1 for i, variant in enumerate(found.variants)},
        figures=_figures(account),
        drawing=drawing,
        probe=probe_sentence(account.funnel),
        portraits=[likeness.portrait_sentence(*item) for item in account.likeness.portraits.items()],
        too_few=likeness.TOO_FEW,
        too_few_halves=likeness.TOO_FEW_HALVES,
        halvings=HALVINGS,
        complete=sum(member.statuses["ok"] for member in account.members),
        answers=sum(member.total for member in account.members),
        votes=sum(judge.scored for judge in account.judges),
        votes_asked=sum(judge.asked for judge in account.judges),
        statuses=list(dict.fromkeys(status for member in account.members for status in member.statuses)),
        models=[(key, _roles(params, key), source_of(model), model) for key, model in params.models.items()],
        min_items=MIN_ITEMS,
        steps=tallies.STEPS,
        drops_sentence=drops_sentence,
    )
