"""Stage select beside pandas and polars doing the same: Parquet files in, one out, two threads each.

Run: python -m bench.select [--json] [--instructions N] [--turns N]     (some 5 minutes and 1 GB of disk below .bench)

100,000 instructions, 9 responses each (3 members, 3 samples), 3 judges: 900,000 responses and 2,700,000 votes of 1..5
with reasons, in the stage's own files. The texts are walks over a made-up vocabulary in which each word has its likely
followers, so that they compress as prose does. Ours is `stages.select.select`, as the stage runs it, rule `mean`; the
peers are bench/peers/select_pandas.py and select_polars.py. Each run is a process of its own on two processors, they
take turns, and the seconds are medians, imports left out; processor seconds are shown beside them, since they depend
less on what else the machine does. The three files must say the same, row by row.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from anamnesis import records
from anamnesis.params import Params
from bench import finish, tell
from bench.client import python_of

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / ".bench"
INSTRUCTIONS = 100_000
TURNS = 3
THREADS = 2
MEMBERS = ["alpha", "beta", "gamma"]  # and the judges
SYLLABLES = "ba ke lo mi nu ra ste vor ti sha len do qui per an el or is".split()
FOLLOWERS = 60
WALK = 4_000_000  # words


class Prose:
    """Texts of a made-up language: pieces of one long walk, each begun and ended anywhere."""

    def __init__(self, seed: int):
        self.draw = np.random.default_rng(seed)
        words = sorted({"".join(self.draw.choice(SYLLABLES, size=self.draw.integers(1, 4))) for _ in range(4000)})
        following = self.draw.integers(0, len(words), size=(len(words), FOLLOWERS)).tolist()
        steps = np.minimum((self.draw.pareto(1.1, size=WALK) * 3).astype(int), FOLLOWERS - 1).tolist()
        at, walk = 0, []
        for step in steps:
            at = following[at][step]
            walk.append(words[at])
        self.walk = " ".join(walk)

    def texts(self, count: int, characters: int) -> pa.Array:
        """`count` texts, log-normal in length around so many characters."""
        lengths = np.clip(self.draw.lognormal(np.log(characters), 0.6, count), 10, 12 * characters).astype(int)
        starts = self.draw.integers(0, len(self.walk) - 12 * characters, count)
        return pa.array([self.walk[a : a + n].strip() for a, n in zip(starts.tolist(), lengths.tolist(), strict=True)])


def make(folder: Path, count: int) -> None:
    """Write the data of a run with so many instructions; 3 % of the responses are cut, 2 % of the votes missing."""
    prose, draw = Prose(17), np.random.default_rng(18)

    def write(path: str, schema: pa.Schema, key: str, columns: dict[str, Any]) -> None:
        rows = len(columns[key])
        constant = {"finish_reason": "stop", "tokens": 150, "status": "ok", "parse": "strict", "reason": None}
        full = {name: pa.array([constant.get(name)] * rows, schema.field(name).type) for name in schema.names}
        records.write(folder / f"data/{path}.parquet", pa.table(full | columns).select(schema.names), schema, [key])

    asked = [records.digest("instruction", place) for place in range(count)]
    columns = {"instruction_id": asked, "text": prose.texts(count, 120)}
    write("conversations", records.CONVERSATIONS, "instruction_id", columns)
    records.write(folder / "data/borrowed.parquet", [], records.BORROWED, ["instruction_id"])
    everything: list[str] = []
    for member in MEMBERS:
        ids = [records.digest("response", name, member, index) for name in asked for index in range(3)]
        status = np.where(draw.random(len(ids)) < 0.03, "truncated", "ok")
        columns = {"response_id": ids, "instruction_id": [name for name in asked for _ in range(3)]}
        columns |= {"member": [member] * len(ids), "sample_index": [0, 1, 2] * count}
        columns |= {"text": prose.texts(len(ids), 700), "status": status}
        write(f"responses/{member}", records.RESPONSES, "response_id", columns)
        everything += ids
    for judge in MEMBERS:
        scores = draw.integers(1, 6, len(everything)).astype(float)
        missing = draw.random(len(everything)) < 0.02
        columns = {"response_id": everything, "judge": [judge] * len(everything)}
        columns |= {"score": pa.array(scores, mask=missing), "justification": prose.texts(len(everything), 160)}
        write(f"judgments/{judge}", records.JUDGMENTS, "response_id", columns)


def params() -> Params:
    """Those of params.yaml with one variant, three members that judge as well, and nothing held out."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw |= {"seed": 17, "target": "alpha", "models": {name: {"uri": f"path:{name}"} for name in MEMBERS}}
    raw |= {"committee": {name: {} for name in MEMBERS}, "judges": {name: {} for name in MEMBERS}}
    variant = {"rehearsal": "reconstructed", "members": MEMBERS, "judges": MEMBERS, "rule": "mean"}
    raw |= {"select": {"heldout": 0.0, "min_votes": 2}, "variants": {"ours": variant}}
    return Params.model_validate(raw)


