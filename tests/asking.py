"""What tests of asking share: a model card that names the fault server, params around it, made-up calls, one run."""

import json
import math
import os
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fault_server import FaultServer

from anamnesis import conversing, records
from anamnesis.client import Client
from anamnesis.judging import Mode
from anamnesis.ledger import Answer, Ledger
from anamnesis.params import Params
from anamnesis.sections import Converse
from anamnesis.wire import Call, Outcome

ROOT = Path(__file__).resolve().parent.parent
MODES: list[tuple[Mode, bool]] = [(mode, local) for mode in ("expected", "score", "justify") for local in (True, False)]
QUICK = {"concurrency": 8, "retries": 3, "timeout_s": 5, "failure_budget": 0.1, "batch_poll_s": 0.02}


def made_params(**sections: dict[str, Any]) -> Params:
    """params.yaml with a further model `fake` and requests that are QUICK; `sections` change keys of its sections."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["models"]["fake"] = {"base_url": "http://127.0.0.1:1/v1", "model": "fake"}
    raw["requests"] |= QUICK
    for name, changes in sections.items():
        raw[name] = raw.get(name, {}) | changes
    return Params.model_validate(raw)


def card(folder: Path, server: FaultServer, **changes: Any) -> Path:
    """A model directory that says the fault server has the model."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"name": "fake", "kind": "endpoint", "identity": "endpoint:fake#fake", "base_url": server.base_url}
    (folder / "model.json").write_text(json.dumps(entry | {"model": "fake"} | changes), encoding="utf-8")
    return folder


def served_params(raw: dict[str, Any], server: FaultServer, samples: int) -> dict[str, Any]:
    """`raw` with a committee of two, the target and `fake`, that are both asked at the fault server; both judge."""
    raw["models"] = {
        "smollm2": {**raw["models"]["smollm2"], "base_url": server.base_url, "model": "smollm2"},
        "fake": {"base_url": server.base_url, "model": "fake"},
    }
    raw["committee"] = {name: {"sampling": {"samples": samples, "max_tokens": 40}} for name in raw["models"]}
    raw["judges"] = {"fake": {"mode": "justify"}, "smollm2": {"mode": "expected"}}
    raw["variants"] = {"domain-only": {"rehearsal": "none"}}
    raw["select"]["heldout"] = 0.25
    raw["mix"]["total"] = 4
    return raw


def served_cards(folder: Path, server: FaultServer) -> None:
    """The model directories of `served_params` below a project."""
    for name in ("smollm2", "fake"):
        identity = f"endpoint:{server.base_url}#{name}"
        card(folder / "models/pretrained" / name, server, name=name, identity=identity, model=name)


def write_conversations(folder: Path, instructions: Sequence[dict[str, Any]]) -> None:
    """What stage converse makes of instructions by default: a single turn of each that is good."""
    good = [row for row in instructions if row["status"] == "ok"]
    rows = [conversing.begin(row, Converse(), "fake", 17).row() for row in good]
    records.write(folder / "data/conversations.parquet", rows, records.CONVERSATIONS, ["instruction_id"])


def made_call(number: int, index: int = 0) -> Call:
    """A sample of the answer to a question that no other number has."""
    request = {"messages": [{"role": "user", "content": f"question {number}"}], "seed": 1000 * index + number}
    return Call("chat", request, index)


def made_calls(count: int, samples: int = 1) -> list[Call]:
    return [made_call(number, index) for number in range(count) for index in range(samples)]


def number_of(body: dict[str, Any]) -> int:
    """The number of a made-up call in the request for it."""
    return int(body["messages"][0]["content"].split()[1])


def ask(server: FaultServer, calls: Sequence[Call], params: Params | None = None, **changes: Any) -> list[Outcome]:
    """One run in the current folder: ledger `l.sqlite`, the card (with `changes`) where identities are looked up."""
    model_dir = card(Path("models/pretrained/fake"), server, **changes)
    with Ledger("l.sqlite") as ledger, Client(model_dir, params or made_params(), ledger) as client:
        return client.ask(calls, "test")


def kill(process: "subprocess.Popen[Any]", server: FaultServer, count: int) -> None:
    """kill -9 a process of its own group when the server has answered `count` more; none further before it is dead."""
    start, dead = server.served.total(), threading.Event()
    usual = server.fault

    def hold(body: dict[str, Any], tries: int) -> Any:
        if server.served.total() >= start + count:
            dead.wait(60)
        return usual(body, tries)

    server.fault = hold
    deadline = time.monotonic() + 120
    while server.served.total() < start + count and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    dead.set()
    server.fault = usual
    server.settle()  # what was in flight at the kill finishes at the server


def answered() -> int:
    """How many calls the ledger of the current folder has."""
    with Ledger("l.sqlite") as ledger:
        return len(ledger)


def answer(text: str | None, finish: str = "stop", **probabilities: float) -> Outcome:
    """A judge's reply; `_5=0.9` is the probability of the token 5."""
    logprobs = {name[1:]: math.log(share) for name, share in probabilities.items()} or None
    return Outcome(Answer(text, finish, logprobs=logprobs))


def made_response(instruction_id: str, member: str) -> dict[str, Any]:
    """A member's complete response, a row of `records.RESPONSES`."""
    row: dict[str, Any] = dict.fromkeys(records.RESPONSES.names)
    name = records.digest("response", instruction_id, member, 0)
    return row | {
        "response_id": name, "instruction_id": instruction_id, "member": member, "sample_index": 0,
        "text": f"{member} says so", "status": "ok",
    }  # fmt: skip
