"""What the hub's cards of a training set and of a model have in common: licences by its ids, tables, rows by source."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from anamnesis.records import licences_of

Rows = Sequence[Mapping[str, Any]]  # of records.MIXED

# Licences as people write them, to the hub's own ids; what is not here is `other` there, with its name in the card.
HUB_LICENCES = {
    key.casefold(): hub
    for key, hub in {
        "Apache-2.0": "apache-2.0",
        "MIT": "mit",
        "BSD-3-Clause": "bsd-3-clause",
        "CC0": "cc0-1.0",
        "CC0-1.0": "cc0-1.0",
        "CC-BY-4.0": "cc-by-4.0",
        "CC BY 4.0": "cc-by-4.0",
        "CC-BY-SA-3.0": "cc-by-sa-3.0",
        "CC-BY-SA-4.0": "cc-by-sa-4.0",
        "CC-BY-NC-4.0": "cc-by-nc-4.0",
        "CC-BY-NC-SA-4.0": "cc-by-nc-sa-4.0",
        "ODC-BY": "odc-by",
        "ODC-BY-1.0": "odc-by",
        "Llama-3": "llama3",
    }.items()
}


def hub_licences(licences: Iterable[str | None]) -> dict[str, Any]:
    """The card's metadata for what is under all of these licences; a row may itself be under several."""
    each = {one for licence in licences for one in licences_of(licence)}
    found = sorted({HUB_LICENCES.get(one.casefold(), "other") for one in each})
    metadata: dict[str, Any] = {"license": found[0] if len(found) == 1 else found}
    return metadata | ({"license_name": "mixed", "license_link": "README.md"} if "other" in found else {})


def sources(mixed: Rows) -> list[tuple[str, ...]]:
    """Source, author, licence, rows and tokens of every kind of row."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row in mixed:
        groups[row["source"], row["member"] or "–", row["licence"] or "unknown"].append(row["tokens"] or 0)
    return [(*key, str(len(groups[key])), str(sum(groups[key]))) for key in sorted(groups)]


def licence_list(mixed: Rows) -> str:
    """A line for each licence with the count of its rows, the commonest first."""
    counted = Counter(row["licence"] or "unknown" for row in mixed)
    ranked = sorted(counted.items(), key=lambda item: (-item[1], item[0]))
    return "\n".join(f"- {licence}: {count} rows" for licence, count in ranked)


def table(header: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|").replace("\n", " ") for cell in row) + " |" for row in rows
    )


def plain_address(url: str) -> str:
    """A server's address without user name, password and query."""
    parts = urlsplit(url)
    host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
    return urlunsplit((parts.scheme, host, parts.path, "", ""))
