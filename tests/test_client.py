"""What the ledger has is not asked again; what is asked ends in an answer or a reason; kill -9 repeats nothing done."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from fault_server import FaultServer, fault_server

from anamnesis import records
from anamnesis.client import Call, Client
from anamnesis.errors import UserError
from anamnesis.ledger import Ledger
from anamnesis.params import Requests, Serve

QUICK = Requests(concurrency=8, retries=3, timeout_s=5, failure_budget=0.1)


def card(folder: Path, server: FaultServer, **changes: Any) -> Path:
    """A model directory that says the fault server has the model."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = {"name": "fake", "kind": "endpoint", "identity": "endpoint:fake#fake", "base_url": server.base_url}
    (folder / "model.json").write_text(json.dumps(entry | {"model": "fake"} | changes), encoding="utf-8")
    return folder


def calls(count: int) -> list[Call]:
    return [Call("chat", {"messages": [{"role": "user", "content": f"question {i}"}], "seed": i}) for i in range(count)]


def ask(folder: Path, server: FaultServer, count: int, requests: Requests = QUICK) -> list[Any]:
    with Ledger(folder / "l.sqlite") as ledger, Client(card(folder / "m", server), Serve(), requests, ledger) as client:
        return client.ask(calls(count), "test")


def test_a_second_run_asks_nothing(tmp_path: Path) -> None:
    with fault_server(FaultServer()) as server:
        first = ask(tmp_path, server, 40)
        asked = sum(server.served.values())
        second = ask(tmp_path, server, 40)
        third = ask(tmp_path, server, 41)
    assert asked == 40
    assert first == second == third[:40]
    assert sum(server.served.values()) == 41
    assert all(outcome.answer for outcome in third)


def test_never_more_in_flight_than_asked_for(tmp_path: Path) -> None:
    with fault_server(FaultServer(delay_s=0.02)) as server:
        ask(tmp_path, server, 60)
        assert 2 <= server.most_in_flight <= QUICK.concurrency


PASSING = {
    "429": (429, {"retry-after": "0.05"}, b'{"error": {"message": "slow down"}}'),
    "500": (500, {}, b"oops"),
    "503": (503, {}, b"{}"),
    "reset": (0, {}, b""),
    "not json": (200, {}, b'{"choices": [{"mess'),
    "no choices": (200, {}, b'{"id": "x", "object": "chat.completion", "created": 0, "model": "fake", "choices": []}'),
    "null content": (
        200,
        {},
        b'{"id": "x", "object": "chat.completion", "created": 0, "model": "fake", "choices": [{"index": 0,'
        b' "finish_reason": "stop", "message": {"role": "assistant", "content": null}}]}',
    ),
}


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_fault_costs_a_retry_and_no_row(fault: str, tmp_path: Path) -> None:
    with fault_server(FaultServer(fault=lambda body, tries: PASSING[fault] if tries == 1 else None)) as server:
        outcomes = ask(tmp_path, server, 6)
    assert all(outcome.answer for outcome in outcomes)
    assert set(server.tried.values()) == {2}


def test_a_hard_error_costs_its_own_row_only_and_no_retry(tmp_path: Path) -> None:
    def fault(body: dict[str, Any], tries: int) -> Any:
        bad = body["messages"][0]["content"] == "question 3"
        return (400, {}, b'{"error": {"message": "too long for me"}}') if bad else None

    with fault_server(FaultServer(fault=fault)) as server:
        outcomes = ask(tmp_path, server, 10)
        assert sum(server.tried.values()) == 10
        again = ask(tmp_path, server, 10)
        assert sum(server.tried.values()) == 11  # only the failed row is asked again
    assert [bool(outcome.answer) for outcome in outcomes] == [i != 3 for i in range(10)]
    assert outcomes[3].reason == "HTTP 400: too long for me"
    assert again == outcomes


@pytest.mark.parametrize(("status", "words"), [(401, "bad key"), (403, "bad key"), (404, "bad key")])
def test_a_refused_key_or_model_stops_at_once(status: int, words: str, tmp_path: Path) -> None:
    reply = (status, {}, json.dumps({"error": {"message": words}}).encode())
    with fault_server(FaultServer(fault=lambda body, tries: reply, delay_s=0.01)) as server:
        with pytest.raises(UserError, match=f"HTTP {status}: {words}") as caught:
            ask(tmp_path, server, 200)
        assert caught.value.code == 4
        assert sum(server.tried.values()) <= 2 * QUICK.concurrency


@pytest.mark.parametrize(("bad", "stops"), [(19, False), (60, True)])
def test_the_failure_budget_counts_finished_rows_and_needs_twenty(bad: int, stops: bool, tmp_path: Path) -> None:
    def fault(body: dict[str, Any], tries: int) -> Any:
        number = int(body["messages"][0]["content"].split()[1])
        return (400, {}, b'{"error": {"message": "no"}}') if number < bad else None

    with fault_server(FaultServer(fault=fault)) as server:
        if stops:
            with pytest.raises(UserError, match="failure_budget") as caught:
                ask(tmp_path, server, 100)
            assert caught.value.code == 5
        else:
            outcomes = ask(tmp_path, server, 100)
            assert sum(outcome.answer is None for outcome in outcomes) == bad


