"""The report as one self-contained HTML page, from one `Account`.

Text that models wrote is escaped by the template engine and its control characters are made visible; the page loads
nothing, and a Content-Security-Policy says so. Nothing in it depends on the clock: equal inputs give equal bytes.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from anamnesis import cells, figures, findings, likeness, lost, results, scatter, tallies, type_figures, wording
from anamnesis.accounts import Account
from anamnesis.canvas import COLOURS, Figure
from anamnesis.distribution import HALVINGS
from anamnesis.forest import forest
from anamnesis.params import Params
from anamnesis.plaintext import drops_sentence, percent, probe_sentence, sum_up
from anamnesis.sections import Model
from anamnesis.stats import MIN_ITEMS

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
SHOWN_CHARACTERS = 3000  # of one model output
ITEM_CHARACTERS = 600  # of a lost item's question and of each answer
HELD_OUT = "held out"
SETS_SIDE_BY_SIDE = 3  # of instructions, in one figure of types
GRID = "Difference to base with its 95 % bootstrap interval over the paired items, a line a model"
CHAIN = "Difference to {}, whose weights it started from, with its 95 % interval over the paired items"
AGAINST = "Difference to the variant without rehearsal, with its 95 % interval over the paired items"
FEW = 4  # models at most that stand side by side in the result table; more stand below each other


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
    """Hyphens before digits as minus signs, and no line break between a number and its per cent sign."""
    return re.sub(r"(?<=\d) %", "\u00a0%", re.sub(r"(?<![\w-])-(?=\d)", "\u2212", str(text)))


def _number(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else _minus(f"{round(value, decimals) + 0.0:.{decimals}f}")


def _figures(account: Account) -> dict[str, Figure]:
    """The figures that there are numbers for."""
    drawn = {}
    for one in results.frontiers(account.found):
        drawn[f"frontier-{one.family}"] = scatter.frontier(one, account.found.models)
    if any(account.curves.values()):
        drawn["loss"] = figures.loss_curves(account.curves)
    if account.lengths:
        drawn["lengths"] = figures.lengths(account.lengths)
    sets = {name: one for name, one in account.likeness.portraits.items() if one.instructions}
    if likeness.RECONSTRUCTED in sets and len(sets) <= SETS_SIDE_BY_SIDE:
        shares, sizes = ({name: getattr(one, part) for name, one in sets.items()} for part in ("types", "instructions"))
        drawn["types"] = type_figures.types(shares, sizes)
    if account.judges:
        drawn["scores"] = figures.score_histograms({judge.judge: judge.scores for judge in account.judges})
    if agreeing := account.trust.agreeing:
        unit = "share of pairs in the same order"
        drawn["agreeing"] = forest("figure-agreeing", "Do two judges prefer the same response?", unit, agreeing, 0.5)
    if telling := account.trust.telling:
        unit, title = "AUC, genuine against planted", "Can a judge tell a planted response?"
        drawn["telling"] = forest("figure-telling", title, unit, telling, 0.5, ["length alone", "word overlap alone"])
    return drawn


def _panels(account: Account) -> list[Figure]:
    """A figure a type where there are too many sets to stand side by side."""
    sets = {name: one for name, one in account.likeness.portraits.items() if one.instructions}
    if likeness.RECONSTRUCTED not in sets or len(sets) <= SETS_SIDE_BY_SIDE:
        return []
    shares, sizes = ({name: getattr(one, part) for name, one in sets.items()} for part in ("types", "instructions"))
    return type_figures.type_panels(shares, sizes)


def _numbered(figures_of: list[list[scatter.Mark]]) -> list[tuple[int, list[scatter.Mark]]]:
    """The key to the figures whose points are numbered: each number with its point in every figure."""
    if not figures_of or not figures_of[0] or not figures_of[0][0].number:
        return []
    return [(same[0].number, list(same)) for same in zip(*figures_of, strict=True)]


def _kinds(account: Account) -> list[str]:
    """Types that some set has, the reconstructed set's most frequent first."""
    sets = [one.types for one in account.likeness.portraits.values() if one.instructions]
    used = [kind for kind in (sets[0] if sets else {}) if any(kind in one and one[kind].value for one in sets)]
    return sorted(used, key=lambda kind: (kind == "other", -sets[0][kind].value, kind))


