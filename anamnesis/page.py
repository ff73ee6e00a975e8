"""The report as one self-contained HTML page, as Markdown and as a terminal table, from one `Account`.

Text that models wrote is escaped by the template engine and its control characters are made visible; the page loads
nothing, and a Content-Security-Policy says so. Nothing in it depends on the clock: equal inputs give equal bytes.
"""

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from anamnesis import figures, likeness, results, tallies
from anamnesis.accounts import Account
from anamnesis.distribution import HALVINGS
from anamnesis.forest import forest
from anamnesis.params import Params
from anamnesis.results import Results, Row
from anamnesis.sections import Model
from anamnesis.stats import MIN_ITEMS, Comparison

if TYPE_CHECKING:
    from markupsafe import Markup
    from rich.console import RenderableType

TEMPLATES = Path(__file__).with_name("templates")
SHOWN_CHARACTERS = 3000  # of one model output
TERMINAL_WIDTH = 120
VARIANTS_A_TABLE = 3  # in a terminal
MARKS = {"better": "▲", "worse": "▼"}


# ---------------------------------------------------------------------------------------------------------- Markdown


def _sum_up(found: Results, variant: str) -> str:
    verdicts = [row.verdict(variant) for row in found.rows if row.measure not in results.DISTANCES]
    return (
        f"better on {verdicts.count('better')}, worse on {verdicts.count('worse')}, "
        f"no difference shown on {verdicts.count(results.NOT_SHOWN)} of {len(verdicts)} measures"
    )


def probe_sentence(funnel: tallies.Funnel) -> str:
    """How many samples were kept, and which share of the answered ones passed the filters."""
    share = (
        "none was answered"
        if funnel.pass_share is None
        else f"{_percent(funnel.pass_share)} of the answered ones passed"
    )
    return f"{funnel.asked} samples were probed and {funnel.kept} instructions kept; {share}."


def votes_sentence(judge: tallies.JudgeTally) -> str:
    """How many votes a judge gave, and how many are missing."""
    mean = "" if judge.mean is None else f", mean score {judge.mean:.2f}"
    return f"Judge {judge.judge}: {judge.scored} of {judge.asked} votes{mean}, {judge.missing} missing."


def drops_sentence(found: list[tallies.Drop]) -> str:
    """Reasons with their counts, most first."""
    return ", ".join(f"{results.plain(drop.reason)} {drop.count}" for drop in found) or "nothing"


def _ways_table(account: Account) -> str:
    lines = [[way.variant, *(str(count) if count is not None else "–" for count in way.left.values())]
             for way in account.ways]  # fmt: skip
    return results.markdown_table(["variant", *tallies.STEPS], lines, right=range(1, len(tallies.STEPS) + 1))


def markdown(account: Account) -> str:
    """The report as Markdown that reads as plain text in a terminal of 120 columns."""
    found = account.found
    blocks = ["# What was learnt, what was forgotten"]
    for variant, sentences in results.findings(found).items():
        lead = f"- **{variant}**: {_sum_up(found, variant)}."
        blocks.append("\n".join([_wrapped(lead, ""), *(_wrapped(text, "  ") for text in sentences)]))
    blocks.append(results.markdown_table(results.HEADER, results.table(found), right=(2,)))
    blocks.append(
        _wrapped(
            "Intervals are 95 % bootstrap intervals of the paired difference to base over the items, from one training "
            f'run; {found.comparisons} comparisons were made, none is corrected for the others. "No difference shown" '
            "means that the items at hand don't settle it. A distance from base is 0 for base alone, so it gets no "
            "verdict: compare the variants by it.",
            "",
        )
    )
    if told := results.rehearsal_findings(found):
        blocks.append(f"## Against {found.reference}, which rehearsed nothing")
        blocks.append("\n".join(_wrapped(f"- **{variant}**: {text}", "") for variant, text in told.items()))
    blocks.append("## Instructions and votes")
    told_counts = [probe_sentence(account.funnel), *map(votes_sentence, account.judges)]
    blocks.append("\n".join(_wrapped(f"- {text}", "") for text in told_counts))
    blocks.append("## Can the judges be trusted?")
    told_judges = [*account.trust.sentences, *account.trust.control_sentences]
    blocks.append("\n".join(_wrapped(f"- {text}", "") for text in told_judges))
    for table in account.trust.tables:
        if table.name in ("agreement", "preferences"):
            short = [[cell.partition(":")[0] for cell in line] for line in table.lines]  # the reasons are in sentences
            blocks.append(results.markdown_table(table.header, short, table.numbers))
    if account.ways:
        blocks.append("## From probe to training set")
        blocks.append(_ways_table(account))
        taken = [(way.variant, way.drops) for way in account.ways] + [("the domain", account.domain_drops)]
        told_drops = [f"Taken out of {name} before the mix: {drops_sentence(found)}." for name, found in taken]
        blocks.append("\n".join(_wrapped(f"- {text}", "") for text in told_drops))
    blocks.append("## Instructions beside other sets")
    blocks.append("\n".join(_wrapped(f"- {text}", "") for text in likeness.sentences(account.likeness)))
    blocks.append("The page with figures and examples: report.html")
    return "\n\n".join(blocks) + "\n"


def _wrapped(text: str, indent: str) -> str:
    hanging = "  " if text.startswith("- ") else indent
    return textwrap.fill(text, TERMINAL_WIDTH, initial_indent=indent, subsequent_indent=hanging, break_on_hyphens=False)


# ---------------------------------------------------------------------------------------------------------- terminal


def terminal(found: Results) -> "RenderableType":
    """The result table for a terminal: measures down, variants across, at most `VARIANTS_A_TABLE` side by side."""
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    colours = {"better": "green", "worse": "red"}
    tables = []
    for start in range(0, max(1, len(found.variants)), VARIANTS_A_TABLE):
        variants = found.variants[start : start + VARIANTS_A_TABLE]
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
        table.title = (
            "Against base, with 95 % intervals (↑ higher is better, ↓ lower is better)" if start == 0 else None
        )
        table.add_column("measure")
        for name in ("base", *variants):
            table.add_column(Text(name), justify="right" if name == "base" else "left", no_wrap=True)
        for row in found.rows:
            cells = []
            for variant in variants:
                cell = row.cells[variant]
                text = Text(f"{cell.tuned:.{row.decimals}f} ")
                text.append(row.verdict(variant), colours.get(row.verdict(variant), "dim"))
                cells.append(text.append(f"\n{results.interval(cell, row.decimals)}", "dim"))
            label = Text(row.label).append(f"\n{row.spec.unit} {row.arrow} n={row.n}", "dim")
            table.add_row(label, f"{row.base:.{row.decimals}f}", *cells)
        tables.append(table)
    return Group(*tables)


# -------------------------------------------------------------------------------------------------------------- HTML


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
    told = results.interval(cell, row.decimals)
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


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


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
        "plain": results.plain,
        "minus": _minus,
        "percent": lambda share: _percent(share).replace(" ", "\u00a0"),
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
        findings=results.findings(found),
        rehearsal=results.rehearsal_findings(found, values=False),
        contests=[contest for contest in account.contests if len(contest.wins) > 1],
        sums={variant: _sum_up(found, variant) for variant in found.variants},
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
