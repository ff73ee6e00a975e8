"""A made-up run's report, and its page taken apart: for the tests of page and report."""

import contextlib
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from stages import report

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Tree(HTMLParser):
    """Tags, attributes and text of a page; `cells` are the texts of the cells of each table by its id."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.cells: dict[str, list[list[str]]] = {}
        self.texts: list[str] = []
        self.table = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.table = dict(attrs)["id"] or ""
            self.cells[self.table] = []
        elif tag == "tr":
            self.cells[self.table].append([])
        elif tag in ("th", "td"):
            self.cells[self.table][-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += [(tag, key, value or "") for key, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data: str) -> None:
        self.texts.append(data)
        if ("th" in self.open or "td" in self.open) and self.table:
            self.cells[self.table][-1][-1] += data


def make(root: Path) -> None:
    with contextlib.chdir(root):
        report.main()


def numbers(text: str) -> list[float]:
    return [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text.replace("\u2212", "-"))]
