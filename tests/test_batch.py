"""A batch is submitted once, whatever dies in between, and gives all that it answered, also when it ends early."""

import json
import multiprocessing
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from asking import answered, ask, card, made_calls, made_params, number_of
from fault_server import BatchPlan, FaultServer, fault_server

from anamnesis import batch
from anamnesis.client import Client
from anamnesis.errors import UserError
from anamnesis.ledger import Ledger
from anamnesis.wire import Outcome


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs, cards and ledgers are written below the current folder."""
    monkeypatch.chdir(tmp_path)


def ask_by_batch(server: FaultServer, count: int, **sections: Any) -> list[Outcome]:
    return ask(server, made_calls(count), made_params(**sections), mode="batch")


def submitted(server: FaultServer) -> list[int]:
    """How many requests each batch at the server has."""
    return [len(server.batch.files[one["input_file_id"]].splitlines()) for one in server.batch.created]


def test_a_batch_gives_what_single_requests_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_server(FaultServer(batch=BatchPlan(polls=3))) as server:
        outcomes = ask_by_batch(server, 30)
        assert not server.tried
        assert ask_by_batch(server, 30) == outcomes
        assert submitted(server) == [30]
        assert server.batch.looks == {"batch-0": 3}
        monkeypatch.chdir(tmp_path / "logs")  # another ledger
        assert ask(server, made_calls(30)) == outcomes
        assert set(server.served.values()) == {2}
    assert all(outcome.answer for outcome in outcomes)


def test_what_one_file_can_not_hold_goes_into_several(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_REQUESTS", 12)
    with fault_server(FaultServer(batch=BatchPlan(polls=2))) as server:
        assert all(outcome.answer for outcome in ask_by_batch(server, 30))
        assert submitted(server) == [12, 12, 6]
    assert answered() == 30


@pytest.mark.parametrize(
    ("ends", "missing"),
    [
        ("completed", "batch completed, no answer"),
        ("expired", "batch: This request could not be executed in time."),
        ("cancelled", "batch cancelled, no answer"),
    ],
)
def test_a_batch_that_ends_early_gives_what_it_has(ends: str, missing: str) -> None:
    def fate(body: dict[str, Any]) -> str:
        return {0: "error", 1: "missing", 2: "missing"}.get(number_of(body), "ok")

    plan = BatchPlan(ends=ends, fate=fate)
    with fault_server(FaultServer(batch=plan)) as server:
        outcomes = ask_by_batch(server, 10)
        assert [outcome.reason for outcome in outcomes[:3]] == ["HTTP 400: not with me", missing, missing]
        assert all(outcome.answer for outcome in outcomes[3:])
        plan.ends, plan.fate = "completed", lambda body: "ok"
        again = ask_by_batch(server, 10)
        assert submitted(server) == [10, 3]
    assert all(outcome.answer for outcome in again)
    assert again[3:] == outcomes[3:]


def test_a_refused_file_ends_the_stage_and_can_be_submitted_again() -> None:
    with fault_server(FaultServer(batch=BatchPlan(ends="failed"))) as server:
        with pytest.raises(UserError, match="has no batches") as caught:
            ask_by_batch(server, 10)
        assert caught.value.code == 4
        server.batch.ends = "completed"
        assert all(outcome.answer for outcome in ask_by_batch(server, 10))
        assert submitted(server) == [10, 10]


def test_batches_that_do_not_fit_into_the_queue_wait_for_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "MOST_REQUESTS", 10)
    with fault_server(FaultServer(batch=BatchPlan(polls=3, room=1))) as server:
        assert all(outcome.answer for outcome in ask_by_batch(server, 30))
        status = Counter(one["status"] for one in server.batch.created)
        assert set(server.served.values()) == {1}
    assert status["completed"] == 3
    assert status["failed"] > 0


def crash(*_: Any) -> Any:
    raise KeyboardInterrupt


def die_at(step: str, server: FaultServer, count: int) -> None:
    """A run that ends at one of the module's functions."""
    with pytest.MonkeyPatch.context() as broken:
        broken.setattr(batch, step, crash)
        with pytest.raises(KeyboardInterrupt):
            ask_by_batch(server, count)


