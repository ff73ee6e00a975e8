"""The distances of stage distribution between public sets: what they are for sets that are known to differ, or not.

Run: python -m bench.distribution [--json]      (two minutes; needs the public sets under SHARED_DATA or ../shared/data)
Each pair is a seeded sample of so many instructions of both sets; `halves` is one set cut in two by id.
"""

import json
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from anamnesis.distribution import Collection, distance, sample
from anamnesis.embedding import embed
from anamnesis.errors import UserError, run
from anamnesis.instruction_types import instruction_types
from anamnesis.records import digest
from bench import finish, tell
from bench.types import shared_data

SETS = {"dolly": "dolly3k", "gpteacher": "gpteacher", "arena": "arena_hard500_gpt4"}
INSTRUCTIONS = 500  # of a set: arena has no more
SEED = 17
RESAMPLES = 1000


def collect(folder: Path, file: str, count: int) -> Collection:
    """A sample of one public set."""
    path = folder / "rehearsal" / f"{file}.jsonl"
    if not path.is_file():
        raise UserError(f"{path}: not found; SHARED_DATA names the folder with the public sets")
    with path.open(encoding="utf-8") as lines:
        texts = dict.fromkeys(json.loads(line)["instruction"] for line in lines)
    chosen = sample({digest("instruction", text): text for text in texts}, count, SEED)
    return Collection(list(chosen), instruction_types(list(chosen.values())), embed(list(chosen.values())))


def main() -> None:
    folder = shared_data()
    sets = {name: collect(folder, file, INSTRUCTIONS) for name, file in SETS.items()}
    pairs = {f"{a}.{b}": (sets[a], sets[b]) for a, b in combinations(sets, 2)}
    for name, file in SETS.items():
        whole = collect(folder, file, 2 * INSTRUCTIONS)
        middle = len(whole) // 2
        pairs[f"{name}.halves"] = whole.take(range(middle)), whole.take(range(middle, len(whole)))
    figures: dict[str, Any] = {}
    lines = []
    for name, (a, b) in pairs.items():
        apart = distance(a, b, RESAMPLES, SEED)
        row: dict[str, Any] = {"instructions": min(len(a), len(b))}
        for key, found in (("types_js", apart.types_js), ("auc", apart.auc)):
            assert found is not None, "these sets are large enough"
            row |= {key: found.value, f"{key}_low": found.low, f"{key}_high": found.high}
        row |= {"mmd2": apart.mmd2, "mmd_p": apart.mmd_p}
        figures |= {f"{name}.{key}": value for key, value in row.items()}
        lines.append([name, *row.values()])
    tell("public sets against each other", ["pair", *row], lines)
    finish(figures)


if __name__ == "__main__":
    run(main, kept="nothing is kept")
