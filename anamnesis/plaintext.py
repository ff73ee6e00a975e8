"""The report as Markdown and as a terminal table, from one `Account`: what page.py shows, in plain text.

Nothing in it depends on the clock: equal inputs give equal bytes.
"""

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anamnesis import findings, likeness, pairing, results, tallies, wording
from anamnesis.accounts import Account
from anamnesis.measures import spec
from anamnesis.results import Results
from anamnesis.scores import PAPER_FOUR
from anamnesis.tables import Entry, Table

if TYPE_CHECKING:
    from rich.console import RenderableType

TERMINAL_WIDTH = 120
VARIANTS_A_TABLE = 3  # in a terminal
VARIANTS_IN_ALL = 6  # measure by measure, in a terminal
MOST_CHARACTERS = 65_000  # of the Markdown: a comment on a pull request holds 65,536


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %"


# ---------------------------------------------------------------------------------------------------------- Markdown


def sum_up(found: Results, variant: str) -> str:
    verdicts = [row.verdict(variant) for row in found.rows if row.measure not in pairing.DISTANCES]
    return (
        f"better on {verdicts.count('better')}, worse on {verdicts.count('worse')}, "
        f"no difference shown on {verdicts.count(results.NOT_SHOWN)} of {len(verdicts)} measures"
    )


def probe_sentence(funnel: tallies.Funnel) -> str:
    """How many samples were kept, and which share of the answered ones passed the filters."""
    share = (
        "none was answered"
        if funnel.pass_share is None
        else f"{percent(funnel.pass_share)} of the answered ones passed"
    )
    return f"{funnel.asked} samples were probed and {funnel.kept} instructions kept; {share}."


def votes_sentence(judge: tallies.JudgeTally) -> str:
    """How many votes a judge gave, and how many are missing."""
    mean = "" if judge.mean is None else f", mean score {judge.mean:.2f}"
    return f"Judge {judge.judge}: {judge.scored} of {judge.asked} votes{mean}, {judge.missing} missing."


def drops_sentence(found: list[tallies.Drop]) -> str:
    """Reasons with their counts, most first."""
    return ", ".join(f"{wording.plain(drop.reason)} {drop.count}" for drop in found) or "nothing"


def _ways_table(account: Account) -> str:
    lines = [[way.variant, *(str(count) if count is not None else "–" for count in way.left.values())]
             for way in account.ways]  # fmt: skip
    return wording.markdown_table(["variant", *tallies.STEPS], lines, right=range(1, len(tallies.STEPS) + 1))


@dataclass(frozen=True)
class Section:
    """A part of the Markdown; of those that must go, the one with the highest `rank` goes first."""

    title: str  # empty: no heading
    text: str
    rank: int


def markdown(account: Account) -> str:
    """The report as Markdown: plain text of 120 columns in a terminal, a comment on a pull request through CML.

    A comment holds `MOST_CHARACTERS`: what would be longer loses the padding of its tables, then whole sections, and
    says so at the top.
    """
    sections = _sections(account, padded=True)
    if _size(_joined(sections)) > MOST_CHARACTERS:
        sections = _sections(account, padded=False)
    dropped: list[str] = []
    text = _joined(sections)
    while _size(text) > MOST_CHARACTERS and len(sections) > 1:
        least = max(sections, key=lambda section: section.rank)
        sections = [section for section in sections if section is not least]
        dropped.insert(0, least.title)
        text = _joined(sections, dropped)
    if _size(text) > MOST_CHARACTERS:  # one section alone is too long: its first lines
        kept = text.encode()[: MOST_CHARACTERS - 100].decode(errors="ignore").rpartition("\n")[0]
        text = f"{kept}\n\nCut here; report.html has the rest.\n"
    return text


def _size(text: str) -> int:
    """Bytes: at least as many as characters, whichever of the two a server counts."""
    return len(text.encode())


def _joined(sections: list[Section], dropped: Sequence[str] = ()) -> str:
    blocks = ["# What was learnt, what was forgotten"]
    if dropped:
        titles = "; ".join(dropped)
        told = f"Cut to fit a comment of 65,536 characters. Left out: {titles}. report.html has everything."
        blocks.append(_wrapped(told, ""))
    for section in sections:
        blocks += [f"## {section.title}"] if section.title else []
        blocks.append(section.text)
    blocks.append("The page with figures and examples: report.html")
    return "\n\n".join(blocks) + "\n"


def _listed(sentences: Iterable[str]) -> str:
    return "\n".join(_wrapped(f"- {text}", "") for text in sentences)


