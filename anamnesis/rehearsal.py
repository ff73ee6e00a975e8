"""Rehearsal sources: a name under `variants` becomes rows, drawn in a seeded order over the whole source.

In: the eight public sets (anamnesis/public_sets.py) or an entry of `rehearsal.sources`, read by `datasets` as a stream.
Out: rows of `records.REHEARSAL`, every one that was met on the way with a status and a reason, and the instructions
that the committee is to answer (`records.BORROWED`).
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anamnesis import drawing, records
from anamnesis.cards import sha256_of
from anamnesis.drawing import COLUMNS, Draw, Place, instruction_of, order_of, reasons_of, row_id, row_of
from anamnesis.errors import MODEL_UNAVAILABLE, UserError, hub_errors
from anamnesis.params import Params
from anamnesis.progress import LINE_SECONDS, say
from anamnesis.public_sets import PUBLIC_SETS
from anamnesis.records import digest
from anamnesis.sources import COMMIT, cache_dir
from anamnesis.template import TEMPLATE_PIECES
from anamnesis.variants import HUB_DATA, Rehearsal, Source

BATCH = 1024  # rows read at once
FILES = {".jsonl": "json", ".json": "json", ".parquet": "parquet"}  # the reader of `datasets` by a file's suffix


def place_of(name: str, rehearsal: Rehearsal) -> Place:
    """A source as params.yaml means it: the registry's entry, with what `rehearsal.sources` says in its place."""
    entry, public = rehearsal.sources.get(name, Source()), PUBLIC_SETS.get(name)
    own = Place(
        name=name,
        uri=entry.source or "",
        form=entry.form,
        column=COLUMNS.get(entry.form or ""),
        config=entry.config,
        splits=tuple(entry.splits or ("train",)),
        files=None,
        flags=(),
        licence=entry.licence or "unknown",
    )
    if public is None:
        return own
    uri = entry.source or f"hf:{public.repo}@{public.revision}"
    as_public = entry.form in (None, public.form)
    return replace(
        own,
        uri=uri,
        form=entry.form or public.form,
        column=public.column if as_public else own.column,
        config=entry.config or public.config,
        splits=tuple(entry.splits or public.splits),
        files=public.files if _has_files(uri, public.repo, public.files) else None,
        flags=public.flags,
        licence=entry.licence or public.licence,
    )


def _has_files(uri: str, repo: str, files: str | None) -> bool:
    """Whether the registry's file is there: in the set's own repository or a folder that was copied from it."""
    if match := HUB_DATA.fullmatch(uri):
        return match[1] == repo and not match[2].startswith("refs/convert/")
    return (Path(uri.removeprefix("path:")) / (files or "")).is_file()


def draw(place: Place, rehearsal: Rehearsal, count: int, seed: int) -> list[dict[str, Any]]:
    """Rows of `records.REHEARSAL`: `count` good ones, or all there are, and those dropped on the way.

    What was drawn from a pinned commit is kept in the download cache. Raises `UserError` where the source can't be
    read, has no column of a known form, or no good row.
    """
    cached = _cache_of(place, rehearsal, count, seed)
    if cached and cached.exists():
        return records.read(cached, records.REHEARSAL)
    drawn, looked_at, last = Draw(count), 0, time.monotonic()
    found: Place | None = None
    for split, start, table in stream(place, rehearsal.read):
        found = found or with_columns(place, table.column_names)
        looked_at += table.num_rows
        for i in range(table.num_rows):
            order = order_of(seed, row_id(place.name, split, start + i))
            if drawn.wants(order):
                drawn.offer(order, row_of(table.slice(i, 1).to_pylist()[0], split, start + i, found, rehearsal))
        if time.monotonic() - last > LINE_SECONDS:
            last = time.monotonic()
            say(f"rehearse {place.name}: {looked_at:,} rows looked at")
    rows = drawn.rows()
    if not any(row["status"] == "ok" for row in rows):
        reasons = ", ".join(f"{reason} {number}" for reason, number in sorted(reasons_of(rows).items())) or "no rows"
        raise UserError(f"{_where(place)}: no row can be used ({reasons}); see docs/rehearsal.md for the forms")
    if cached:
        records.write(cached, rows, records.REHEARSAL, ["row_id"])
    return rows


def with_columns(place: Place, columns: Sequence[str]) -> Place:
    """The place with its form and column. Raises `UserError` where the source has no column of it."""
    form = place.form or next((form for form, column in COLUMNS.items() if column in columns), None)
    column = place.column or COLUMNS.get(form or "")
    if form is None or column not in columns:
        wanted = f"`{column}` (form {form})" if form else "`messages`, `conversations` or `instruction`"
        found = ", ".join(f"`{name}`" for name in columns)
        raise UserError(f"{_where(place)}: no column {wanted} (columns: {found}); set rehearsal.sources.<source>.form")
    missing = [flag for flag in place.flags if flag not in columns]
    if missing:
        raise UserError(
            f"{_where(place)}: no column `{missing[0]}`, by which {place.name} is filtered; give another copy of it, "
            "or name it as a source of your own"
        )
    return replace(place, form=form, column=column)


