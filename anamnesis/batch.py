"""The OpenAI Batch API as a way to ask: cheaper, answered within a day, and never submitted twice.

What is about to be submitted is written to the ledger first, under a random mark that goes into the batch's metadata.
A run that dies between the server's yes and its own note finds the batch again by that mark. Calls that wait in an open
batch are not submitted by another run: it waits for that batch too. Batches that end early give what they have.

API: https://platform.openai.com/docs/guides/batch (at most 50,000 requests and 200 MB in a file).
"""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from openai.types import Batch, Completion
from openai.types.chat import ChatCompletion

from anamnesis import wire
from anamnesis.errors import MODEL_UNAVAILABLE, OVER_BUDGET, REQUEST_REFUSED, UserError
from anamnesis.ledger import Ledger, Record
from anamnesis.meter import Meter
from anamnesis.progress import say
from anamnesis.sections import Requests
from anamnesis.server import Endpoint
from anamnesis.spending import Cost, Purse, bound
from anamnesis.wire import Call

MOST_REQUESTS, MOST_BYTES = 50_000, 150_000_000
MARK = "anamnesis"  # the metadata's key
PATHS = {"chat": "/v1/chat/completions", "completion": "/v1/completions"}
OVER = frozenset({"completed", "failed", "expired", "cancelled"})
CLOCKS_APART_S = 3600.0
TICK_S = 1.0


@dataclass(frozen=True)
class Open:
    """A batch of the ledger that is not collected yet; `batch_id` is None until the server has taken it."""

    row: int
    mark: str
    batch_id: str | None
    owner: str
    at: float


class Batches:
    """The ledger's notes on batches of one model."""

    def __init__(self, ledger: Ledger, identity: str):
        self._ledger, self._identity = ledger, identity

    def claim(self, todo: dict[str, Call], model: str) -> None:
        """Note what is to be submitted: those of `todo` that are in no open batch, a row a file."""
        with self._ledger.transaction() as db:
            waiting = {key for one in self.open() for key in self.keys(one)}
            free = {key: call for key, call in todo.items() if key not in waiting}
            for lines in files(free, model):
                row = db.execute(
                    "INSERT INTO batches (identity, mark, owner, at) VALUES (?, ?, ?, ?)",
                    (self._identity, uuid.uuid4().hex, _me(), time.time()),
                ).lastrowid
                db.executemany("INSERT INTO batch_calls VALUES (?, ?)", [(row, bytes.fromhex(key)) for key in lines])

    def open(self) -> list[Open]:
        """Batches that are not collected yet, oldest first."""
        rows = self._ledger.execute(
            "SELECT batch_row, mark, batch_id, owner, at FROM batches WHERE identity = ? AND NOT collected"
            " ORDER BY batch_row",
            (self._identity,),
        )
        return [Open(*row) for row in rows]

    def keys(self, one: Open) -> list[str]:
        """The keys of a batch's calls."""
        rows = self._ledger.execute("SELECT key FROM batch_calls WHERE batch_row = ? ORDER BY rowid", (one.row,))
        return [key.hex() for (key,) in rows]

    def take(self, one: Open) -> bool:
        """Make a batch this process's to submit; False where another one has just done so, or has submitted it."""
        with self._ledger.transaction() as db:
            taken = db.execute(
                "UPDATE batches SET owner = ? WHERE batch_row = ? AND owner = ? AND batch_id IS NULL",
                (_me(), one.row, one.owner),
            )
            return taken.rowcount == 1

    def submitted(self, one: Open, batch_id: str) -> None:
        """Note the server's name of a batch."""
        with self._ledger.transaction() as db:
            db.execute("UPDATE batches SET batch_id = ? WHERE batch_row = ?", (batch_id, one.row))

    def renew(self, one: Open) -> None:
        """Make a batch that the server would not queue one to be submitted, under another mark."""
        with self._ledger.transaction() as db:
            db.execute("UPDATE batches SET batch_id = NULL, mark = ? WHERE batch_row = ?", (uuid.uuid4().hex, one.row))

    def close(self, one: Open) -> None:
        """Note that a batch is collected, or was never taken."""
        with self._ledger.transaction() as db:
            db.execute("UPDATE batches SET collected = 1 WHERE batch_row = ?", (one.row,))


