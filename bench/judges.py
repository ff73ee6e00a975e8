"""What can a judge tell, and how fast: modes, prompts and orders of judging beside each other, on planted faults.

Run: python -m bench.judges [--json] [--n 200] [--judges smollm2 …] [--modes expected score justify]
     [--prompts judge rubric short] [--orders response instruction] [--source rehearsal|own]

Every judge scores n genuine answers and those with planted faults (anamnesis/controls.py), through the functions of
stage judge and a vLLM server of its own, once for each mode, prompt and order. `--source rehearsal` takes public
instruction sets from ../shared/data/rehearsal (or below SHARED_DATA), `own` the responses of the last run in data/.
`--orders` says what stands last in the prompt. Models come from models/pretrained (`dvc repro models`).

Answers go into .bench/judges/ledger.sqlite and times into .bench/judges/times.jsonl, a block of instructions at a time:
a run that was stopped goes on where it was. Speed counts calls that were asked alone, the server being up and warm and
its cache of prefixes empty at the beginning of each block.
"""

import argparse
import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice, product, zip_longest
from pathlib import Path
from typing import Any

import httpx
import pyarrow as pa

from anamnesis import controls, judging, records
from anamnesis import params as settings
from anamnesis.client import Client
from anamnesis.errors import UserError, run
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.server import identity_of
from anamnesis.wire import Call
from bench import finish, tell
from stages import judge

ROOT = Path(__file__).resolve().parent.parent
HERE = ROOT / ".bench" / "judges"
SOURCES = ("dolly3k", "gpteacher", "arena_hard500_gpt4")
SHORTEST, LONGEST = 30, 600  # characters of an answer: it must have a fault planted, and fit with the rubric
LONGEST_ASKED = 400
BLOCK = 25  # instructions
RESAMPLES = 2000
BLOCK_OF = re.compile(r"<<<(message|answer) \$mark>>>\n.*?\n<<<end of \1 \$mark>>>", re.DOTALL)


@dataclass(frozen=True)
class Cell:
    """One way to judge."""

    judge: str
    mode: str
    prompt: str
    order: str

    def __str__(self) -> str:
        return f"{self.judge}, {self.mode}, {self.prompt}, {self.order} last"


def prompt_file(name: str, order: str) -> Path:
    """The prompt of this name with `order` last, written where the stage's functions read it."""
    source = ROOT / "prompts" / "judge.txt" if name == "judge" else ROOT / "bench" / "prompts" / f"{name}.txt"
    text = source.read_text(encoding="utf-8")
    if order == "instruction":
        message, answer = BLOCK_OF.finditer(text)
        text = text[: message.start()] + f"{answer.group()}\n\n{message.group()}" + text[answer.end() :]
    path = HERE / "prompts" / f"{name}-{order}.txt"
    records.write_text(path, text)
    return path


def from_rehearsal(count: int, seed: int) -> list[dict[str, Any]]:
    """Genuine pairs of the public sets in seeded hash order, equally many of each as far as a set has them."""
    folder = Path(os.environ.get("SHARED_DATA", ROOT.parent / "shared" / "data")) / "rehearsal"
    fitting = {source: _fitting(folder / f"{source}.jsonl", seed) for source in SOURCES}
    turns = chain.from_iterable(zip_longest(*([source] * len(rows) for source, rows in fitting.items())))
    shares = Counter(islice(filter(None, turns), count))
    return [
        pair(row["id"], row["instruction"].strip(), row["id"], row["response"].strip()) | {"member": source}
        for source, rows in fitting.items()
        for row in rows[: shares[source]]
    ]


def _fitting(path: Path, seed: int) -> list[dict[str, Any]]:
    """The rows of a set that are of the lengths asked for, one for each instruction."""
    if not path.exists():
        raise UserError(f"{path}: not found; set SHARED_DATA to the folder of public sets, or take --source own")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    fitting = {
        row["instruction"]: row
        for row in rows
        if SHORTEST <= len(row["response"].strip()) <= LONGEST and len(row["instruction"]) <= LONGEST_ASKED
    }
    return sorted(fitting.values(), key=lambda row: records.digest("bench.judges", seed, row["id"]))


def from_run(params: Params, count: int) -> list[dict[str, Any]]:
    """Complete responses of the last run, one an instruction."""
    rows = [
        row
        for member in params.members()
        for row in records.read(ROOT / f"data/responses/{member}.parquet", records.RESPONSES)
    ]
    conversations = records.read_table(ROOT / "data/conversations.parquet", records.CONVERSATIONS)
    one: dict[str, dict[str, Any]] = {}
    for row in judge.judged_of(params, "", conversations, [], rows):
        best = one.setdefault(row["instruction_id"], row)
        if (row["sample_index"], row["response_id"]) < (best["sample_index"], best["response_id"]):
            one[row["instruction_id"]] = row
    return list(islice(one.values(), count))