def ours() -> None:
    """The stage in this process and folder; its time and memory as JSON."""
    from stages.select import select

    told = params()
    start, used = time.perf_counter(), time.process_time()
    select(told, THREADS)
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    os.replace("data/selected/ours.parquet", "ours.parquet")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mb": peak}))


def run(way: str, folder: Path) -> dict[str, float]:
    """One way in a process of its own: seconds, and its greatest resident memory in MiB."""
    python = python_of("polars") if way == "polars" else Path(sys.executable)
    script = ["-m", "bench.select", "--ours"] if way == "ours" else [str(ROOT / f"bench/peers/select_{way}.py"), "."]
    processors = sorted(os.sched_getaffinity(0))[:THREADS]
    done = subprocess.run(
        [python, *script],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "POLARS_MAX_THREADS": str(THREADS)},
        preexec_fn=lambda: os.sched_setaffinity(0, processors),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    print(f"{way}: {found['seconds']:.1f} s, {found['peak_mb']:.0f} MiB", file=sys.stderr, flush=True)
    return found


def compare(folder: Path, ways: list[str]) -> int:
    """How many instructions kept a response. Stops where two ways differ in a row."""
    names = [name for name in records.SELECTED.names if name not in ("value", "runner_up_value")]  # both are the mean

    def rows(way: str) -> list[dict[str, Any]]:
        told = pq.read_table(folder / f"{way}.parquet", columns=names).select(names).to_pylist()
        dropped = ("instruction_id", "status", "reason")  # the rest is null, or NaN in pandas
        return [row if row["response_id"] else {key: row[key] for key in dropped} for row in told]

    expected = rows("ours")
    for way in ways:
        for row, right in zip(rows(way), expected, strict=True):
            if row != right:
                raise SystemExit(f"{way} differs from ours: {row} {right}")
    return sum(row["status"] == "ok" for row in expected)


def main() -> None:
    parser = argparse.ArgumentParser(description="Stage select beside pandas and polars")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--instructions", type=int, default=INSTRUCTIONS)
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--ours", action="store_true", help=argparse.SUPPRESS)  # this process is the stage's own
    options = parser.parse_args()
    if options.ours:
        ours()
        return
    BENCH.mkdir(exist_ok=True)
    python_of("polars")
    runs: dict[str, list[dict[str, float]]] = {"ours": [], "pandas": [], "polars": []}
    with tempfile.TemporaryDirectory(dir=BENCH) as place:
        folder = Path(place)
        (folder / "stages").symlink_to(ROOT / "stages")
        make(folder, options.instructions)
        for turn in range(options.turns):
            for way in list(runs)[:: -1 if turn % 2 else 1]:
                runs[way].append(run(way, folder))
        kept = compare(folder, list(runs))
    seconds = {way: median(one["seconds"] for one in some) for way, some in runs.items()}
    cpu = {way: median(one["cpu_s"] for one in some) for way, some in runs.items()}
    peak = {way: max(one["peak_mb"] for one in some) for way, some in runs.items()}
    tell(
        f"{options.instructions} instructions, 9 responses, 3 judges, {THREADS} threads",
        ["", "seconds", "from", "to", "÷ ours", "processor seconds", "peak MiB"],
        [
            [
                way,
                seconds[way],
                min(one["seconds"] for one in some),
                max(one["seconds"] for one in some),
                seconds[way] / seconds["ours"],
                cpu[way],
                round(peak[way]),
            ]
            for way, some in runs.items()
        ],
    )
    finish(
        {
            "seconds": seconds["ours"],
            "peak_mb": peak["ours"],
            "ratio_pandas": seconds["pandas"] / seconds["ours"],
            "ratio_polars": seconds["polars"] / seconds["ours"],
            "cpu_s": cpu["ours"],
            "cpu_s_pandas": cpu["pandas"],
            "cpu_s_polars": cpu["polars"],
            "peak_mb_pandas": peak["pandas"],
            "peak_mb_polars": peak["polars"],
            "kept": kept,
        }
    )


if __name__ == "__main__":
    main()