def _started(pid: int) -> str:
    """When a process started, in clock ticks since boot (proc(5), stat, field 22); empty where there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def _me() -> str:
    """This process, so that no later one with its number is taken for it."""
    return f"{socket.gethostname()}:{os.getpid()}:{_started(os.getpid())}"


def _lives(owner: str) -> bool:
    """Whether another process noted a batch and still runs, so that submitting it is its business."""
    host, pid, started = owner.rsplit(":", 2)
    return owner != _me() and host == socket.gethostname() and bool(started) and _started(int(pid)) == started


def _line(key: str, call: Call, model: str) -> bytes:
    """One request of a batch's file."""
    body = {"model": model, **call.request}
    body |= body.pop("extra_body", {})
    line = {"custom_id": key, "method": "POST", "url": PATHS[call.kind], "body": body}
    return json.dumps(line, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def files(todo: dict[str, Call], model: str) -> Iterator[list[str]]:
    """Keys in the portions that one file of the API holds; a file asks one kind of call."""
    portion: list[str] = []
    size, kind = 0, ""
    for key, call in todo.items():
        length = len(_line(key, call, model))
        if portion and (len(portion) == MOST_REQUESTS or size + length > MOST_BYTES or call.kind != kind):
            yield portion
            portion, size = [], 0
        portion.append(key)
        size, kind = size + length, call.kind
    if portion:
        yield portion


def ask(
    todo: dict[str, Call], where: Endpoint, ledger: Ledger, requests: Requests, purse: Purse, label: str
) -> dict[str, str]:
    """Ask every call in `todo` by batches and store the answers; the reasons of those that failed, by key.

    Waits until each batch is over. Raises `UserError`: REQUEST_REFUSED where the server refuses the key, the model or
    the file, MODEL_UNAVAILABLE where it can't be reached (a rerun goes on with the same batches), OVER_BUDGET where the
    most a batch can cost does not fit.
    """
    notes = Batches(ledger, where.identity)
    client = openai.OpenAI(
        base_url=where.base_urls[0], api_key=where.api_key, timeout=requests.timeout_s, max_retries=requests.retries
    )
    failures: dict[str, str] = {}
    held: dict[int, Cost] = {}
    with (
        client,
        Meter(label, len(todo), lambda: len(todo) - meter.answered - meter.failed, purse.price is not None) as meter,
    ):
        notes.claim(todo, where.model)
        while pending := {one: calls for one in notes.open() if (calls := _common(notes.keys(one), todo))}:
            running, stop = 0, None
            for one, calls in pending.items():
                most = sum((bound([call], purse.price) for call in calls.values()), Cost())
                try:
                    batch_id = one.batch_id or _submit(client, where, notes, one, calls, purse, most)
                except UserError as error:
                    if error.code != OVER_BUDGET:
                        raise
                    stop = error  # what is submitted is waited for first
                    continue
                if one.row not in held:
                    held[one.row] = purse.set_aside(most)
                with _told(where):
                    state = client.batches.retrieve(batch_id) if batch_id else None
                if not state or state.status not in OVER:
                    running += 1
                    continue
                kind = next(iter(calls.values())).kind  # one file asks one kind
                answered, failed = _collect(client, where, state, notes.keys(one), kind)
                ledger.put_many(answered)
                real = {r.key: purse.price_of(r.answer.prompt_tokens, r.answer.completion_tokens) for r in answered}
                purse.settle(held.pop(one.row), sum(real.values(), Cost()))
                if state.status == "failed" and _is_queue_full(state) and len(pending) > 1:
                    notes.renew(one)  # to be submitted once more, when another one is over
                    continue
                notes.close(one)
                if state.status == "failed":
                    raise UserError(_refusal(where, state), REQUEST_REFUSED)
                for cost in (real[key] for key in calls if key in real):
                    meter.answer(1, cost)
                for reason in (failed[key] for key in calls if key in failed):
                    meter.failure(1, reason.split(":")[0])
                failures |= failed
            if stop and not running:
                raise stop
            _wait(requests.batch_poll_s if running else 0.0, meter)
        known = ledger.known(todo)
    return {key: failures.get(key, "the batch gave no answer") for key in todo if key not in known}


def check_none_waits(todo: Iterable[str], where: Endpoint, ledger: Ledger, name: str) -> None:
    """Raise `UserError` where calls that are about to be asked one by one wait in a batch: they would be paid twice."""
    notes, wanted = Batches(ledger, where.identity), set(todo)
    for one in notes.open():
        if one.batch_id and (count := len(wanted & set(notes.keys(one)))):
            raise UserError(
                f"models.{name}: {count} of the calls wait in batch {one.batch_id}; set mode: batch to collect it "
                f"first, or give it up with python -m anamnesis.ledger prune-batches {name}"
            )


def _is_queue_full(state: Batch) -> bool:
    """Whether a batch was refused because too much is waiting at the server already."""
    return any(error.code == "token_limit_exceeded" for error in (state.errors and state.errors.data) or ())


def _common(keys: Iterable[str], todo: dict[str, Call]) -> dict[str, Call]:
    return {key: todo[key] for key in keys if key in todo}


def _wait(seconds: float, meter: Meter) -> None:
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(min(TICK_S, left))
        meter.tick()


def _submit(
    client: openai.OpenAI,
    where: Endpoint,
    notes: Batches,
    one: Open,
    calls: dict[str, Call],
    purse: Purse,
    most: Cost,
) -> str | None:
    """Give a noted batch to the server, or find it there; None while another process is about to."""
    if _lives(one.owner) or not notes.take(one):
        say(f"batch {one.mark[:8]}: process {one.owner} is about to submit it; waiting")
        return None
    batch_id = _find(client, where, one)
    if batch_id is None:
        purse.check(most)
        lines = b"".join(_line(key, call, where.model) for key, call in calls.items())
        kind = next(iter(calls.values())).kind
        with _told(where):
            file = client.files.create(file=(f"{one.mark}.jsonl", lines), purpose="batch")
            # No retry here: a create whose reply was lost is looked for by its mark, never sent again blindly.
            created = client.with_options(max_retries=0).batches.create(
                input_file_id=file.id,
                endpoint=PATHS[kind],  # type: ignore[arg-type]
                completion_window="24h",
                metadata={MARK: one.mark},
            )
        batch_id = created.id
    notes.submitted(one, batch_id)
    return batch_id


def _find(client: openai.OpenAI, where: Endpoint, one: Open) -> str | None:
    """The server's name of a batch that an earlier run may have submitted."""
    with _told(where):
        for batch in client.batches.list(limit=100):  # newest first
            if (batch.metadata or {}).get(MARK) == one.mark:
                return batch.id
            if batch.created_at < one.at - CLOCKS_APART_S:
                return None
    return None


def _collect(
    client: openai.OpenAI, where: Endpoint, state: Batch, keys: Sequence[str], kind: str
) -> tuple[list[Record], dict[str, str]]:
    """What a batch that is over answered, also to calls that nobody wants now, and reasons for what it did not."""
    records: dict[str, Record] = {}
    failures = dict.fromkeys(keys, f"batch {state.status}, no answer")
    for file_id in (state.output_file_id, state.error_file_id):
        for entry in _entries(client, where, file_id):
            key = str(entry.get("custom_id"))
            if key in failures:
                try:
                    records[key] = Record(key, where.identity, kind, _read(entry, kind), None)
                except (wire.Passing, wire.Final) as error:
                    failures[key] = str(error)
    return list(records.values()), {key: reason for key, reason in failures.items() if key not in records}


def _refusal(where: Endpoint, state: Batch) -> str:
    """The line for a batch that the server would not run."""
    errors = state.errors.data if state.errors and state.errors.data else []
    said = wire.short(errors[0].message or errors[0].code) if errors else "no reason given"
    return f"model {where.model} at {where.base_urls[0]}: batch {state.id} was refused: {said}"


def _entries(client: openai.OpenAI, where: Endpoint, file_id: str | None) -> Iterable[dict[str, Any]]:
    """The lines of a result file; what is no JSON object is passed over."""
    if not file_id:
        return
    with _told(where):
        lines = client.files.content(file_id).text.splitlines()
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict):
            yield entry


