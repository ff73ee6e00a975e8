"""Look after the ledger: python -m anamnesis.ledger stats | verify | export FILE | import FILE | prune MODEL |
prune-batches MODEL.

The file is `.ledger/ledger.sqlite` or what ANAMNESIS_LEDGER names. Every command is safe beside a running stage.
"""

import argparse
import json
import os
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from anamnesis.errors import UserError, run
from anamnesis.ledger import Answer, Ledger, Record, default_path, pieces

ROWS = 10_000  # a transaction, and a row group of an exported file
EXPORTED = pa.schema(
    [
        ("key", pa.string()),
        ("model", pa.string()),
        ("kind", pa.string()),
        ("answer", pa.string()),  # JSON
        ("latency_s", pa.float64()),
        ("at", pa.float64()),  # seconds since 1970
    ]
)


def names() -> dict[str, str]:
    """Keys under models in params.yaml by identity, of the models that are materialised here."""
    from anamnesis import params as settings
    from anamnesis import server

    try:
        return server.identities(settings.load())
    except UserError:
        return {}  # away from a project's root the ledger is looked after all the same


def stats(ledger: Ledger) -> None:
    """One line a model and kind of call."""
    lines, known = ledger.statistics(), names()
    for line in lines:
        first, last = (datetime.fromtimestamp(line[end], UTC).strftime("%Y-%m-%d %H:%M") for end in ("first", "last"))
        latency = "unknown" if line["mean_latency_s"] is None else f"{line['mean_latency_s']:.2f} s"
        print(
            f"{known.get(line['model'], line['model'])} {line['kind']}: "
            f"{line['calls']} calls, {line['prompt_tokens']} tokens in, "
            f"{line['completion_tokens']} out, {latency} a call, {first} to {last} UTC"
        )
    print(f"{ledger.path}: {sum(line['calls'] for line in lines)} calls, {ledger.path.stat().st_size / 2**20:.1f} MiB")


def verify(ledger: Ledger) -> None:
    """Check the file; raises `UserError` with every fault where there is one."""
    if faults := ledger.faults():
        raise UserError(f"ledger {ledger.path}: {'; '.join(faults)}; restore a copy or an export of it")
    print(f"{ledger.path}: sound, {len(ledger)} calls")


def export_to(ledger: Ledger, file: Path) -> None:
    """Write every answered call to a Parquet file, whole or not at all."""
    partial = file.with_name(file.name + ".partial")
    count = 0
    try:
        with pq.ParquetWriter(partial, EXPORTED, compression="zstd") as writer:
            for some in pieces(ledger.records(), ROWS):
                rows = [asdict(record) | {"answer": json.dumps(asdict(record.answer))} for record in some]
                writer.write_table(pa.Table.from_pylist(rows, EXPORTED))
                count += len(rows)
        partial.chmod(0o600)  # as the ledger itself
        os.replace(partial, file)
    except OSError as error:
        raise UserError(f"{file}: can't be written: {error}") from None
    finally:
        partial.unlink(missing_ok=True)
    print(f"{file}: {count} calls")


def import_from(ledger: Ledger, file: Path) -> None:
    """Take over the calls of an exported file that the ledger lacks. Raises `UserError` where it is no such file."""
    seen = new = 0
    try:
        with pq.ParquetFile(file) as source:
            if source.schema_arrow.names != EXPORTED.names:
                raise UserError(
                    f"{file}: no export of a ledger: its columns are {', '.join(source.schema_arrow.names)}"
                )
            for batch in source.iter_batches(ROWS):
                records = [_record(row) for row in batch.to_pylist()]
                seen += len(records)
                new += ledger.put_many(records)
    except FileNotFoundError:
        raise UserError(f"{file}: not found") from None
    except (OSError, pa.ArrowException, ValueError, TypeError) as error:
        raise UserError(f"{file}: can't be read after {seen} calls: {error}") from None
    print(f"{file}: {seen} calls, {new} of them new")


def _record(row: dict[str, Any]) -> Record:
    if len(bytes.fromhex(row["key"])) != 32:
        raise ValueError(f"key {row['key']!r} is no sha256")
    return Record(**row | {"answer": Answer(**json.loads(row["answer"]))})


def prune(ledger: Ledger, model: str, sure: bool) -> None:
    """Delete one model's answers; `model` is its identity or its key in params.yaml.

    Raises `UserError` where there are none, or nobody said that they may go.
    """
    keys = names()
    known = {line["model"]: keys.get(line["model"], line["model"]) for line in ledger.statistics()}
    found = [identity for identity, key in known.items() if model in (identity, key)]
    if not found:
        raise UserError(
            f"ledger {ledger.path}: no model {model!r}; known: {', '.join(sorted(known.values())) or 'none'}"
        )
    if not sure:
        lines = [line for line in ledger.statistics() if line["model"] in found]
        calls, tokens = (sum(line[name] for line in lines) for name in ("calls", "completion_tokens"))
        raise UserError(
            f"{model}: {calls} calls with {tokens} tokens of answers would have to be asked and paid again; "
            "export them first, and say --yes to delete them"
        )
    print(f"{model}: {sum(ledger.prune(identity) for identity in found)} calls deleted")


def prune_batches(ledger: Ledger, model: str) -> None:
    """Forget one model's open batches. Raises `UserError` where there are none."""
    found = [identity for identity, key in names().items() if model in (identity, key)] or [model]
    count = sum(ledger.prune_batches(identity) for identity in found)
    if not count:
        raise UserError(f"ledger {ledger.path}: no open batches of a model {model!r}")
    print(f"{model}: {count} open batches given up")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m anamnesis.ledger", description="Look after the ledger.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("stats", help="calls, tokens and times by model")
    commands.add_parser("verify", help="check the file; exit code 2 where it is damaged")
    commands.add_parser("export", help="write all calls to a Parquet file").add_argument("file", type=Path)
    commands.add_parser("import", help="take over the calls of an exported file").add_argument("file", type=Path)
    deleted = commands.add_parser("prune", help="delete the calls of one model")
    deleted.add_argument("model", help="as stats names it")
    deleted.add_argument("--yes", action="store_true", help="they are paid for: without this nothing is deleted")
    given_up = commands.add_parser(
        "prune-batches", help="give up one model's open batches; their calls are asked again"
    )
    given_up.add_argument("model", help="as stats names it")
    told = parser.parse_args()
    if told.command != "import" and not default_path().exists():
        raise UserError(f"ledger {default_path()}: not found; run from the project's root or set ANAMNESIS_LEDGER")
    with Ledger() as ledger:
        match told.command:
            case "stats":
                stats(ledger)
            case "verify":
                verify(ledger)
            case "export":
                export_to(ledger, told.file)
            case "import":
                import_from(ledger, told.file)
            case "prune":
                prune(ledger, told.model, told.yes)
            case "prune-batches":
                prune_batches(ledger, told.model)


if __name__ == "__main__":
    run(main)
