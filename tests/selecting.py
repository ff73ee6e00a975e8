"""Rows to select from, the selection of them, and an oracle: the rules spelt out in plain Python, row by row."""

import hashlib
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa

from anamnesis import records, selection, sql

ROOT = Path(__file__).resolve().parent.parent
SQL = ROOT / "stages" / "sql"
HOLD_OUT, HELDOUT = (sql.statement(SQL / f"{name}.sql") for name in ("hold_out", "heldout"))
CANDIDATES, SELECT = (sql.statement(SQL / f"{name}.sql") for name in ("candidates", "select"))
MEMBERS = ["alpha", "beta", "gamma"]
JUDGES = ["alpha", "beta", "kofi"]  # two of them judge themselves as well
RULES = ["mean", "median", "leave-own-judge-out", "first", "random"]
Row = dict[str, Any]
Tables = tuple[list[Row], list[Row], list[Row]]


def instruction(name: str, status: str = "ok") -> Row:
    row = {"instruction_id": name, "sample_index": 0, "text": f"text of {name}", "status": status}
    return row | {"reason": None, "finish_reason": "stop", "tokens": 3}


def response(name: str, member: str, index: int, status: str = "ok") -> Row:
    row = {"response_id": f"{name}/{member}/{index}", "instruction_id": name, "member": member, "sample_index": index}
    return row | {"text": f"{member} {index}", "finish_reason": "stop", "tokens": 2, "status": status, "reason": None}


def judgment(response_id: str, judge: str, score: float | None) -> Row:
    row = {"response_id": response_id, "judge": judge, "score": score, "parse": "strict", "justification": None}
    return row | {"tokens": 1, "status": "ok" if score else "failed", "reason": None}


def rule(**changed: Any) -> selection.Rule:
    return selection.Rule(**{"name": "mean", "members": MEMBERS, "judges": JUDGES, "samples": 3} | changed)


def selected(tables: Tables, rule: selection.Rule, heldout: float = 0.0, seed: int = 17, threads: int = 0) -> pa.Table:
    schemas = (records.INSTRUCTIONS, records.RESPONSES, records.JUDGMENTS)
    instructions, responses, judgments = (pa.Table.from_pylist(*pair) for pair in zip(tables, schemas, strict=True))
    pool = selection.pool_of(HOLD_OUT, instructions, heldout, seed, threads)
    query = selection.candidates_query(CANDIDATES, rule)
    found = selection.select_variant(SELECT, query, pool, responses, judgments, rule, seed, threads)
    return found.sort_by("instruction_id")


def hashed(*parts: object) -> str:
    return hashlib.sha256("\x1f".join(str(part) for part in parts).encode()).hexdigest()


def _mean(scores: list[float]) -> float | None:
    return round(float(sum(map(Fraction, scores)) / len(scores)), 6) if scores else None


def _candidate(row: Row, judgments: list[Row], rule: selection.Rule) -> Row:
    """One complete response: votes, value, what it is ranked by (more is better), and whether it may be picked."""
    votes = sorted(
        (j["judge"], j["score"])
        for j in judgments
        if j["response_id"] == row["response_id"] and j["judge"] in rule.judges and j["score"] is not None
    )
    voters = set(rule.judges)
    if rule.name == "leave-own-judge-out":
        voters -= {row["member"]}
    counted = [score for judge, score in votes if judge in voters]
    value, able = None, True
    if rule.name in ("mean", "leave-own-judge-out"):
        value = _mean(counted)
    elif rule.name == "median":
        value = round(median(counted), 6) if counted else None
    if rule.name in ("mean", "median", "leave-own-judge-out"):
        able = len(counted) >= min(rule.min_votes, max(len(voters), 1))
    rank = float("-inf") if value is None else value
    if rule.name == "first":
        rank = -(row["sample_index"] * 100 + list(rule.members).index(row["member"]))
    if rule.name == "random":
        rank = 0
    mean = _mean([score for _, score in votes])
    return {"row": row, "votes": votes, "mean": mean, "value": value, "rank": rank, "able": able}


def _best(candidates: list[Row], tie: float, seed: int) -> tuple[Row | None, int]:
    """The winner, and how many are tied: all within `tie` of the best, and all without a value where there is none."""
    top = max((one["rank"] for one in candidates), default=None)
    tied = [one for one in candidates if one["rank"] == top or round(top - one["rank"], 6) <= tie]
    return min(tied, key=lambda one: hashed(seed, "pick", one["row"]["response_id"]), default=None), len(tied)


def oracle(tables: Tables, rule: selection.Rule, heldout: float = 0.0, seed: int = 17) -> list[Row]:
    """The rows of `records.SELECTED` that the rules ask for."""
    instructions, responses, judgments = tables
    good = [row for row in instructions if row["status"] == "ok"]
    count = int((Decimal(len(good)) * Decimal(str(heldout))).quantize(Decimal(1), ROUND_HALF_UP))
    by_hash = sorted(good, key=lambda row: hashed(seed, "hold out", row["instruction_id"]))
    held = {row["instruction_id"] for row in by_hash[:count]}
    picks = []
    for row in sorted(good, key=lambda row: row["instruction_id"]):
        name = row["instruction_id"]
        complete = [
            _candidate(r, judgments, rule)
            for r in responses
            if r["instruction_id"] == name
            and r["status"] == "ok"
            and r["member"] in rule.members
            and r["sample_index"] < rule.samples
        ]
        able = [one for one in complete if one["able"]] if name not in held else []
        best, tied = _best(able, rule.tie, seed)
        second, _ = _best([one for one in able if one is not best], rule.tie, seed)
        out: Row = dict.fromkeys(records.SELECTED.names)
        out |= {"instruction_id": name, "instruction": row["text"], "candidates": len(able), "status": "filtered"}
        if best:
            out["value"] = best["value"]
            if second and best["value"] is not None and second["value"] is not None:
                out["margin"] = round(best["value"] - second["value"], 6)
        if name in held:
            out["reason"] = "held out"
        elif not best:
            out["reason"] = "too few votes" if complete else "no complete response"
        elif best["value"] is not None and best["value"] < rule.min_score:
            out["reason"] = "below minimum score"
        elif rule.min_margin and out["margin"] is not None and out["margin"] < rule.min_margin:
            out["reason"] = "margin too small"
        else:
            winner = best["row"]
            out |= {"response_id": winner["response_id"], "member": winner["member"], "response": winner["text"]}
            out |= {"mean": best["mean"], "votes": [{"judge": judge, "score": score} for judge, score in best["votes"]]}
            out |= {"tied": tied, "status": "ok"}
            if second:
                out |= {"runner_up_id": second["row"]["response_id"], "runner_up_value": second["value"]}
                out["runner_up_mean"] = second["mean"]
        picks.append(out)
    return picks
