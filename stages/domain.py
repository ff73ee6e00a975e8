"""Domain: build or read the domain set, and split off its test items.

In: the package simple-icd-10-cm, or what domain.source names; what mix.domains names; the tokenizer in
models/pretrained/<target>.
Out: data/domain/train.parquet, data/domain/test.parquet, data/domain/others/<name>.parquet.
Run: python -m stages.domain
"""

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anamnesis import cards, chat, formats, icd, records, trainset
from anamnesis import params as settings
from anamnesis.errors import run
from anamnesis.own import note_unwatched


def main() -> None:
    params = settings.load()
    domain = params.domain
    if domain.source == icd.SOURCE:
        train, test = icd.build(icd.load_codes(), domain.train, domain.test, params.seed, domain.licence)
        removed = 0
    else:
        rows = formats.read(domain.source)
        train, test, removed = formats.split(
            rows, domain.train, domain.test, params.seed, domain.source, domain.licence
        )
        _note(domain.source)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(item["kind"] for item in test).items()))
    print(f"domain: {len(train)} training rows; test items: {kinds}; {removed} duplicates removed")
    print(f"domain: licence {domain.licence} where a row names none (domain.licence)")
    others: dict[str, list[dict[str, Any]]] = {}
    known = {row["row_id"] for row in train}
    for name, other in params.mix.domains.items():
        rows = formats.read(other.source, f"mix.domains.{name}.source")
        listed = formats.trained_on(rows, other.source, other.licence)
        others[name] = [row for row in listed if row["row_id"] not in known]  # no row is mixed in twice
        known |= {row["row_id"] for row in listed}
        _note(other.source)
        print(f"domain: {len(others[name])} rows of {name}, to be mixed in")
    check_lengths(
        [*train, *(row for rows in others.values() for row in rows)],
        Path("models/pretrained") / params.target,
        params.train.sequence_length,
    )
    records.write("data/domain/train.parquet", train, records.DOMAIN_TRAIN, ["row_id"])
    records.write("data/domain/test.parquet", test, records.DOMAIN_TEST, ["kind", "row_id"])
    Path("data/domain/others").mkdir(parents=True, exist_ok=True)
    Path("data/domain/others/.keep").touch()  # DVC warns of an empty folder
    for name, other_rows in others.items():
        records.write(f"data/domain/others/{name}.parquet", other_rows, records.DOMAIN_TRAIN, ["row_id"])


def _note(source: str) -> None:
    if not source.startswith("hf:"):
        note_unwatched(Path(source), "domain")


def check_lengths(rows: Sequence[dict[str, Any]], model_dir: Path, sequence_length: int) -> None:
    """Say how many rows training will cut, before a model is asked anything.

    Raises `UserError` for rows without a token to train on.
    """
    trusted = cards.load_card(model_dir).trust_remote_code
    tokenizer = chat.tokenizer_of(model_dir, trusted)  # takes seconds: after the user's file is read
    _, audit = trainset.encode_rows(tokenizer, rows, sequence_length)
    if cut := audit["truncated_rows"]:
        line = (
            f"note: {cut} of {len(rows)} training rows are longer than train.sequence_length, {sequence_length} tokens"
        )
        print(f"{line}: they are cut and teach no end of turn", file=sys.stderr)


if __name__ == "__main__":
    run(main)
