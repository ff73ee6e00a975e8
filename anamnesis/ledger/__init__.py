"""The ledger: every call that a model ever answered, keyed by its content, so that none is made twice.

A key is the sha256 over the canonical JSON of what determines an answer: the model's identity, the kind of call, the
messages or prompt, the sampling settings, the seed and the sample index. The value is what came back, raw. It lives
outside DVC (`.ledger/ledger.sqlite`, or the file named by ANAMNESIS_LEDGER), so it survives `dvc repro`, experiments,
branches and kill -9. SQLite in WAL mode: safe with several processes on one machine, refused on a network file system.
`python -m anamnesis.ledger` looks after the file: docs/ledger.md.
"""

import fcntl
import hashlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from anamnesis.errors import UserError
from anamnesis.progress import say

T = TypeVar("T")
KEY_VERSION = 1  # part of every key: a change of the encoding can't meet an old row by accident
SCHEMA_VERSION = 2
SAID_EVERY_S = 60
PATIENCE_S = 60.0  # with another process that writes
PRUNED_AT_ONCE = 10_000  # so that a stage beside it need not wait long
AT_ONCE = 500  # keys a look-up, far below SQLite's limit of bound values
REMOTE = frozenset(
    "nfs nfs4 cifs smb2 smb3 smbfs afs ceph lustre gpfs beegfs wekafs panfs pvfs2 davfs fuse.sshfs fuse.glusterfs "
    "fuse.juicefs fuse.s3fs fuse.gcsfuse fuse.rclone fuse.davfs2".split()
)
MOUNTS = Path("/proc/self/mountinfo")

# A table in order of arrival with its keys in an index: random keys in one clustered tree would move whole answers.
SCHEMA = """
CREATE TABLE models (model_id INTEGER PRIMARY KEY, identity TEXT NOT NULL UNIQUE);
CREATE TABLE answers (
    key BLOB NOT NULL UNIQUE, model_id INTEGER NOT NULL REFERENCES models, kind TEXT NOT NULL, answer TEXT NOT NULL,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, latency_s REAL, at REAL NOT NULL
);
CREATE TABLE batches (
    batch_row INTEGER PRIMARY KEY, identity TEXT NOT NULL, mark TEXT NOT NULL UNIQUE, batch_id TEXT,
    owner TEXT NOT NULL, at REAL NOT NULL, collected INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE batch_calls (batch_row INTEGER NOT NULL REFERENCES batches, key BLOB NOT NULL);
CREATE INDEX batch_calls_of ON batch_calls (batch_row);
"""
FROM_1 = f"""
ALTER TABLE answers RENAME TO answers_1;
{SCHEMA}
INSERT INTO models (identity) SELECT DISTINCT model FROM answers_1 ORDER BY model;
INSERT INTO answers
SELECT bytes_of(key), model_id, kind, answer, coalesce(json_extract(answer, '$.prompt_tokens'), 0),
    coalesce(json_extract(answer, '$.completion_tokens'), 0), latency_s, at
FROM answers_1 JOIN models ON identity = model ORDER BY at, key;
DROP TABLE answers_1;
"""


@dataclass(frozen=True)
class Answer:
    """What one call returned. `logprobs`: tokens that could have stood in one position, with natural logs."""

    text: str | None
    finish_reason: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: dict[str, float] | None = None
    refusal: str | None = None


@dataclass(frozen=True)
class Record:
    """One answered call: `model` is the model's identity, `at` seconds since 1970, None for now."""

    key: str
    model: str
    kind: str
    answer: Answer
    latency_s: float | None
    at: float | None = None


