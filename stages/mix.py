"""Mix: join domain and rehearsal rows to each variant's training set.

In: data/domain/cleaned.parquet, data/cleaned/<variant>.parquet, the tokenizer in models/pretrained/<target>.
Out: data/mixed/<variant>.parquet, metrics/mix.json.
Run: python -m stages.mix
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import chat, mixing, records, sql
from anamnesis import params as settings
from anamnesis.errors import run
from anamnesis.params import Params


def _sizes(table: pa.Table, rehearsal: bool) -> dict[str, int]:
    """Rows that are ok, by part of the mix."""
    sources = table.filter(pc.equal(table["status"], "ok"))["source"]
    if rehearsal:
        return {mixing.REHEARSAL: len(sources)}
    return {entry["values"]: entry["counts"] for entry in pc.value_counts(sources).to_pylist()}


def knobs(params: Params) -> dict[str, tuple[str, int]]:
    """What to raise for the variants with a rehearsal source whose pool is too small, by the variant's key."""
    rehearsal = params.rehearsal
    rows, instructions = ("rehearsal.rows", rehearsal.rows), ("rehearsal.instructions", rehearsal.instructions)
    tuned = params.tuned_variants().items()
    sources = {params.key_of(name): variant for name, variant in tuned if variant.source or variant.borrowed}
    return {key: rows if variant.source else instructions for key, variant in sources.items()}


def main() -> None:
    params = settings.load()
    mix = params.mix
    domain = records.read_table("data/domain/cleaned.parquet", records.CLEANED)
    cleaned: dict[str, pa.Table | None] = {}
    for name, variant in params.tuned_variants().items():
        path = f"data/cleaned/{name}.parquet"
        cleaned[name] = None if variant.rehearsal == "none" else records.read_table(path, records.CLEANED)

    rehearsals = {params.key_of(name): table for name, table in cleaned.items() if table is not None}
    mixing.check_licences({"the domain": domain, **rehearsals}, mix.licences.forbid)
    fractions = {params.key_of(name): params.fractions_of(name) for name in cleaned}
    if mix.unit == "examples":
        pools = {
            params.key_of(name): _sizes(domain, False) | ({} if table is None else _sizes(table, True))
            for name, table in cleaned.items()
        }
        mixing.check_pools(mix.total, fractions, pools, params.probe.instructions, params.domain.train, knobs(params))

    trusted = params.models[params.target].trust_remote_code
    tokenizer = chat.tokenizer_of(Path("models/pretrained") / params.target, trusted)  # takes seconds: after the check

    def count_tokens(messages: Sequence[mixing.Message]) -> int:
        return len(tokenizer(chat.render(tokenizer, messages), add_special_tokens=False)["input_ids"])

    statement = sql.statement("stages/sql/mix.sql")
    metrics: dict[str, int | float] = {}
    for name, table in cleaned.items():
        mixed = mixing.mix_variant(
            statement,
            domain,
            table,
            total=mix.total,
            fractions=params.fractions_of(name),
            seed=params.seed,
            count_tokens=count_tokens,
            unit=mix.unit,
        )
        records.write(f"data/mixed/{name}.parquet", mixed, records.MIXED, ["row_id"])
        counts = mixing.counts(mixed)
        metrics |= {f"{name}.{key}": value for key, value in counts.items()}
        print(f"mix {name}: " + ", ".join(f"{key} {value}" for key, value in counts.items()))
    records.write_metrics("metrics/mix.json", metrics)


if __name__ == "__main__":
    run(main)
