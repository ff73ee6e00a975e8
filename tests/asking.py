"""What tests of asking share: a model card that names the fault server, params around it, made-up calls, one run."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from fault_server import FaultServer

from anamnesis import conversing, records
from anamnesis.client import Client
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.sections import Converse
from anamnesis.wire import Call, Outcome

ROOT = Path(__file__).resolve().parent.parent
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


def answered() -> int:
    """How many calls the ledger of the current folder has."""
    with Ledger("l.sqlite") as ledger:
        return len(ledger)


def made_response(instruction_id: str, member: str) -> dict[str, Any]:
    """A member's complete response, a row of `records.RESPONSES`."""
    row: dict[str, Any] = dict.fromkeys(records.RESPONSES.names)
    name = records.digest("response", instruction_id, member, 0)
    return row | {
        "response_id": name, "instruction_id": instruction_id, "member": member, "sample_index": 0,
        "text": f"{member} says so", "status": "ok",
    }  # fmt: skip
