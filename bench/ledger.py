"""What the ledger costs: a million answers written and looked up, beside what people write instead.

Run: python -m bench.ledger [--json] [--rows N]     (some 4 minutes and 3 GB of disk below .bench)

Each way of keeping answers works in a process of its own on a fresh file: our Ledger through put_many, 64 answers at
once for the bulk and then 16 and 1 at once on the file that holds them (the client commits whatever came in within one
turn of its event loop: mostly one, more under load); a JSON line appended and flushed an answer; SQLite as it comes,
with a commit a row. What is timed is the writing alone, not the making of the answers. `resume` is the time that a
rerun needs to learn which of its calls are answered, half of them being so.
"""

import argparse
import hashlib
import json
import random
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from anamnesis.ledger import Answer, Ledger, Record
from bench import finish, tell

ROOT = Path(__file__).resolve().parent.parent
ROWS = 1_000_000
SINGLES = 20_000  # rows for a batch size beside the bulk's
COMMITTED = 2_000  # rows for SQLite with a commit each, which waits for the disk
ASKED = 54_000  # calls of a rerun: 2,000 instructions, 9 responses, 3 judges
WORDS = "plain river stone under quiet morning light walks toward seven green doors while nobody counts them".split()
CHARACTERS = 600
MIB = 1 << 20


def key_at(index: int) -> str:
    return hashlib.sha256(str(index).encode()).hexdigest()


def record_at(index: int) -> Record:
    """An answer of some 600 characters to a call of its own."""
    words = random.Random(index).choices(WORDS, k=CHARACTERS * len(WORDS) // len(" ".join(WORDS)))
    return Record(key_at(index), "bench:model", "chat", Answer(" ".join(words), "stop", 180, len(words)), 1.5)


def timed(write: Callable[[list[Record]], object], first: int, rows: int, at_once: int) -> float:
    """Rows a second of writing rows first … first + rows, so many at once; making them is not counted."""
    seconds = 0.0
    records = map(record_at, range(first, first + rows))
    while batch := list(islice(records, at_once)):
        start = time.perf_counter()
        write(batch)
        seconds += time.perf_counter() - start
    return rows / seconds


def asked_keys(rows: int) -> list[str]:
    """Keys of a rerun, every other one answered."""
    draw = random.Random(17)
    return [key_at(draw.randrange(rows)) if place % 2 else f"{place:064x}" for place in range(min(ASKED, rows))]


def in_ledger(folder: Path, rows: int) -> dict[str, float]:
    path, keys = folder / "ledger.sqlite", asked_keys(rows)
    with Ledger(path) as ledger:
        writes = timed(ledger.put_many, 0, rows, 64)
        size = sum(file.stat().st_size for file in folder.iterdir())
        sixteen = timed(ledger.put_many, rows, SINGLES, 16)
        single = timed(ledger.put_many, rows + SINGLES, SINGLES, 1)
    start = time.perf_counter()
    with Ledger(path) as ledger:
        known = ledger.known(keys)
        resume = time.perf_counter() - start
        start = time.perf_counter()
        found = ledger.get_many(keys)
        lookups = len(keys) / (time.perf_counter() - start)
    assert known == found.keys() == set(keys[1::2])
    return {
        "writes_per_s": writes,
        "writes_per_s_16": sixteen,
        "writes_per_s_single": single,
        "lookups_per_s": lookups,
        "known_per_s": len(keys) / resume,
        "resume_s": resume,
        "file_mib": size / MIB,
    }


def in_lines(folder: Path, rows: int) -> dict[str, float]:
    path, keys = folder / "answers.jsonl", asked_keys(rows)
    with path.open("a", encoding="utf-8") as file:

        def write(records: list[Record]) -> None:
            for record in records:
                file.write(json.dumps(asdict(record)) + "\n")
                file.flush()

        writes = timed(write, 0, rows, 1)
    start = time.perf_counter()
    with path.open(encoding="utf-8") as file:
        answers = {row["key"]: row["answer"] for row in map(json.loads, file)}
    known = {key for key in keys if key in answers}
    resume = time.perf_counter() - start
    assert known == set(keys[1::2])
    return {"writes_per_s_single": writes, "resume_s": resume, "file_mib": path.stat().st_size / MIB}


def in_rollback(folder: Path, rows: int) -> dict[str, float]:
    rows = min(rows, COMMITTED)
    db = sqlite3.connect(folder / "plain.sqlite", isolation_level=None)
    db.execute("CREATE TABLE answers (key TEXT PRIMARY KEY, model TEXT, answer TEXT, latency_s REAL)")

    def write(records: list[Record]) -> None:
        for record in records:
            values = (record.key, record.model, json.dumps(asdict(record.answer)), record.latency_s)
            db.execute("INSERT INTO answers VALUES (?, ?, ?, ?)", values)

    return {"writes_per_s_single": timed(write, 0, rows, 1)}


WAYS = {"ledger": in_ledger, "JSON lines": in_lines, "SQLite as it comes": in_rollback}


def apart(way: str, rows: int) -> dict[str, Any]:
    """One way in a process of its own, with its greatest resident memory."""
    (ROOT / ".bench").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=ROOT / ".bench") as folder:
        line = [sys.executable, "-m", "bench.ledger", "--way", way, folder, "--rows", str(rows)]
        done = subprocess.run(line, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description="Our ledger beside plain ways of keeping answers")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rows", type=int, default=ROWS)
    parser.add_argument("--way", nargs=2, help=argparse.SUPPRESS)  # one way and its folder: this process is its own
    options = parser.parse_args()
    rows = options.rows
    if options.way:
        way, folder = options.way
        figures = WAYS[way](Path(folder), rows)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # KiB on Linux
        print(json.dumps(figures | {"peak_rss_mib": peak}))
        return
    found = {way: apart(way, rows) for way in WAYS}
    ledger, lines, rollback = found.values()
    names = ["writes_per_s", "writes_per_s_16", "writes_per_s_single", "lookups_per_s", "known_per_s", "resume_s"]
    names += ["file_mib", "peak_rss_mib"]
    tell(f"{rows} answers", ["", *found], [[name, *(way.get(name) for way in found.values())] for name in names])
    finish(
        ledger
        | {
            "rows": rows,
            "ratio_lines": ledger["writes_per_s_single"] / lines["writes_per_s_single"],
            "ratio_rollback": ledger["writes_per_s_single"] / rollback["writes_per_s_single"],
            "ratio_resume": lines["resume_s"] / ledger["resume_s"],
            "ratio_rss": lines["peak_rss_mib"] / ledger["peak_rss_mib"],
        }
    )


if __name__ == "__main__":
    main()
