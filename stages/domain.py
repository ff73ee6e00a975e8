"""Domain: build or read the domain set, and split off its test items.

In: the package simple-icd-10-cm, or what domain.source names. Out: data/domain/train.parquet, data/domain/test.parquet.
Run: python -m stages.domain
"""

import sys
from collections import Counter
from pathlib import Path

from anamnesis import formats, icd, records
from anamnesis import params as settings
from anamnesis.errors import run

WATCHED = Path("data/own")  # a dependency of this stage: a changed file in it is seen by `dvc repro`


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
        if not domain.source.startswith("hf:") and WATCHED.resolve() not in Path(domain.source).resolve().parents:
            print(f"note: {domain.source} is outside {WATCHED}/, so a change in it reruns nothing", file=sys.stderr)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(Counter(item["kind"] for item in test).items()))
    print(f"domain: {len(train)} training rows; test items: {kinds}; {removed} duplicates removed")
    records.write("data/domain/train.parquet", train, records.DOMAIN_TRAIN, ["row_id"])
    records.write("data/domain/test.parquet", test, records.DOMAIN_TEST, ["kind", "row_id"])


if __name__ == "__main__":
    run(main)
