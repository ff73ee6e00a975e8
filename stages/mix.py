"""Mix: join domain and rehearsal rows to each variant's training set.

In: data/domain/train.parquet, data/conversations.parquet, data/selected/<variant>.parquet, the tokenizer in
models/pretrained/<target>.
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


def main() -> None:
    params = settings.load()
    domain = records.read_table("data/domain/train.parquet", records.DOMAIN_TRAIN)
    selected: dict[str, pa.Table | None] = {}
    for name, variant in params.variants.items():
        rehearses = variant.rehearsal == "reconstructed"
        path = f"data/selected/{name}.parquet"
        selected[name] = records.read_table(path, records.SELECTED) if rehearses else None
    kept = {
        name: None if table is None else pc.sum(pc.equal(table["status"], "ok")).as_py() or 0
        for name, table in selected.items()
    }
    total, fraction = params.mix.total, params.mix.domain_fraction
    mixing.check_pools(total, fraction, domain.num_rows, kept, params.probe.instructions, params.domain.train)

    from transformers import AutoTokenizer  # takes seconds: after the check

    trusted = params.models[params.target].trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(Path("models/pretrained") / params.target, trust_remote_code=trusted)

    def count_tokens(messages: Sequence[mixing.Message]) -> int:
        return len(tokenizer(chat.render(tokenizer, messages), add_special_tokens=False)["input_ids"])

    statement = sql.statement("stages/sql/mix.sql")
    writers = {
        key: mixing.Writer(params.models[key].licence, member.sampling.system)
        for key, member in params.committee.items()
    }
    conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
    metrics: dict[str, int | float] = {}
    for name, table in selected.items():
        mixed = mixing.mix_variant(
            statement,
            domain,
            table,
            writers,
            total=total,
            fraction=fraction,
            seed=params.seed,
            count_tokens=count_tokens,
            conversations=conversations,
        )
        records.write(f"data/mixed/{name}.parquet", mixed, records.MIXED, ["row_id"])
        counts = mixing.counts(mixed)
        metrics |= {f"{name}.{key}": value for key, value in counts.items()}
        print(f"mix {name}: " + ", ".join(f"{key} {value}" for key, value in counts.items()))
    records.write_metrics("metrics/mix.json", metrics)


if __name__ == "__main__":
    run(main)