def _sections(account: Account, padded: bool) -> list[Section]:
    """Everything that the Markdown says, in order; a section without anything to say is left out."""
    found = account.found
    called = {name: wording.markdown_cell(findings.label_of(found, name)) for name in found.variants}
    told = []
    for variant, sentences in findings.findings(found).items():
        lead = f"- **{called[variant]}**: {sum_up(found, variant)}."
        told.append("\n".join([_wrapped(lead, ""), *(_wrapped(text, "  ") for text in sentences)]))
    result = wording.markdown_table(findings.HEADER, findings.table(found), right=(2,), padded=padded)
    against = [f"**{called[name]}**: {text}" for name, text in findings.rehearsal_findings(found).items()]
    chained = [f"**{called[name]}**: {text}" for name, text in findings.chain_findings(found).items()]
    changed = [f"**{called[name]}**: {findings.changed_sentence(found, name)}." for name in found.variants]
    counts = [probe_sentence(account.funnel), *map(votes_sentence, account.judges)]
    judges = [_listed([*account.trust.sentences, *account.trust.control_sentences])]
    for table in account.trust.tables:
        if table.name in ("agreement", "preferences"):
            short = [[cell.partition(":")[0] for cell in line] for line in table.lines]  # the reasons are in sentences
            judges.append(wording.markdown_table(table.header, short, table.numbers, padded))
    taken = [(way.variant, way.drops) for way in account.ways] + [("the domain", account.domain_drops)]
    drops = [f"Taken out of {name} before the mix: {drops_sentence(of)}." for name, of in taken]
    reference = f"Against {found.reference}, which rehearsed nothing"
    sections = [
        Section("", "\n\n".join(told), 0),
        Section("Learning, forgetting, net", _scores(found, padded), 1),
        *(Section(table.title, _paper_table(table, padded), 2) for table in found.tables if _is_narrow(table)),
        Section("Measure by measure", f"{result}\n\n{_wrapped(_caution(found), '')}", 5),
        Section(reference, _listed(against), 4),
        Section("Against the variant that each continued one started from", _listed(chained), 4),
        Section("Items gained and lost against base", _listed(changed if found.changes else []), 6),
        Section("Instructions and votes", _listed(counts), 7),
        Section("Can the judges be trusted?", "\n\n".join(judges), 8),
        Section("From probe to training set", f"{_ways_table(account)}\n\n{_listed(drops)}" if account.ways else "", 9),
        Section("Instructions beside other sets", _listed(likeness.sentences(account.likeness)), 10),
    ]
    return [section for section in sections if section.text]


def _caution(found: Results) -> str:
    """How to read the result table."""
    seeded = any(len(model.seeds) > 1 for model in found.models.values())
    return (
        "Intervals are 95 % bootstrap intervals of the paired difference to base over the items, from one training "
        f"run{' (the main seed)' if seeded else ''}. "
        '"No difference shown" means that the items at hand don\'t settle it: the interval covers 0, or an exact '
        f"test gives p above 0.05, which is then noted. {found.comparisons} comparisons were made; Holm's adjustment "
        "is over the measures of one model, and a verdict that it takes back is noted with its p. A distance from base "
        "is 0 for base alone, so it gets no verdict: compare the variants by it."
    )


def _scores(found: Results, padded: bool) -> str:
    """Both tables of every unit, and what the words mean."""
    blocks = []
    for by_model in found.scores.values():
        some = next(iter(by_model.values()))
        over = [f"{name} over {', '.join(spec(measure).label for measure in score.measures)}"
                for name, score in (("learning", some.learning), ("forgetting", some.forgetting)) if score]  # fmt: skip
        blocks.append(_wrapped(f"In {some.unit}: {'; '.join(over)}.", ""))
        blocks.append(wording.markdown_table(findings.SCORE_HEADER, findings.score_table(by_model, found), (), padded))
        if kept := findings.kept_table(by_model, found):
            blocks.append(_wrapped(f"Of what {found.reference} forgot, in {some.unit}:", ""))
            blocks.append(wording.markdown_table(findings.KEPT_HEADER, kept, (), padded))
            blocks += [_wrapped(f"No share: {why}.", "") for why in findings.unshared(by_model)]
    if blocks:
        blocks.append(
            _wrapped(
                "Learning is the mean gain over the domain measures, forgetting the mean loss over the others (below "
                "0: a gain), net their difference; accuracies and bits per byte apart (docs/statistics.md). Items are "
                "resampled within each measure. A share is shown where the forgetting it is of leaves 0 out. Over "
                "seeds: mean, Student's 95 % interval over training seeds, and their standard deviation.",
                "",
            )
        )
    return "\n\n".join(blocks)


