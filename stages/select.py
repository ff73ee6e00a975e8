"""Select: keep one response an instruction for each variant; hold some instructions out of all of them.

In: data/conversations.parquet, data/responses/<member>.parquet, data/judgments/<judge>.parquet.
Out: data/selected/<variant>.parquet, data/heldout.parquet, metrics/select.json.
Run: python -m stages.select
"""

from pathlib import Path

import pyarrow as pa

from anamnesis import params as settings
from anamnesis import records, selection, sql
from anamnesis.errors import run


def _all(folder: str, keys: list[str], schema: pa.Schema) -> pa.Table:
    """The files of these keys as one table; files of members that are no longer there are left alone."""
    tables = [records.read_table(f"{folder}/{key}.parquet", schema) for key in keys]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def main() -> None:
    params = settings.load()
    members, judges = params.members(), params.enabled_judges()
    conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
    responses = _all("data/responses", members, records.RESPONSES)
    judgments = _all("data/judgments", judges, records.JUDGMENTS)

    hold_out = sql.statement("stages/sql/hold_out.sql")
    pool = selection.pool_of(hold_out, conversations, params.select.heldout, params.seed)
    system = params.committee[params.target].sampling.system
    answer = sql.statement("stages/sql/heldout.sql")
    heldout = selection.heldout_rows(answer, pool, responses, params.target, system, conversations=conversations)
    records.write("data/heldout.parquet", heldout, records.HELDOUT, ["instruction_id"])

    metrics: dict[str, int] = {"instructions": pool.num_rows, "heldout": heldout.num_rows}
    statement = sql.statement("stages/sql/select.sql")
    Path("data/selected").mkdir(parents=True, exist_ok=True)  # also where no variant rehearses
    for name, variant in params.variants.items():
        if variant.rehearsal != "reconstructed":
            continue
        voters = [judge for judge in variant.judges if judge in judges]
        asked = [member for member in variant.members if member in members]
        selected = selection.select_variant(
            statement,
            pool,
            responses,
            judgments,
            members=asked,
            judges=voters,
            samples=variant.samples,
            rule=variant.rule,
            min_votes=min(params.select.min_votes, len(voters)),  # a dropped judge makes nothing impossible
            seed=params.seed,
        )
        records.write(f"data/selected/{name}.parquet", selected, records.SELECTED, ["instruction_id"])
        counts = selection.counts(selected, asked)
        metrics |= {f"{name}.{key}": count for key, count in counts.items()}
        print(f"select {name}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))
    records.write_metrics("metrics/select.json", metrics)


if __name__ == "__main__":
    run(main)