def _where(place: Place) -> str:
    return f"rehearsal source {place.name}: {place.uri}"


def resolve(place: Place) -> tuple[Place, dict[str, Any]]:
    """The place with a hub revision as the commit it stands for, and what a reader must know to get the same rows."""
    known = {
        "source": place.uri, "licence": place.licence, "config": place.config, "splits": list(place.splits),
        "files": place.files, "form": place.form, "commit": None, "sha256": None,
    }  # fmt: skip
    match = HUB_DATA.fullmatch(place.uri)
    if match and COMMIT.fullmatch(match[2]):
        return place, known | {"commit": match[2]}
    if match:
        from huggingface_hub import HfApi

        try:
            commit = str(HfApi().dataset_info(match[1], revision=match[2]).sha)
        except hub_errors() as error:
            raise _unreadable(place, error) from None
        pinned = f"hf:{match[1]}@{commit}"
        say(f"rehearsal.sources.{place.name}: {match[2]!r} can move; pin what was read: source: {pinned}")
        return replace(place, uri=pinned), known | {"commit": commit}
    path = Path(place.uri.removeprefix("path:"))
    if not path.exists():
        raise UserError(f"{_where(place)}: no such file or folder; paths start at the project's root, {Path.cwd()}")
    if path.is_file() and path.suffix not in FILES:
        raise UserError(f"{_where(place)}: expected a .jsonl, .json or .parquet file, or a folder with such files")
    return place, known | {"sha256": sha256_of(path) if path.is_file() else None}


def stream(place: Place, read: int | None) -> Iterator[tuple[str, int, Any]]:
    """`(split, place of its first row, table)` for every batch of rows; the first `read` rows of each split."""
    import datasets
    import pyarrow as pa

    path = Path(place.uri.removeprefix("path:"))
    alone = place.uri.startswith("path:") and path.is_file()
    for split in ("train",) if alone else place.splits:
        try:
            if alone:
                rows = datasets.load_dataset(
                    FILES[path.suffix], data_files={split: str(path)}, split=split, streaming=True
                )
            else:
                match = HUB_DATA.fullmatch(place.uri)
                rows = datasets.load_dataset(
                    match[1] if match else str(path),
                    name=place.config,
                    revision=match[2] if match else None,
                    data_files={split: place.files} if place.files else None,
                    split=split,
                    streaming=True,
                )
            rows = rows.take(read) if read else rows
            start = 0
            for table in rows.with_format("arrow").iter(batch_size=BATCH):
                yield split, start, table
                start += table.num_rows
        except (*hub_errors(), pa.ArrowException, datasets.exceptions.DatasetsError) as error:
            raise _unreadable(place, error) from None


def _unreadable(place: Place, error: Exception) -> UserError:
    what = " ".join(str(error).split())[:300] or type(error).__name__
    return UserError(
        f"{_where(place)}: can't be read ({what}); without the hub, name a copy: "
        f"rehearsal.sources.{place.name}.source: path:<file or folder>",
        MODEL_UNAVAILABLE,
    )


def _cache_of(place: Place, rehearsal: Rehearsal, count: int, seed: int) -> Path | None:
    """The file that holds this draw; None where the source can change under its name."""
    match = HUB_DATA.fullmatch(place.uri)
    if not match or not COMMIT.fullmatch(match[2]):
        return None
    code = [sha256_of(Path(file)) for file in (__file__, drawing.__file__)]  # rows read otherwise are another draw
    how = (rehearsal.read, rehearsal.turns, rehearsal.max_characters, TEMPLATE_PIECES.pattern)
    return cache_dir() / "rehearsal" / f"{digest(code, place, how, count, seed)}.parquet"


def borrowers_of(params: Params) -> dict[str, dict[str, Any]]:
    """By source, who answers and judges its instructions, with how many samples: all that a variant wants."""
    found = {}
    for source in params.rehearsal_sources():
        variants = [variant for variant in params.tuned_variants().values() if variant.borrowed == source]
        if variants:
            found[source] = {
                "members": list(dict.fromkeys(name for one in variants for name in one.members)),
                "judges": list(dict.fromkeys(name for one in variants for name in one.judges)),
                "samples": max(one.samples for one in variants),
            }
    return found


def borrowed_of(params: Params, drawn: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """Rows of `records.BORROWED`: the first `rehearsal.instructions` of each source that variants borrow from."""
    borrowed = []
    for source, who in borrowers_of(params).items():
        good = [row for row in drawn[source] if row["status"] == "ok"]
        good.sort(key=lambda row: order_of(params.seed, row["row_id"]))
        for row in good[: params.rehearsal.instructions]:
            text = instruction_of(row).strip()
            known = {"instruction_id": digest("instruction", source, text), "source": source, "text": text}
            borrowed.append(known | {"licence": row["licence"]} | who)
    return borrowed


def wanted_of(params: Params, source: str) -> int:
    """How many good rows of a source the variants need, at most."""
    variants = params.tuned_variants().values()
    rows = params.rehearsal.rows if any(one.source == source for one in variants) else 0
    asked = params.rehearsal.instructions if any(one.borrowed == source for one in variants) else 0
    return max(rows, asked)