def _is_narrow(table: Table) -> bool:
    """Whether a table has the paper's columns: others say in Markdown no more than the scores do."""
    return any(column.label in PAPER_FOUR for column in table.columns)


def _paper_table(table: Table, padded: bool) -> str:
    """One of the paper's tables in per cent, the paper's number in brackets where it is known."""
    columns = [column for column in table.columns if column.unit == "%"]
    header = ["row", *(column.label for column in columns)]
    last = columns[-1]
    lines = []
    for line in table.lines:
        cells = [line.cells[column.key] for column in columns]
        name = f"{line.label} (for {line.stands_for})" if line.stands_for else line.label
        lines.append([name, *(_entry(cell, column.decimals) for cell, column in zip(cells, columns, strict=True))])
        if difference := _difference(cells[-1], last.decimals):
            lines.append(["", *("" for _ in columns[1:]), difference])
    notes = [*table.notes, *(["In brackets: the paper's."] if table.paper else [])]
    notes.append(f"Below {last.label}: its difference to base in points, with the interval over {last.n} items.")
    return "\n\n".join([wording.markdown_table(header, lines, (), padded), _listed(map(wording.markdown_cell, notes))])


def _entry(cell: Entry, decimals: int) -> str:
    own = "–" if cell.value is None else f"{cell.value:.{decimals}f}"
    return own if cell.paper is None else f"{own} ({cell.paper:.2f})"


def _difference(cell: Entry, decimals: int) -> str:
    """The difference to base with its interval; empty where there is none."""
    if cell.difference is None:
        return ""
    told = wording.signed(cell.difference, decimals)
    if cell.low is not None and cell.high is not None:
        told += f" [{wording.signed(cell.low, decimals)}, {wording.signed(cell.high, decimals)}]"
    return told


def _wrapped(text: str, indent: str) -> str:
    hanging = "  " if text.startswith("- ") else indent
    return textwrap.fill(text, TERMINAL_WIDTH, initial_indent=indent, subsequent_indent=hanging, break_on_hyphens=False)


# ---------------------------------------------------------------------------------------------------------- terminal


def terminal(found: Results) -> "RenderableType":
    """The result table for a terminal, measures down and variants across, then the scores with models down.

    Of more than `VARIANTS_IN_ALL` variants only the scores: a table of hundreds of lines is for report.md.
    """
    from rich import box
    from rich.console import Group
    from rich.table import Table as Grid
    from rich.text import Text

    colours = {"better": "green", "worse": "red"}
    parts: list[Any] = []
    shown = found.variants if len(found.variants) <= VARIANTS_IN_ALL else []
    for start in range(0, max(1, len(shown)) if shown or not found.variants else 0, VARIANTS_A_TABLE):
        variants = shown[start : start + VARIANTS_A_TABLE]
        table = Grid(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold")
        table.title = (
            "Against base, with 95 % intervals (↑ higher is better, ↓ lower is better)" if start == 0 else None
        )
        table.add_column("measure")
        for name in ("base", *variants):
            called = wording.plain(findings.label_of(found, name))
            table.add_column(Text(called), justify="right" if name == "base" else "left", no_wrap=True)
        for row in found.rows:
            cells = []
            for variant in variants:
                cell = row.cells[variant]
                text = Text(f"{cell.tuned:.{row.decimals}f} ")
                text.append(row.verdict(variant), colours.get(row.verdict(variant), "dim"))
                text.append(f"\n{findings.interval(cell, row.decimals)}", "dim")
                if note := findings.noted(row, variant):
                    text.append(f"\n({note})", "dim")
                cells.append(text)
            label = Text(row.label).append(f"\n{row.spec.unit} {row.arrow} n={row.n}", "dim")
            table.add_row(label, f"{row.base:.{row.decimals}f}", *cells)
        parts.append(table)
    if not shown and found.variants:
        parts.append(Text(f"{len(found.variants)} models: report.md and report.html have them measure by measure.\n"))
    for by_model in found.scores.values():
        unit = next(iter(by_model.values())).unit
        title = f"Learning, forgetting and net in {unit}, with 95 % intervals"
        table = Grid(box=box.SIMPLE_HEAD, pad_edge=False, title_justify="left", title_style="bold", title=title)
        for name in findings.SCORE_HEADER:
            table.add_column(name)
        for line in findings.score_table(by_model, found):
            table.add_row(*(Text(wording.plain(cell)) for cell in line))
        parts.append(table)
    return Group(*parts)
