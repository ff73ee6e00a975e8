"""What stage clean takes out of public instruction sets, how long it takes, and in how much memory.

Run: python -m bench.clean [--data FOLDER] [--json]
FOLDER has rehearsal/*.jsonl and domain/<name>/{train,test}.jsonl with the fields `instruction` and `response`, and
eval/<name>/ with evaluation sets (SHARED_DATA, or ../shared/data). Each file is cleaned as a rehearsal source, each
domain's training rows as a domain's.
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

from anamnesis import cleaning, records
from anamnesis.decontamination import Item, Overlap, read_set


def candidates(path: Path) -> pa.Table:
    """The rows of one file as candidates of stage clean."""
    rows = []
    with open(path, encoding="utf-8") as lines:
        for number, row in enumerate(map(json.loads, lines)):
            said = {"user": row["instruction"], "assistant": row["response"]}
            messages = [{"role": role, "content": text} for role, text in said.items()]
            rows.append({"row_id": str(number), "source": path.stem, "messages": messages, "status": "ok"})
    return cleaning.rehearsed(pa.Table.from_pylist(rows, records.REHEARSAL))


def main() -> None:
    parser = argparse.ArgumentParser(description="What stage clean takes out of public instruction sets.")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("SHARED_DATA", "../shared/data")))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    data: Path = arguments.data
    if not (data / "rehearsal").is_dir():
        sys.exit(f"error: {data}/rehearsal is not there; name a folder by --data or SHARED_DATA")
    found: dict[str, Any] = {}
    began = time.perf_counter()
    overlap = Overlap()
    for folder in sorted(path for path in (data / "eval").iterdir() if any(path.glob("*.jsonl"))):
        overlap.add(folder.name, read_set(folder.name, str(folder)))
    found["index"] = {"items": sum(overlap.sizes.values()), "seconds": round(time.perf_counter() - began, 1)}
    checks = [cleaning.overlap_check(overlap), cleaning.truncated_check, cleaning.refused_check]
    for path in sorted((data / "rehearsal").glob("*.jsonl")):
        began = time.perf_counter()
        cleaned = cleaning.clean(candidates(path), checks, 0.8, seed=17)
        found[path.stem] = cleaning.counts(cleaned) | {"seconds": round(time.perf_counter() - began, 1)}
    for folder in sorted((data / "domain").iterdir()):
        own = Overlap()
        with open(folder / "test.jsonl", encoding="utf-8") as lines:
            rows = [json.loads(line) for line in lines]
        own.add("domain-test", [Item((row["instruction"],), (row["response"],)) for row in rows])
        began = time.perf_counter()
        cleaned = cleaning.clean(
            candidates(folder / "train.jsonl"), [cleaning.overlap_check(own, "domain-test")], None, 17
        )
        found[folder.name] = cleaning.counts(cleaned) | {"seconds": round(time.perf_counter() - began, 1)}
    found["peak_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if arguments.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        print(f"{name}: {figures}")


if __name__ == "__main__":
    main()