def policy(script: str) -> str:
    """The Content-Security-Policy: nothing is loaded, and no script runs but this one."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )


def _chain_grids(found: results.Results) -> list[cells.Grid]:
    """A table for each model that others were continued from: these, against it."""
    grids = []
    for init, rows in found.against_init.items():
        label = findings.label_of(found, init)
        if rows:
            grids.append(cells.grid(found, f"from-{init}", CHAIN.format(label), rows, list(rows[0].cells), label))
    return grids


def _held_out(account: Account, variant: str) -> int | None:
    """Instructions that a variant's picks leave out so that forgetting can be measured on them."""
    drops = account.select_drops.get(variant)
    return None if drops is None else sum(drop.count for drop in drops if drop.reason == HELD_OUT)


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
        "difference": lambda told: told.partition(" [")[0],
        "ends": lambda told: "".join(told.partition(" [")[1:]).strip(),
        "cut": lambda text: text if len(text) <= ITEM_CHARACTERS else text[:ITEM_CHARACTERS] + "…",
    }

    def drawing(figure: Figure) -> "Markup":
        return Markup(figure.svg)  # drawn here; text in it is escaped by the XML writer

    found = account.found
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    few = len(found.variants) <= FEW
    frontiers = {one.family: one for one in results.frontiers(found)}
    marks = {family: scatter.marks(one, found.models) for family, one in frontiers.items()}
    shown = next(iter(marks.values()), [])
    rehearsed = [name for name in found.variants if name != found.reference]
    return environment.get_template("report.html.jinja").render(
        style=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        account=account,
        found=found,
        params=params,
        script=Markup(script),
        policy=policy(script),
        few=few,
        label=lambda name: findings.label_of(found, name),
        sides=cells.sides(found, found.rows),
        grid=cells.grid(found, "results", GRID, found.rows, found.variants) if found.rows else None,
        tasks=cells.lines_of(found, found.rows),
        tables=[(table, cells.table_lines(table)) for table in found.tables],
        categories=cells.category_grids(found),
        measured=cells.measured(found),
        moved=cells.moved(found),
        moved_sides=[cells.SHORT[side] for side in cells.moved_sides(found)],
        lost=lost.lost(found),
        no_text=lost.NO_TEXT,
        score_sentences={name: findings.score_sentences(found, name) for name in found.variants},
        rehearsal_sides=cells.sides(found, found.against_reference),
        rehearsal_grid=cells.grid(
            found, "rehearsal-results", AGAINST, found.against_reference, rehearsed, findings.label_of(found, reference)
        )
        if (reference := found.reference)
        else None,
        rehearsal_variants=rehearsed,
        unrehearsed=[
            findings.label_of(found, name) for name in rehearsed if found.models[name].rehearsal in (None, "none")
        ],
        chain=findings.chain_findings(found, values=False),
        chain_grids=_chain_grids(found),
        frontiers=frontiers,
        numbered=_numbered(list(marks.values())),
        footnotes=cells.footnotes,
        panels=_panels(account),
        kinds=_kinds(account),
        held_out=lambda variant: _held_out(account, variant),
        findings=findings.findings(found),
        rehearsal=findings.rehearsal_findings(found, values=False),
        contests=[contest for contest in account.contests if len(contest.wins) > 1],
        sums={variant: sum_up(found, variant) for variant in found.variants},
        colours={variant: i % COLOURS + 1 for i, variant in enumerate(found.variants)}
        | {mark.point.variant: mark.colour + 1 for mark in shown},
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
