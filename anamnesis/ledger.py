"""The ledger: every call that a model ever answered, keyed by its content, so that none is made twice.

A key is the sha256 over the canonical JSON of what determines an answer: the model's identity, the kind of call, the
messages or prompt, the sampling settings, the seed and the sample index. The value is what came back, raw. It lives
outside DVC (`.ledger/ledger.sqlite`, or the file named by ANAMNESIS_LEDGER), so it survives `dvc repro`, experiments,
branches and kill -9. SQLite in WAL mode: safe with several processes on one machine, not on a network file system.
"""

import hashlib
import json
import os
import sqlite3
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from anamnesis.errors import UserError

KEY_VERSION = 1  # part of every key: a change of the encoding can't meet an old row by accident
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Answer:
    """What one call returned. `logprobs`: tokens that could have stood in one position, with natural logs."""

    text: str | None
    finish_reason: str | None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    logprobs: dict[str, float] | None = None
    refusal: str | None = None


def key_of(call: dict[str, Any]) -> str:
    """The key of a call: sha256 over its canonical JSON (sorted keys, no white space, UTF-8) and the key version."""
    encoded = json.dumps(
        [KEY_VERSION, call], sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return hashlib.sha256(encoded.encode("utf-8", "surrogatepass")).hexdigest()


def default_path() -> Path:
    """The ledger's file: ANAMNESIS_LEDGER, else `.ledger/ledger.sqlite` below the current folder."""
    return Path(os.environ.get("ANAMNESIS_LEDGER") or ".ledger/ledger.sqlite").absolute()


class Ledger:
    """One SQLite file of answers. Use as a context manager.

    Every `put` is committed on its own: in WAL mode that is one write without a sync (tens of microseconds beside a
    model call), and kill -9 then costs no finished call at all. Raises `UserError` where the file can't be opened or
    written, or is of a newer schema.
    """

    def __init__(self, path: str | Path | None = None):
        self.path = Path(path) if path else default_path()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            new = not self.path.exists()
            self._db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            if new:
                self.path.chmod(0o600)  # prompts and answers are nobody else's business
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute(
                "PRAGMA synchronous=NORMAL"
            )  # kill -9 loses nothing committed; a power cut, the last batch
            version = self._db.execute("PRAGMA user_version").fetchone()[0]
            if version > SCHEMA_VERSION:
                raise UserError(f"{self.path}: ledger of schema {version}, this version knows {SCHEMA_VERSION}; update")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, model TEXT NOT NULL, kind TEXT NOT NULL,"
                " answer TEXT NOT NULL, latency_s REAL, at REAL NOT NULL) WITHOUT ROWID"
            )
            self._db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        except (sqlite3.Error, OSError) as error:
            raise UserError(
                f"ledger {self.path}: {error}; set ANAMNESIS_LEDGER to a file on a local disk that you may write"
            ) from None

    def __enter__(self) -> "Ledger":
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def get(self, key: str) -> Answer | None:
        """The answer stored under a key, or None."""
        row = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return Answer(**json.loads(row[0])) if row else None

    def put(self, key: str, model: str, kind: str, answer: Answer, latency_s: float) -> None:
        """Store an answer; the first one under a key stays."""
        row = (key, model, kind, json.dumps(asdict(answer)), latency_s, time.time())
        try:
            self._db.execute("INSERT OR IGNORE INTO answers VALUES (?, ?, ?, ?, ?, ?)", row)
        except sqlite3.Error as error:
            raise UserError(f"ledger {self.path}: {error}; free the disk or set ANAMNESIS_LEDGER, then rerun") from None

    def __len__(self) -> int:
        return int(self._db.execute("SELECT COUNT(*) FROM answers").fetchone()[0])