def pair(instruction_id: str, instruction: str, response_id: str, text: str) -> dict[str, Any]:
    return {
        "instruction_id": instruction_id,
        "instruction": instruction,
        "context": [],
        "response_id": response_id,
        "text": text,
        "sample_index": 0,
    }


def blocks(rows: Sequence[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Rows of BLOCK instructions at a time."""
    names = list(dict.fromkeys(row["instruction_id"] for row in rows))
    for start in range(0, len(names), BLOCK):
        ours = set(names[start : start + BLOCK])
        yield [row for row in rows if row["instruction_id"] in ours]


def warm(client: Client, call: Call) -> None:
    """Start the server and let it answer something; its cache of prefixes is empty then."""
    client.ask([replace(call, sample_index=time.time_ns())], "warm-up")
    assert client._endpoint
    root = client._endpoint.base_urls[0].removesuffix("/v1")
    httpx.post(f"{root}/reset_prefix_cache", trust_env=False).raise_for_status()


@dataclass(frozen=True)
class Told:
    """What a cell was told: the rows with their vote (`vote`, `tokens`), and judgments a second where any was timed."""

    rows: list[dict[str, Any]]
    rate: float | None


def measure(cells: Sequence[Cell], params: Params, rows: Sequence[dict[str, Any]]) -> dict[Cell, Told]:
    """Ask all cells of one judge; times go to times.jsonl."""
    told: dict[Cell, Told] = {}
    name = cells[0].judge
    with Ledger(HERE / "ledger.sqlite") as ledger, Client(f"models/pretrained/{name}", params, ledger) as client:
        identity = identity_of(client.card, params.serve)
        for cell in cells:
            one = params.judges[name].model_copy(update={"mode": cell.mode})
            ours = params.model_copy(update={"judges": {name: one}})
            path = prompt_file(cell.prompt, cell.order)
            asked = records.digest(cell, identity, path.read_text(encoding="utf-8"), [row["text"] for row in rows])
            answered: list[dict[str, Any]] = []
            for block in blocks(rows):
                calls = judge.calls_of(ours, client.card, block, path)
                new = len({call.key(identity) for call in calls}) - len(ledger.known([c.key(identity) for c in calls]))
                if new:
                    warm(client, calls[0])
                start = time.perf_counter()
                votes = judge.ask(client, one, calls)
                seconds = time.perf_counter() - start
                if new:
                    line = {"cell": str(cell), "asked": asked, "calls": new, "seconds": round(seconds, 3)}
                    with (HERE / "times.jsonl").open("a", encoding="utf-8") as times:
                        times.write(json.dumps(line) + "\n")
                    print(f"{cell}: {new / seconds:.2f} judgments/s", file=sys.stderr, flush=True)
                answered += [
                    row | {"vote": vote, "tokens": tokens} for row, (vote, tokens) in zip(block, votes, strict=True)
                ]
            told[cell] = Told(answered, rate(asked))
    return told


def rate(asked: str) -> float | None:
    """Judgments a second over all blocks of this very model, prompt and rows; None where nothing was timed."""
    path = HERE / "times.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    ours = [line for line in lines if line["asked"] == asked]
    return round(sum(line["calls"] for line in ours) / sum(line["seconds"] for line in ours), 3) if ours else None


def judged_rows(cell: Cell, told: Sequence[dict[str, Any]], seed: int) -> list[dict[str, Any]]:
    """Rows of `controls.auc_rows`, the cell in the place of the judge."""
    genuine = [row for row in told if "kind" not in row]
    votes = [judging.judgment(row["response_id"], str(cell), row["vote"], row["tokens"]) for row in genuine]
    planted = [judging.control(row, str(cell), (row["vote"], row["tokens"])) for row in told if "kind" in row]
    asked = [{"instruction_id": row["instruction_id"], "text": row["instruction"]} for row in genuine]
    return controls.auc_rows(
        pa.Table.from_pylist(votes, records.JUDGMENTS),
        pa.Table.from_pylist(planted, records.CONTROLS),
        pa.Table.from_pylist(genuine, records.RESPONSES),
        pa.Table.from_pylist(asked, records.INSTRUCTIONS),
        RESAMPLES,
        seed,
    )


def worth(mean_auc: float, per_s: float) -> float:
    """What a way to judge tells in a second: (2 AUC - 1)^2 a judgment, 0 where it prefers the faults.

    2 AUC - 1 is Somers' D. Where it is small it is proportional to d' (AUC = Phi(d' / sqrt 2)), and d'^2 adds up over
    independent judgments (Green & Swets 1966): twice the squared D is worth two judgments.
    """
    return max(0.0, 2 * mean_auc - 1) ** 2 * per_s


def summary(cell: Cell, told: Told, seed: int) -> dict[str, Any]:
    """What a cell has shown: speed, parse rate, rungs, mean AUC and worth, and a row of `auc_rows` a kind."""
    votes = [row["vote"] for row in told.rows]
    kinds = {row["kind"]: row for row in judged_rows(cell, told.rows, seed)}
    aucs = [row["auc"] for row in kinds.values() if row["auc"] is not None]
    mean = sum(aucs) / len(aucs) if aucs else None
    return {
        "judge": cell.judge,
        "mode": cell.mode,
        "prompt": cell.prompt,
        "last": cell.order,
        "judgments": len(votes),
        "judgments_per_s": told.rate,
        "mean_auc": mean,
        "worth_per_s": None if mean is None or told.rate is None else worth(mean, told.rate),
        "parse_rate": sum(vote.score is not None for vote in votes) / len(votes),
        "rungs": dict(Counter(vote.parse for vote in votes)),
        "kinds": kinds,
    }


def show(found: Sequence[dict[str, Any]], n: int) -> None:
    """Tables: speed and parse rate of every cell, its AUCs, and what length and overlap alone would have told."""
    ways = [[one[key] for key in ("judge", "mode", "prompt", "last")] for one in found]
    names = ["judgments_per_s", "parse_rate", "mean_auc", "worth_per_s"]
    rates = [[*way, *(one[name] for name in names)] for way, one in zip(ways, found, strict=True)]
    heads = ["judge", "mode", "prompt", "last", "judgments/s", "scores read", "mean AUC", "worth/s"]
    tell(f"{n} genuine answers", heads, rates)
    kinds = [kind for kind in controls.KINDS if any(kind in one["kinds"] for one in found)]
    for name in dict.fromkeys(one["judge"] for one in found):
        lines = []
        for way, one in zip(ways, found, strict=True):
            if one["judge"] == name:
                lines.append([" ".join(way[1:]), *(_interval(one["kinds"].get(kind)) for kind in kinds)])
        first = next(one for one in found if one["judge"] == name)["kinds"]
        for key, words in (("length_auc", "length alone"), ("overlap_auc", "word overlap alone")):
            lines.append([words, *(first[kind][key] if kind in first else None for kind in kinds)])
        lines.append(["pairs", *(first[kind]["n"] if kind in first else None for kind in kinds)])
        tell(f"{name}: AUC of genuine against planted [95 % interval]", ["way", *kinds], lines)


def _interval(row: dict[str, Any] | None) -> str | None:
    if row is None or row["auc"] is None:
        return None
    return f"{row['auc']:.2f}" + ("" if row["low"] is None else f" [{row['low']:.2f}, {row['high']:.2f}]")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.judges", description="What a judge can tell, and how fast")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--n", type=int, default=200, help="genuine answers")
    parser.add_argument("--judges", nargs="+", help="default: the enabled judges of params.yaml")
    parser.add_argument("--modes", nargs="+", default=["expected", "score", "justify"], choices=list(judging.ADVICE))
    parser.add_argument("--prompts", nargs="+", default=["judge", "rubric", "framed", "short"])
    parser.add_argument("--orders", nargs="+", default=["response", "instruction"], choices=["response", "instruction"])
    parser.add_argument("--source", default="rehearsal", choices=["rehearsal", "own"])
    options = parser.parse_args()
    os.environ["VLLM_SERVER_DEV_MODE"] = "1"  # for /reset_prefix_cache
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.chdir(ROOT)
    params = settings.load()
    for name in options.judges or []:
        if name not in params.judges:
            raise UserError(f"--judges: {name} is no judge of params.yaml; known: {', '.join(params.judges)}")
    for name in options.prompts:
        if name != "judge" and not (ROOT / "bench" / "prompts" / f"{name}.txt").exists():
            raise UserError(f"--prompts: bench/prompts/{name}.txt is not there; `judge` is prompts/judge.txt")
    if options.n < 2:
        raise UserError("--n: two answers at least")
    HERE.mkdir(parents=True, exist_ok=True)
    genuine = from_run(params, options.n) if options.source == "own" else from_rehearsal(options.n, params.seed)
    rows = judge.grouped(genuine, controls.plant(genuine, 1.0, params.seed))
    found = []
    for name in options.judges or params.enabled_judges():
        cells = [Cell(name, *way) for way in product(options.modes, options.prompts, options.orders)]
        for cell, told in measure(cells, params, rows).items():
            found.append(summary(cell, told, params.seed))
    show(found, len(genuine))
    finish({"n": len(genuine), "source": options.source, "cells": found})


if __name__ == "__main__":
    run(main, kept="answered calls are kept in the ledger of the benchmark; the same command goes on")
