"""How often an instruction's type is right: the classifier of the page beside its two halves, on labelled instructions.

Run: python -m bench.types [--json]      (seconds; needs the public sets under SHARED_DATA or ../shared/data)
bench/type_labels.tsv names instructions by file and id, with the type that one reader gave each before any prediction
was looked at; the texts are read where they lie. `first` was drawn first: half of it chose the classifier's settings.
`fresh` was drawn and labelled when all was settled: its figures are the ones to quote.
"""

import csv
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anamnesis.embedding import embed
from anamnesis.errors import UserError, run
from anamnesis.instruction_types import TYPES, VECTOR_CHARACTERS, instruction_types, keyword_type
from anamnesis.prototypes import prototypes
from bench import finish, tell

ROOT = Path(__file__).resolve().parent.parent
LABELS = Path(__file__).with_name("type_labels.tsv")
FIELDS = {"eval/ifeval/test.jsonl": ("key", "prompt"), "eval/gsm8k/test.jsonl": ("id", "question")}


@dataclass(frozen=True)
class Labelled:
    sample: str  # first or fresh
    text: str
    type: str


def shared_data() -> Path:
    """Where the public sets lie."""
    return Path(os.environ.get("SHARED_DATA") or ROOT.parent / "shared" / "data")


def read_labelled(folder: Path) -> list[Labelled]:
    """Labels with their texts; an instruction that stands among the prototypes is left out.

    Raises `UserError` where a file of texts is missing.
    """
    with LABELS.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    texts: dict[tuple[str, str], str] = {}
    for name in dict.fromkeys(row["file"] for row in rows):
        key, field = FIELDS.get(name, ("id", "instruction"))
        if not (folder / name).is_file():
            raise UserError(f"{folder / name}: not found; SHARED_DATA names the folder with the public sets")
        with (folder / name).open(encoding="utf-8") as file:
            found = (json.loads(line) for line in file)
            texts |= {(name, str(row[key])): row[field] for row in found}
    known = {sentence.casefold() for _, sentence in prototypes()}
    pairs = [(row, texts[row["file"], row["id"]]) for row in rows]
    return [Labelled(row["sample"], text, row["type"]) for row, text in pairs if text.strip().casefold() not in known]


def by_vector(texts: Sequence[str]) -> list[str]:
    """The type by vectors alone: the same regression without keywords."""
    from sklearn.linear_model import LogisticRegression

    kinds, sentences = zip(*prototypes(), strict=True)
    fitted = LogisticRegression(C=3.0, class_weight="balanced", max_iter=3000)
    fitted.fit(embed(sentences, VECTOR_CHARACTERS), kinds)
    return list(fitted.predict(embed(texts, VECTOR_CHARACTERS)))


WAYS: dict[str, Callable[[Sequence[str]], list[str]]] = {
    "keywords": lambda texts: list(map(keyword_type, texts)),
    "vectors": by_vector,
    "both": instruction_types,
}


def accuracy(rows: Sequence[Labelled], said: Sequence[str]) -> dict[str, float]:
    """Share that is right with its Wilson interval, and the mean over the types of the share found of each."""
    from scipy.stats import binomtest

    right = np.array([row.type == kind for row, kind in zip(rows, said, strict=True)])
    interval = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    kinds = np.array([row.type for row in rows])
    found = [right[kinds == kind].mean() for kind in dict.fromkeys(kinds)]
    return {
        "accuracy": float(right.mean()),
        "low": float(interval.low),
        "high": float(interval.high),
        "mean_recall": float(np.mean(found)),
    }


def main() -> None:
    labelled = read_labelled(shared_data())
    figures: dict[str, Any] = {}
    for sample in dict.fromkeys(row.sample for row in labelled):
        rows = [row for row in labelled if row.sample == sample]
        said = {way: classify([row.text for row in rows]) for way, classify in WAYS.items()}
        scores = {way: accuracy(rows, kinds) for way, kinds in said.items()}
        tell(
            f"{sample}: {len(rows)} instructions",
            ["way", *scores["both"]],
            [[w, *s.values()] for w, s in scores.items()],
        )
        pairs = list(zip((row.type for row in rows), said["both"], strict=True))
        used = [kind for kind in TYPES if any(kind in pair for pair in pairs)]
        tell(
            f"{sample}, both: a line a label, a column a prediction",
            ["label", *used],
            [[label, *(pairs.count((label, kind)) for kind in used)] for label in used],
        )
        figures[f"{sample}.instructions"] = len(rows)
        for way, score in scores.items():
            figures |= {f"{sample}.{way}.{key}": value for key, value in score.items()}
    finish(figures)


if __name__ == "__main__":
    run(main, kept="nothing is kept")
