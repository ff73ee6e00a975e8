"""Mix: join domain and rehearsal rows to each variant's training set.

In: data/domain/train.parquet, data/selected/<variant>.parquet, data/rehearsal/<source>.parquet, data/borrowed.parquet,
the tokenizer in models/pretrained/<target>.
Out: data/mixed/<variant>.parquet, metrics/mix.json.
Run: python -m stages.mix
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import chat, mixing, records, sql
from anamnesis import params as settings
from anamnesis.errors import run
from anamnesis.params import Params


def main() -> None:
    params = settings.load()
    domain = records.read_table("data/domain/train.parquet", records.DOMAIN_TRAIN)
    selected: dict[str, pa.Table] = {}
    drawn: dict[str, pa.Table] = {}
    for name, variant in params.variants.items():
        if variant.source:
            drawn[name] = records.read_table(f"data/rehearsal/{variant.source}.parquet", records.REHEARSAL)
        elif variant.rehearsal == "reconstructed":
            selected[name] = records.read_table(f"data/selected/{name}.parquet", records.SELECTED)
    kept = {
        name: pc.sum(pc.equal(pool["status"], "ok")).as_py() or 0 if pool is not None else None
        for name in params.variants
        for pool in [selected.get(name, drawn.get(name))]
    }
    total, fraction = params.mix.total, params.mix.domain_fraction
    mixing.check_pools(
        total, fraction, domain.num_rows, kept, params.probe.instructions, params.domain.train, knobs(params)
    )

    from transformers import AutoTokenizer  # takes seconds: after the check

    trusted = params.models[params.target].trust_remote_code
    tokenizer = AutoTokenizer.from_pretrained(Path("models/pretrained") / params.target, trust_remote_code=trusted)

    def count_tokens(messages: Sequence[mixing.Message]) -> int:
        return len(tokenizer(chat.render(tokenizer, messages), add_special_tokens=False)["input_ids"])

    statement = sql.statement("stages/sql/mix.sql")
    borrowed = records.read("data/borrowed.parquet", records.BORROWED)
    metrics: dict[str, int | float] = {}
    for name in params.variants:
        mixed = mixing.mix_variant(
            statement,
            domain,
            selected.get(name),
            writers(params, name, borrowed),
            total=total,
            fraction=fraction,
            seed=params.seed,
            count_tokens=count_tokens,
            drawn=drawn.get(name),
        )
        records.write(f"data/mixed/{name}.parquet", mixed, records.MIXED, ["row_id"])
        counts = mixing.counts(mixed)
        metrics |= {f"{name}.{key}": value for key, value in counts.items()}
        print(f"mix {name}: " + ", ".join(f"{key} {value}" for key, value in counts.items()))
    records.write_metrics("metrics/mix.json", metrics)


def knobs(params: Params) -> dict[str, tuple[str, int]]:
    """What to raise for the variants with a rehearsal source whose pool is too small."""
    rehearsal = params.rehearsal
    rows, instructions = ("rehearsal.rows", rehearsal.rows), ("rehearsal.instructions", rehearsal.instructions)
    sources = {name: variant for name, variant in params.variants.items() if variant.source or variant.borrowed}
    return {name: rows if variant.source else instructions for name, variant in sources.items()}


def writers(params: Params, name: str, borrowed: Sequence[dict[str, Any]]) -> dict[str, mixing.Writer]:
    """The committee as the authors of a variant's rows; where it borrows instructions, their licence is named too."""
    source = params.variants[name].borrowed
    theirs = sorted({row["licence"] for row in borrowed if row["source"] == source})
    return {
        key: mixing.Writer("; ".join([params.models[key].licence, *theirs]), member.sampling.system)
        for key, member in params.committee.items()
    }


if __name__ == "__main__":
    run(main)
