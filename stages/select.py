"""Select: keep one response an instruction for each variant; hold some instructions out of all of them.

In: data/conversations.parquet, data/borrowed.parquet, data/responses/<member>.parquet,
data/judgments/<judge>.parquet.
Out: data/selected/<variant>.parquet, data/heldout.parquet, metrics/select.json.
Run: python -m stages.select     (`python -m anamnesis.why` says how one instruction's pick came about)
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from anamnesis import params as settings
from anamnesis import records, selection, sql
from anamnesis.errors import run
from anamnesis.params import Params


def _files(folder: str, keys: Sequence[str], schema: pa.Schema) -> sql.Files:
    """The files of these keys as one table; files of members that are no longer there are left alone."""
    return sql.Files([records.check(f"{folder}/{key}.parquet", schema) for key in keys], schema)


def select(params: Params, threads: int = 0) -> dict[str, int]:
    """Write the held-out instructions and every variant's picks; returns the metrics."""
    conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
    borrowed = records.read_table("data/borrowed.parquet", records.BORROWED)
    hold_out, rows = sql.statement("stages/sql/hold_out.sql"), sql.statement("stages/sql/heldout.sql")
    pool = selection.pool_of(hold_out, conversations, params.select.heldout, params.seed, threads)
    system = params.committee[params.target].sampling.system
    own = _files("data/responses", [params.target], records.RESPONSES)
    heldout = selection.heldout_rows(rows, pool, own, params.target, system, threads, conversations)
    records.write("data/heldout.parquet", heldout, records.HELDOUT, ["instruction_id"])

    metrics: dict[str, int] = {"instructions": pool.num_rows, "heldout": heldout.num_rows}
    candidates, best = sql.statement("stages/sql/candidates.sql"), sql.statement("stages/sql/select.sql")
    Path("data/selected").mkdir(parents=True, exist_ok=True)  # also where no variant rehearses
    for name, variant in params.tuned_variants().items():
        if variant.rehearsal != "reconstructed":
            continue
        rule = selection.rule_of(params, name)
        responses = _files("data/responses", rule.members, records.RESPONSES)
        judgments = _files("data/judgments", rule.judges, records.JUDGMENTS)
        query = selection.candidates_query(candidates, rule)
        asked = selection.borrowed_pool(borrowed, variant.borrowed) if variant.borrowed else pool
        selected = selection.select_variant(best, query, asked, responses, judgments, rule, params.seed, threads)
        records.write(f"data/selected/{name}.parquet", selected, records.SELECTED, ["instruction_id"])
        counts = selection.counts(selected, rule.members)
        metrics |= {f"{name}.{key}": count for key, count in counts.items()}
        print(f"select {name}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))
    return metrics


def main() -> None:
    records.write_metrics("metrics/select.json", select(settings.load()))


if __name__ == "__main__":
    run(main)