def key_of(call: dict[str, Any]) -> str:
    """The key of a call: sha256 over its canonical JSON (sorted keys, no white space, UTF-8) and the key version."""
    encoded = json.dumps(
        [KEY_VERSION, call], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(encoded.encode("utf-8", "surrogatepass")).hexdigest()


def default_path() -> Path:
    """The ledger's file: ANAMNESIS_LEDGER, else `.ledger/ledger.sqlite` below the current folder."""
    return Path(os.environ.get("ANAMNESIS_LEDGER") or ".ledger/ledger.sqlite").absolute()


def file_system_of(path: Path, mounts: Path | None = None) -> str:
    """The type of the file system that a path lies on, as Linux calls it; empty where it can't be told."""
    try:
        lines = (mounts or MOUNTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, found = -1, ""
    for line in lines:  # man 5 proc: … root mount-point options … - type source options; a space is \040
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if (path == point or point in path.parents) and len(point.parts) >= best:  # of two mounts the later covers
            best, found = len(point.parts), after.split()[0]
    return found


def _require_local(path: Path) -> None:
    kind = file_system_of(path.resolve())
    if kind in REMOTE:
        raise UserError(
            f"ledger {path}: lies on a network file system ({kind}), where SQLite's locks can't be relied on; "
            "set ANAMNESIS_LEDGER to a file on a local disk"
        )


class Ledger:
    """One SQLite file of answers. Use as a context manager.

    What `put` and `put_many` return from is committed, in WAL mode by one write without a sync: kill -9 loses nothing
    of it, a power cut the last moments. Raises `UserError` where the file can't be opened or written, lies on a network
    file system, or is of a newer schema; an older one is brought up to date in one transaction.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path else default_path()
        self._model_ids: dict[str, int] = {}
        _require_local(self.path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            self._db = sqlite3.connect(self.path, timeout=PATIENCE_S, isolation_level=None)
            if new:
                self.path.chmod(0o600)  # prompts and answers are nobody else's business
            self._begin_wal()
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._update_schema()
        except (sqlite3.Error, OSError) as error:
            raise UserError(self._advice(error)) from None

    def _begin_wal(self) -> None:
        """Enter WAL mode; SQLite's timeout doesn't cover the moment when several make a new file so."""
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.01)

    def _advice(self, error: Exception) -> str:
        """The line for a file that can't be opened or written."""
        advice = "set ANAMNESIS_LEDGER to a file on a local disk that you may write"
        if self.path.is_dir():
            return f"ledger {self.path}: is a folder; {advice}"
        if getattr(error, "sqlite_errorname", "") in ("SQLITE_NOTADB", "SQLITE_CORRUPT"):
            return f"ledger {self.path}: no ledger, or a damaged one ({error}); restore a copy or an export of it"
        return f"ledger {self.path}: {error}; {advice}"

    def _update_schema(self) -> None:
        """Make the tables, or bring those of an older version up to date; of two processes one does it."""
        if self._version() < SCHEMA_VERSION:
            self._db.create_function("bytes_of", 1, bytes.fromhex, deterministic=True)
            self._db.execute("BEGIN IMMEDIATE")
            try:
                version = self._version()  # another process may have been faster
                if version == 0 and self._db.execute("SELECT 1 FROM sqlite_master").fetchone():
                    raise UserError(
                        f"ledger {self.path}: another program's database; set ANAMNESIS_LEDGER to a new file"
                    )
                script = {0: SCHEMA, 1: FROM_1}.get(version, "")
                for statement in filter(str.strip, script.split(";")):
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        if (version := self._version()) > SCHEMA_VERSION:
            raise UserError(f"{self.path}: ledger of schema {version}, this version knows {SCHEMA_VERSION}; update")

    def _version(self) -> int:
        return int(self._db.execute("PRAGMA user_version").fetchone()[0])

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    @contextmanager
    def turn(self, identity: str, label: str) -> Iterator[None]:
        """Hold the right to ask one model; of several processes one has it, the others wait and say so.

        Two that ask the same calls at the same time would walk through them in step and pay for each twice. The kernel
        takes the right back from a process that dies.
        """
        name = f"{self.path.name}.{hashlib.sha256(identity.encode()).hexdigest()[:12]}.lock"
        try:
            file = self.path.with_name(name).open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(self._advice(error)) from None
        with file:
            waited = 0
            while not _locked(file.fileno()):
                if waited % SAID_EVERY_S == 0:
                    say(f"{label}: another process asks this model; waiting, then only what it leaves is asked")
                time.sleep(1)
                waited += 1
            yield

    def get(self, key: str) -> Answer | None:
        """The answer stored under a key, or None."""
        return self.get_many([key]).get(key)

    def get_many(self, keys: Iterable[str]) -> dict[str, Answer]:
        """The answers stored under those of `keys` that have one."""
        return {key: answer for key, answer, _ in self._found(keys)}

    def _found(self, keys: Iterable[str]) -> Iterator[tuple[str, Answer, float | None]]:
        for some in pieces(keys, AT_ONCE):
            marks = ",".join("?" * len(some))
            rows = self.execute(
                f"SELECT key, answer, latency_s FROM answers WHERE key IN ({marks})",
                [bytes.fromhex(key) for key in some],
            )
            for key, answer, latency in rows:
                yield key.hex(), self._answer(answer), latency

    def _answer(self, stored: str) -> Answer:
        try:
            return Answer(**json.loads(stored))
        except (ValueError, TypeError) as error:
            advice = "`python -m anamnesis.ledger verify` says how many"
            raise UserError(f"ledger {self.path}: an answer can't be read ({error}); {advice}") from None

    def timed(self, keys: Iterable[str]) -> dict[str, tuple[Answer, float | None]]:
        """As `get_many`, each answer with the seconds it took (None for a batch's)."""
        return {key: (answer, latency) for key, answer, latency in self._found(keys)}

    def known(self, keys: Iterable[str]) -> set[str]:
        """Those of `keys` that have an answer; reads the index alone."""
        found: set[str] = set()
        for some in pieces(keys, AT_ONCE):
            marks = ",".join("?" * len(some))
            rows = self.execute(f"SELECT key FROM answers WHERE key IN ({marks})", [bytes.fromhex(key) for key in some])
            found |= {key.hex() for (key,) in rows}
        return found

    def put(self, key: str, model: str, kind: str, answer: Answer, latency_s: float) -> None:
        """Store an answer; the first one under a key stays."""
        self.put_many([Record(key, model, kind, answer, latency_s)])

    def put_many(self, records: Sequence[Record]) -> int:
        """Store answers in one transaction; the first one under a key stays. Returns how many were new."""
        with self.transaction() as db:
            rows = [self._row(record) for record in records]
            before = db.total_changes
            db.executemany("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            return db.total_changes - before

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Write as one: all that the block does is committed, or nothing. Raises `UserError` where it can't be."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            self._model_ids.clear()  # another process may have pruned a model since
            try:
                yield self._db
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk rolls back by itself
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise UserError(self._line(error, "free the disk or set ANAMNESIS_LEDGER, then rerun")) from None

    def execute(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Read rows. Raises `UserError` where the file can't be read."""
        with self._reading():
            return self._db.execute(statement, values).fetchall()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(self._line(error, "`python -m anamnesis.ledger verify` checks it")) from None

    def _line(self, error: sqlite3.Error, advice: str) -> str:
        if error.sqlite_errorname.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            advice = f"another process has held it for {PATIENCE_S:.0f} s; rerun when it is done"
        return f"ledger {self.path}: {error}; {advice}"

    def _row(self, record: Record) -> tuple[Any, ...]:
        answer = record.answer
        return (
            bytes.fromhex(record.key), self._model_id(record.model), record.kind, json.dumps(asdict(answer)),
            answer.prompt_tokens, answer.completion_tokens, record.latency_s,
            time.time() if record.at is None else record.at,
        )  # fmt: skip

    def _model_id(self, identity: str) -> int:
        if identity not in self._model_ids:
            self._db.execute("INSERT OR IGNORE INTO models (identity) VALUES (?)", (identity,))
            row = self._db.execute("SELECT model_id FROM models WHERE identity = ?", (identity,)).fetchone()
            self._model_ids[identity] = int(row[0])
        return self._model_ids[identity]

    def records(self) -> Iterator[Record]:
        """Every answered call in order of arrival, one at a time."""
        with self._reading():
            rows = self._db.execute(
                "SELECT key, identity, kind, answer, latency_s, at FROM answers JOIN models USING (model_id)"
                " ORDER BY answers.rowid"
            )
            for key, model, kind, answer, latency_s, at in rows:
                yield Record(key.hex(), model, kind, self._answer(answer), latency_s, at)

    def statistics(self) -> list[dict[str, Any]]:
        """For each model identity and kind of call: calls, tokens in and out, mean seconds a call, first and last."""
        statement = (
            "SELECT identity AS model, kind, count(*) AS calls, sum(prompt_tokens) AS prompt_tokens,"
            " sum(completion_tokens) AS completion_tokens, avg(latency_s) AS mean_latency_s, min(at) AS first,"
            " max(at) AS last FROM answers JOIN models USING (model_id) GROUP BY identity, kind ORDER BY identity, kind"
        )
        with self._reading():
            cursor = self._db.execute(statement)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def faults(self) -> list[str]:
        """What is wrong with the file, one line each; none where it is sound.

        SQLite's own integrity check, orphan rows (answers of a model that is not listed), keys of another length than
        a sha256, and answers that can't be read.
        """
        try:
            lines = [line for (line,) in self._db.execute("PRAGMA integrity_check(20)") if line != "ok"]
        except sqlite3.Error as error:
            lines = [str(error)]
        if lines:  # the rows of a damaged file can't be counted on
            return [f"integrity: {' '.join(line.split())}" for line in lines]
        found = []
        checks = {
            "orphan rows (their model is not listed)": "model_id NOT IN (SELECT model_id FROM models)",
            "keys that are no sha256": "typeof(key) <> 'blob' OR length(key) <> 32",
            "answers that are no JSON object": "NOT json_valid(answer) OR json_type(answer) <> 'object'",
        }
        for what, condition in checks.items():
            if count := self.execute(f"SELECT count(*) FROM answers WHERE {condition}")[0][0]:
                found.append(f"{count} {what}")
        return found

    def prune(self, model: str) -> int:
        """Delete the answers of one model identity and give their space back; returns how many there were."""
        gone, more = 0, True
        while more:
            with self.transaction() as db:
                deleted = db.execute(
                    "DELETE FROM answers WHERE rowid IN (SELECT answers.rowid FROM answers JOIN models USING (model_id)"
                    " WHERE identity = ? LIMIT ?)",
                    (model, PRUNED_AT_ONCE),
                ).rowcount
                more = deleted == PRUNED_AT_ONCE
                if not more:
                    db.execute("DELETE FROM models WHERE identity = ?", (model,))
            gone += deleted
        with self._reading():
            self._db.execute("VACUUM")
        return gone

    def prune_batches(self, model: str) -> int:
        """Forget a model identity's open batches, so that their calls may be asked again; returns how many."""
        with self.transaction() as db:
            return db.execute(
                "UPDATE batches SET collected = 1 WHERE identity = ? AND NOT collected", (model,)
            ).rowcount

    def __len__(self) -> int:
        return int(self.execute("SELECT COUNT(*) FROM answers")[0][0])


def _locked(descriptor: int) -> bool:
    """Take the lock on a file that is open, unless somebody else has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def pieces(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    rest = iter(items)
    while some := list(islice(rest, size)):
        yield some
