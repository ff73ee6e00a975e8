"""How numbers and foreign text are written: one printable line, signs, Markdown tables, rounded metrics."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 6  # of numbers in metrics files

_ANSI = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(text: object) -> str:
    """One printable line: terminal sequences, control and direction characters removed, white space collapsed."""
    return " ".join(_CONTROL.sub(" ", _ANSI.sub("", str(text))).split())


def markdown_cell(text: object) -> str:
    """`plain` text that can't end a Markdown cell or start an HTML tag."""
    return plain(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "'")


def signed(value: float, decimals: int) -> str:
    """A number with its sign, no sign on what rounds to zero."""
    text = f"{value:+.{decimals}f}"
    return text[1:] if float(text) == 0 else text


def rounded(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Floats rounded to `DIGITS` digits, without negative zeros."""
    return {key: round(value, DIGITS) + 0.0 if isinstance(value, float) else value for key, value in flat.items()}


def markdown_table(
    header: Sequence[str], lines: Sequence[Sequence[str]], right: Sequence[int] = (), padded: bool = True
) -> str:
    """A Markdown table, padded so that it reads as plain text too; `right` are the columns set flush right."""
    cells = [[markdown_cell(cell) for cell in line] for line in [header, *lines]]
    widths = [max(3, *(len(line[i]) for line in cells)) if padded else 3 for i in range(len(header))]

    def line_of(parts: Sequence[str]) -> str:
        padded = [part.rjust(widths[i]) if i in right else part.ljust(widths[i]) for i, part in enumerate(parts)]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (width - 1) + ":") if i in right else "-" * width for i, width in enumerate(widths)]
    return "\n".join([line_of(cells[0]), line_of(rule), *map(line_of, cells[1:])])