def test_a_missing_key_is_one_line_before_any_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with fault_server(FaultServer()) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        folder = card(tmp_path / "m", server, api_key_env="NO_SUCH_KEY")
        with Client(folder, Serve(), QUICK, ledger) as client, pytest.raises(UserError, match="NO_SUCH_KEY") as caught:
            client.ask(calls(3), "test")
        assert caught.value.code == 4
        assert not server.tried


def test_the_key_goes_to_the_server_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PLANTED", "sk-planted-0123456789")
    with fault_server(FaultServer()) as server, Ledger(tmp_path / "l.sqlite") as ledger:
        with Client(card(tmp_path / "m", server, api_key_env="PLANTED"), Serve(), QUICK, ledger) as client:
            client.ask(calls(3), "test")
            assert "planted" not in repr(client._endpoint)
        assert server.headers[0]["authorization"] == "Bearer sk-planted-0123456789"
    out = capfd.readouterr()
    assert "sk-planted" not in out.out + out.err
    assert all(b"sk-planted" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def _instructions(folder: Path, count: int) -> None:
    rows = [
        {"instruction_id": records.digest("instruction", i), "sample_index": i, "text": f"Tell me fact number {i}.",
         "status": "ok", "reason": None, "finish_reason": "stop", "tokens": 6}
        for i in range(count)
    ]  # fmt: skip
    records.write(folder / "data/instructions.parquet", rows, records.INSTRUCTIONS, ["sample_index"])


def _stage(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL
    )


def _kill_in_the_middle(folder: Path, server: FaultServer, after: int, *arguments: str) -> int:
    """Start a stage, kill -9 its process group once `after` more requests were answered; requests in flight then."""
    start = sum(server.served.values())
    process = _stage(folder, *arguments)
    deadline = time.monotonic() + 120
    while sum(server.served.values()) < start + after and time.monotonic() < deadline:
        assert process.poll() is None, "the stage ended before it could be killed"
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while server.in_flight:  # what was in flight at the kill finishes at the server
        time.sleep(0.01)
    return sum(server.served.values()) - start


@pytest.mark.parametrize(
    ("stage", "argument", "output", "schema"),
    [
        ("stages.respond", "fake", "data/responses/fake.parquet", records.RESPONSES),
        ("stages.judge", "fake", "data/judgments/fake.parquet", records.JUDGMENTS),
    ],
)
def test_kill_9_repeats_no_finished_call_and_changes_no_byte(
    stage: str,
    argument: str,
    output: str,
    schema: Any,
    default_params: dict[str, Any],
    project: Callable[..., Path],
) -> None:
    concurrency, rows = 4, 60
    params = default_params
    with fault_server(FaultServer(delay_s=0.01)) as server:
        params["models"]["fake"] = {"base_url": server.base_url, "model": "fake"}
        params["committee"] = {"smollm2": {}, "fake": {"sampling": {"samples": 2}}}
        params["judges"] = {"fake": {"mode": "justify"}}
        params["variants"] = {"domain-only": {"rehearsal": "none"}}
        params["requests"]["concurrency"] = concurrency
        params["select"]["heldout"] = 0.0
        folder = project(params)
        card(folder / "models/pretrained/fake", server)
        _instructions(folder, rows)
        if stage == "stages.judge":
            records.write(folder / "data/responses/smollm2.parquet", [], records.RESPONSES, ["response_id"])
            assert _stage(folder, "stages.respond", "fake").wait() == 0
        total = 2 * rows
        server.served.clear()
        killed = 0
        for after in (15, 30, 20):
            _kill_in_the_middle(folder, server, after, stage, argument)
            killed += 1
        assert not (folder / output).exists()
        assert _stage(folder, stage, argument).wait() == 0
        assert len(server.served) == total
        repeated = sum(server.served.values()) - total
        assert repeated <= killed * concurrency  # only what was in flight at a kill
        interrupted = (folder / output).read_bytes()

        before = sum(server.served.values())
        assert _stage(folder, stage, argument).wait() == 0
        assert sum(server.served.values()) == before  # a finished run asks nothing
        (folder / ".ledger/ledger.sqlite").unlink()
        for side in ("-wal", "-shm"):
            (folder / f".ledger/ledger.sqlite{side}").unlink(missing_ok=True)
        assert _stage(folder, stage, argument).wait() == 0
        assert sum(server.served.values()) == before + total  # without the ledger everything is asked
        assert (folder / output).read_bytes() == interrupted
        assert pq.read_table(folder / output).num_rows == total
        assert {row["status"] for row in records.read(folder / output, schema)} == {"ok"}
