"""Clean: take out of rehearsal and domain rows what must not be trained on; each with a reason.

In: data/selected/<variant>.parquet, data/conversations.parquet, data/rehearsal/<source>.parquet, data/borrowed.parquet,
data/domain/train.parquet, data/domain/others/<name>.parquet, data/domain/test.parquet, data/heldout.parquet, the
shipped items, the files of clean.evaluation_sets and those of data/suite.json.
Out: data/cleaned/<variant>.parquet, data/domain/cleaned.parquet, metrics/clean.json.
Run: python -m stages.clean
"""

import sys
from pathlib import Path

import pyarrow as pa

from anamnesis import cleaning, decontamination, records
from anamnesis import params as settings
from anamnesis.errors import run
from anamnesis.params import Params
from anamnesis.shares import DOMAIN

WATCHED = Path("data/own")  # a dependency of this stage: a changed file in it is seen by `dvc repro`


def index(params: Params) -> decontamination.Overlap:
    """Every evaluation set in use, those of stage evaluate first."""
    overlap = decontamination.Overlap()
    own = decontamination.own_sets(
        records.read("data/domain/test.parquet", records.DOMAIN_TEST),
        records.read("data/heldout.parquet", records.HELDOUT),
        params.evaluate.arithmetic,
        params.seed,
    )
    for name, items in [*own.items(), *decontamination.suite_sets(params.evaluate).items()]:
        overlap.add(name, items)
    if "leaderboard" in params.evaluate.suites:
        print("note: suite leaderboard's sets are on the hub: name copies in clean.evaluation_sets", file=sys.stderr)
    for name, source in params.clean.evaluation_sets.items():
        overlap.add(name, decontamination.read_set(name, source))
        if WATCHED.resolve() not in Path(source).resolve().parents:
            print(f"note: {source} is outside {WATCHED}/, so a change in it reruns nothing", file=sys.stderr)
    print("clean: items by evaluation set: " + ", ".join(f"{name} {size}" for name, size in overlap.sizes.items()))
    return overlap


def system_messages(params: Params, conversations: pa.Table) -> set[str]:
    """Ours, under which answers were asked for: those that instructions drew and the members' own."""
    own = [member.sampling.system for member in params.committee.values()]
    return {text for text in (*conversations["system"].to_pylist(), *own) if text is not None}


def domain_rows(params: Params, overlap: decontamination.Overlap, ours: set[str]) -> pa.Table:
    """The training rows of all domains, cleaned, under the names that the mix knows them by.

    A domain is its owner's: only what would spoil the measuring is taken out of it. The domain test set is kin to the
    main domain alone.
    """
    sources = {DOMAIN: ("data/domain/train.parquet", "domain-test")}
    sources |= {f"{DOMAIN}:{name}": (f"data/domain/others/{name}.parquet", "") for name in params.mix.domains}
    cleaned = []
    for source, (path, kin) in sources.items():
        rows = cleaning.learnt(records.read_table(path, records.DOMAIN_TRAIN), source)
        cleaned.append(cleaning.clean(rows, [cleaning.overlap_check(overlap, kin, ours)], None, params.seed))
    return pa.concat_tables(cleaned)


def main() -> None:
    params = settings.load()
    wanted = params.clean
    of_text: list[cleaning.Check] = []  # that a row of any source is put to
    if wanted.refused:
        of_text.append(cleaning.refused_check)
    if wanted.languages:
        of_text.append(cleaning.language_check(wanted.languages))
    if wanted.personal_data:
        of_text.append(cleaning.personal_data_check(wanted.personal_data))
    overlap = index(params)
    metrics: dict[str, int] = {f"evaluation_sets.{name}": size for name, size in overlap.sizes.items()}

    def write(name: str, path: str, cleaned: pa.Table) -> None:
        records.write(path, cleaned, records.CLEANED, ["source", "row_id"])
        counts = cleaning.counts(cleaned)
        metrics.update({f"{name}.{key}": count for key, count in counts.items()})
        print(f"clean {name}: " + ", ".join(f"{key} {count}" for key, count in counts.items()))

    conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
    ours = system_messages(params, conversations)
    write("domain_rows", "data/domain/cleaned.parquet", domain_rows(params, overlap, ours))

    writers = {
        key: cleaning.Writer(params.models[key].licence, member.sampling.system)
        for key, member in params.committee.items()
    }
    borrowed = {
        row["instruction_id"]: row["licence"] for row in records.read("data/borrowed.parquet", records.BORROWED)
    }
    Path("data/cleaned").mkdir(parents=True, exist_ok=True)  # also where no variant rehearses
    for name, variant in params.tuned_variants().items():
        if variant.rehearsal == "none":
            continue
        checks = [cleaning.overlap_check(overlap, ours=ours), *of_text]
        if variant.source:
            drawn = records.read_table(f"data/rehearsal/{variant.source}.parquet", records.REHEARSAL)
            candidates = cleaning.rehearsed(drawn)
            checks += [cleaning.truncated_check] if wanted.truncated else []
        else:
            # A pick is complete by its finish reason, so its text is not looked at for that.
            selected = records.read_table(f"data/selected/{name}.parquet", records.SELECTED)
            candidates = cleaning.picked(selected, writers, conversations, params.target, borrowed)
        cleaned = cleaning.clean(candidates, checks, wanted.near_duplicates, params.seed)
        write(name, f"data/cleaned/{name}.parquet", cleaned)
    records.write_metrics("metrics/clean.json", metrics)


if __name__ == "__main__":
    run(main)