def _read(entry: dict[str, Any], kind: str) -> Any:
    """The answer in a line of a result file."""
    response, error = entry.get("response") or {}, entry.get("error") or {}
    body = response.get("body") or {}
    if error:
        raise wire.Final(f"batch: {error.get('message') or error.get('code')}"[: wire.SAID_CHARACTERS])
    if response.get("status_code") != 200:
        said = wire.short((body.get("error") or {}).get("message"))
        raise wire.Final(f"HTTP {response.get('status_code')}: {said}")
    try:
        parsed = ChatCompletion.model_validate(body) if kind == "chat" else Completion.model_validate(body)
    except ValueError as wrong:
        raise wire.Passing("unreadable reply") from wrong
    return wire.read(parsed, kind, 1)[0]


@contextmanager
def _told(where: Endpoint) -> Iterator[None]:
    """Turn openai's errors into one line."""
    place = f"model {where.model} at {where.base_urls[0]}"
    try:
        yield
    except openai.APIStatusError as error:
        code = MODEL_UNAVAILABLE if error.status_code in wire.PASSING else REQUEST_REFUSED
        raise UserError(f"{place}: HTTP {error.status_code}: {wire.message_of(error, where.api_key)}", code) from None
    except openai.OpenAIError as error:
        raise UserError(
            f"{place}: {type(error).__name__}; batches go on there, a rerun collects them", MODEL_UNAVAILABLE
        ) from None