@pytest.mark.parametrize("moment", ["before the note", "reply lost", "while it waits"])
def test_whatever_dies_a_batch_is_submitted_once(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = BatchPlan(polls=2, page=2, lost_creates=1 if moment == "reply lost" else 0)
    with fault_server(FaultServer(batch=plan)) as server:
        with monkeypatch.context() as broken:
            if moment == "before the note":
                broken.setattr(batch.Batches, "submitted", crash)
            if moment == "while it waits":
                broken.setattr(batch, "_wait", crash)
            with pytest.raises((KeyboardInterrupt, UserError)) as caught:
                ask_by_batch(server, 10)
        if moment == "reply lost":
            assert caught.value.code == 3
        others = [plan.created[0] | {"id": f"other-{i}", "metadata": None} for i in range(5)]
        plan.created += others  # newer ones, so that it is on the third page of the list
        assert all(outcome.answer for outcome in ask_by_batch(server, 10))
        assert len(plan.created) == 1 + len(others)
        assert set(server.served.values()) == {1}


def test_what_a_batch_answered_is_kept_when_less_is_wanted() -> None:
    with fault_server(FaultServer(batch=BatchPlan(polls=2))) as server:
        die_at("_wait", server, 10)
        assert all(outcome.answer for outcome in ask_by_batch(server, 4))
        assert answered() == 10
        assert all(outcome.answer for outcome in ask_by_batch(server, 12))
        assert submitted(server) == [10, 2]


def test_a_batch_that_could_pass_a_cap_is_not_submitted() -> None:
    with fault_server(FaultServer()) as server:
        with pytest.raises(UserError, match=r"budget\.requests") as caught:
            ask_by_batch(server, 10, budget={"requests": 9})
        assert caught.value.code == 7
        assert not submitted(server)
        assert all(outcome.answer for outcome in ask_by_batch(server, 10, budget={"requests": 10}))


def test_a_refused_key_is_one_line_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLANTED", "sk-planted-0123456789")
    with fault_server(FaultServer()) as server:
        server.base_url += "/nothing"
        with pytest.raises(UserError, match="HTTP 404") as caught:
            ask(server, made_calls(3), mode="batch", api_key_env="PLANTED")
        assert caught.value.code == 4
        assert "sk-planted" not in str(caught.value)


def _ask_alone(first: int, last: int, slow_look: bool, told: Any) -> None:
    """In a process of its own: ask some calls by batches and tell the texts. `slow_look`: widen the race to submit."""
    if slow_look:
        look = batch._find
        batch._find = lambda *given: (look(*given), time.sleep(1))[0]  # type: ignore[assignment]
    with Ledger("l.sqlite") as ledger, Client("models/pretrained/fake", made_params(), ledger) as client:
        outcomes = client.ask(made_calls(last)[first:], "test")
    told.put(([first, last], [outcome.answer.text if outcome.answer else outcome.reason for outcome in outcomes]))


def _together(*runs: tuple[int, int, bool]) -> list[list[str]]:
    """What runs at once are told, in order of their calls."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    processes = [context.Process(target=_ask_alone, args=(*run, told)) for run in runs]
    for process in processes:
        process.start()
    found = sorted(told.get(timeout=120) for _ in runs)
    for process in processes:
        process.join()
        assert process.exitcode == 0
    return [texts for _, texts in found]


def test_two_runs_with_the_same_calls_submit_them_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_server(FaultServer(batch=BatchPlan(polls=100))) as server:
        card(Path("models/pretrained/fake"), server, mode="batch")
        first, second = _together((0, 20, False), (10, 30, False))
        assert sorted(Counter(submitted(server)).elements()) == [10, 20]
        assert set(server.served.values()) == {1}
        assert len(server.served) == 30
    assert first[10:] == second[:10]
    assert not any("batch" in text for text in first + second)


def test_two_reruns_after_a_crash_submit_once() -> None:
    """Both find the batch of a run that died before it could submit it."""
    with fault_server(FaultServer(batch=BatchPlan(polls=5))) as server:
        die_at("_submit", server, 10)
        with Ledger("l.sqlite") as ledger, ledger.transaction() as db:
            db.execute("UPDATE batches SET owner = replace(owner, ':', ':9999')")  # that process is gone
        first, second = _together((0, 10, True), (0, 10, True))
        assert submitted(server) == [10]
    assert first == second
    assert not any("batch" in text for text in first)


def test_a_run_waits_for_no_batch_of_other_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    with fault_server(FaultServer(batch=BatchPlan(polls=2))) as server:
        die_at("_wait", server, 3)
        waits: list[float] = []
        wait: Callable[..., None] = batch._wait
        monkeypatch.setattr(batch, "_wait", lambda seconds, meter: (waits.append(seconds), wait(seconds, meter)))
        other = ask(server, made_calls(6)[3:], mode="batch")  # what it has in common with the open batch: nothing
        assert all(outcome.answer for outcome in other)
        assert [seconds > 0 for seconds in waits] == [True, False]
        assert submitted(server) == [3, 3]
    log = [json.loads(line) for line in Path("logs/requests.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [event["event"] for event in log] == ["start", "end"] * 2


def test_what_waits_in_a_batch_is_not_asked_one_by_one() -> None:
    """It would be paid twice, unless somebody says so."""
    with fault_server(FaultServer(batch=BatchPlan(polls=2))) as server:
        die_at("_wait", server, 10)
        with pytest.raises(UserError, match="10 of the calls wait in batch batch-0"):
            ask(server, made_calls(12))
        assert not server.tried
        with Ledger("l.sqlite") as ledger:
            assert ledger.prune_batches("endpoint:fake#fake") == 1
        assert all(outcome.answer for outcome in ask(server, made_calls(12)))
