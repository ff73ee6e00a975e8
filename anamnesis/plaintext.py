"""The report as Markdown and as a terminal table, from one `Account`: what page.py shows, in plain text.

Nothing in it depends on the clock: equal inputs give equal bytes.
"""

import textwrap
from typing import TYPE_CHECKING

from anamnesis import findings, likeness, pairing, results, tallies, wording
from anamnesis.accounts import Account
from anamnesis.results import Results

if TYPE_CHECKING:
    from rich.console import RenderableType

TERMINAL_WIDTH = 120
VARIANTS_A_TABLE = 3  # in a terminal


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


def markdown(account: Account) -> str:
    """The report as Markdown that reads as plain text in a terminal of 120 columns."""
    found = account.found
    blocks = ["# What was learnt, what was forgotten"]
    for variant, sentences in findings.findings(found).items():
        lead = f"- **{variant}**: {sum_up(found, variant)}."
        blocks.append("\n".join([_wrapped(lead, ""), *(_wrapped(text, "  ") for text in sentences)]))
    blocks.append(wording.markdown_table(findings.HEADER, findings.table(found), right=(2,)))
    blocks.append(
        _wrapped(
            "Intervals are 95 % bootstrap intervals of the paired difference to base over the items, from one training "
            f'run; {found.comparisons} comparisons were made, none is corrected for the others. "No difference shown" '
            "means that the items at hand don't settle it. A distance from base is 0 for base alone, so it gets no "
            "verdict: compare the variants by it.",
            "",
        )
    )
    if told := findings.rehearsal_findings(found):
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
            blocks.append(wording.markdown_table(table.header, short, table.numbers))
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
                cells.append(text.append(f"\n{findings.interval(cell, row.decimals)}", "dim"))
            label = Text(row.label).append(f"\n{row.spec.unit} {row.arrow} n={row.n}", "dim")
            table.add_row(label, f"{row.base:.{row.decimals}f}", *cells)
        tables.append(table)
    return Group(*tables)
