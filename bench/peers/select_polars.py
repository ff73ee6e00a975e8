"""Rule `mean` in polars: python select_polars.py <folder>. Prints its figures as JSON; writes polars.parquet.

Lazy scans, so that only the columns it names are read; the texts are read last and for the winners only, and the hash,
which polars doesn't have, is made in Python for tied rows only.
"""

import hashlib
import json
import resource
import sys
import time
from pathlib import Path

import polars as pl

MEMBERS = JUDGES = ["alpha", "beta", "gamma"]


def hashed(ids: pl.Series) -> pl.Series:
    return pl.Series([hashlib.sha256(f"17\x1fpick\x1f{name}".encode()).hexdigest() for name in ids], dtype=pl.String)


def best_of(candidates: pl.DataFrame) -> pl.DataFrame:
    """One row an instruction: of those with the highest mean the one with the lowest hash, and how many those are."""
    near = (pl.col("mean").max().over("instruction_id") - pl.col("mean")).round(6) <= 0
    tied = candidates.filter(near)
    tied = tied.with_columns(tied=pl.len().over("instruction_id"), hash=hashed(tied["response_id"]))
    return tied.sort("hash").unique("instruction_id", keep="first", maintain_order=True)


def scan(folder: Path, names: list[str]) -> pl.LazyFrame:
    return pl.scan_parquet([folder / f"{name}.parquet" for name in names])


def select(data: Path) -> pl.DataFrame:
    pool = pl.scan_parquet(data / "conversations.parquet").filter(pl.col("status") == "ok")
    responses, judgments = scan(data / "responses", MEMBERS), scan(data / "judgments", JUDGES)
    given = judgments.filter(pl.col("score").is_not_null()).select("response_id", "judge", "score")
    means = given.group_by("response_id").agg(mean=pl.col("score").mean().round(6), count=pl.len())
    answers = (
        responses.filter((pl.col("status") == "ok") & (pl.col("sample_index") < 3))
        .select("response_id", "instruction_id", "member")
        .collect(engine="streaming")
    )
    candidates = answers.lazy().join(means, on="response_id").filter(pl.col("count") >= 2).collect(engine="streaming")
    best = best_of(candidates)
    second = best_of(candidates.join(best, on="response_id", how="anti"))
    sizes = candidates.group_by("instruction_id").agg(candidates=pl.len())
    winners = best.select("response_id").lazy()
    texts = responses.select("response_id", response="text").join(winners, on="response_id", how="semi")
    cast = given.join(winners, on="response_id", how="semi").sort("response_id", "judge")
    cast = cast.group_by("response_id").agg(votes=pl.struct("judge", "score"))
    answered = answers["instruction_id"].unique().to_list()
    return (
        pool.select("instruction_id", instruction="text")
        .join(best.lazy(), on="instruction_id", how="left")
        .join(sizes.lazy(), on="instruction_id", how="left")
        .join(
            second.lazy().select("instruction_id", runner_up_id="response_id", runner_up_mean="mean"),
            on="instruction_id",
            how="left",
        )
        .join(texts, on="response_id", how="left")
        .join(cast, on="response_id", how="left")
        .with_columns(
            pl.col("candidates").fill_null(0),
            margin=(pl.col("mean") - pl.col("runner_up_mean")).round(6),
            status=pl.when(pl.col("response_id").is_null()).then(pl.lit("filtered")).otherwise(pl.lit("ok")),
            reason=pl.when(pl.col("response_id").is_not_null())
            .then(None)
            .when(pl.col("instruction_id").is_in(answered))
            .then(pl.lit("too few votes"))
            .otherwise(pl.lit("no complete response")),
        )
        .sort("instruction_id")
        .collect(engine="streaming")
    )


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    start, used = time.perf_counter(), time.process_time()
    select(folder / "data").write_parquet(folder / "polars.parquet", compression="zstd")
    seconds, cpu = time.perf_counter() - start, time.process_time() - used
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "cpu_s": cpu, "peak_mb": peak}))
