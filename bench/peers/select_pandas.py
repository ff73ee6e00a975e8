"""Rule `mean` in pandas: python select_pandas.py <folder>. Prints its figures as JSON; writes pandas.parquet.

As one writes it with care: columns by name, texts read last and for the winners only, the hash for tied rows only.
"""

import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import pandas as pd

MEMBERS = JUDGES = ["alpha", "beta", "gamma"]


def hashed(response_id: str) -> str:
    return hashlib.sha256(f"17\x1fpick\x1f{response_id}".encode()).hexdigest()


def best_of(candidates: pd.DataFrame) -> pd.DataFrame:
    """One row an instruction: of those with the highest mean the one with the lowest hash, and how many those are."""
    top = candidates.groupby("instruction_id")["mean"].transform("max")
    tied = candidates[(top - candidates["mean"]).round(6) <= 0]
    tied = tied.assign(
        tied=tied.groupby("instruction_id")["mean"].transform("size"), hash=tied["response_id"].map(hashed)
    )
    return tied.sort_values("hash").drop_duplicates("instruction_id")


def read(folder: Path, names: list[str], columns: list[str]) -> pd.DataFrame:
    return pd.concat([pd.read_parquet(folder / f"{name}.parquet", columns=columns) for name in names])


def select(data: Path) -> pd.DataFrame:
    pool = pd.read_parquet(data / "conversations.parquet", columns=["instruction_id", "text", "status"])
    pool = pool[pool["status"] == "ok"].drop(columns="status").rename(columns={"text": "instruction"})
    columns = ["response_id", "instruction_id", "member", "sample_index", "status"]
    answers = read(data / "responses", MEMBERS, columns)
    answers = answers[(answers["status"] == "ok") & (answers["sample_index"] < 3)].drop(columns="status")
    votes = read(data / "judgments", JUDGES, ["response_id", "judge", "score"])
    votes = votes[votes["score"].notna()]
    means = votes.groupby("response_id")["score"].agg(["mean", "count"])
    means["mean"] = means["mean"].round(6)
    candidates = answers.merge(means, left_on="response_id", right_index=True).reset_index(drop=True)
    candidates = candidates[candidates["count"] >= 2]
    best = best_of(candidates)
    best = best.assign(candidates=best["instruction_id"].map(candidates.groupby("instruction_id").size()))
    second = best_of(candidates.drop(best.index))[["instruction_id", "response_id", "mean"]]
    second = second.rename(columns={"response_id": "runner_up_id", "mean": "runner_up_mean"})
    texts = read(data / "responses", MEMBERS, ["response_id", "text"])
    texts = texts[texts["response_id"].isin(best["response_id"])].rename(columns={"text": "response"})
    cast = votes[votes["response_id"].isin(best["response_id"])].sort_values(["response_id", "judge"])
    cast = cast.assign(votes=cast[["judge", "score"]].to_dict("records"))
    picks = pool.merge(best, on="instruction_id", how="left").merge(second, on="instruction_id", how="left")
    picks = picks.merge(texts, on="response_id", how="left")
    picks = picks.merge(cast.groupby("response_id")["votes"].agg(list), on="response_id", how="left")
    picks["candidates"] = picks["candidates"].fillna(0)
    picks["margin"] = (picks["mean"] - picks["runner_up_mean"]).round(6)
    missing = picks["instruction_id"].isin(answers["instruction_id"])
    picks["reason"] = missing.map({True: "too few votes", False: "no complete response"}).where(
        picks["response_id"].isna()
    )
    picks["status"] = picks["reason"].isna().map({True: "ok", False: "filtered"})
    return picks.sort_values("instruction_id")


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    start, used = time.perf_counter(), time.process_time()
    select(folder / "data").to_parquet(folder / "pandas.parquet", compression="zstd")
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mb": peak}))
