"""What the ledger has is not asked again; what is asked ends in an answer or a reason; kill -9 repeats nothing done.

Also: no server is asked faster than it can stand or than an account may, no cap is passed, no key is told.
"""

import email.utils
import json
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from asking import answered, ask, card, kill, made_call, made_calls, made_params, number_of, write_conversations
from fault_server import CHARGED, COMPLETION_TOKENS, PROMPT_TOKENS, FaultServer, error_body, fault_server

from anamnesis import client as client_module
from anamnesis import records
from anamnesis.client import Client
from anamnesis.errors import UserError
from anamnesis.ledger import Ledger
from anamnesis.spending import expected_tokens

CEILING = 8  # concurrency of asking.QUICK
A_CALL = PROMPT_TOKENS + COMPLETION_TOKENS  # tokens


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs, cards and ledgers are written below the current folder; waits are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.05)


def test_a_second_run_asks_nothing() -> None:
    with fault_server(FaultServer()) as server:
        first = ask(server, made_calls(40))
        asked = server.served.total()
        second = ask(server, made_calls(40))
        third = ask(server, made_calls(41))
    assert asked == 40
    assert first == second == third[:40]
    assert server.served.total() == 41
    assert all(outcome.answer for outcome in third)


def test_never_more_in_flight_than_asked_for() -> None:
    with fault_server(FaultServer(delay_s=0.02)) as server:
        ask(server, made_calls(60))
        assert 2 <= server.most_in_flight <= CEILING


EMPTY = {"id": "x", "object": "chat.completion", "created": 0, "model": "fake", "choices": []}
NULL = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": None}}
A_PASSING = {
    "429": (429, {"retry-after": "0.05"}, error_body("slow down")),
    "429 without a wait": (429, {}, error_body("slow down")),
    "408": (408, {}, b""),
    "500": (500, {}, b"oops"),
    "502": (502, {}, b"<html>bad gateway</html>"),
    "503": (503, {}, b"{}"),
    "a 5xx of a proxy": (520, {}, b"<html>unknown error</html>"),
    "529": (529, {}, b"{}"),
    "reset": (0, {}, b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{"),
    "hang up": (0, {}, b""),
    "not json": (200, {}, b'{"choices": [{"mess'),
    "a list": (200, {}, b"[]"),
    "an error in a 200": (200, {}, error_body("overloaded")),
    "html": (200, {"content-type": "text/html"}, b"<html>please log in</html>"),
    "no choices": (200, {}, json.dumps(EMPTY).encode()),
    "null content": (200, {}, json.dumps(EMPTY | {"choices": [NULL]}).encode()),
    "two choices": (200, {}, json.dumps(EMPTY | {"choices": [NULL, NULL]}).encode()),
}


@pytest.mark.parametrize("fault", A_PASSING)
def test_a_passing_fault_costs_a_retry_and_no_row(fault: str) -> None:
    with fault_server(FaultServer(fault=lambda body, tries: A_PASSING[fault] if tries == 1 else None)) as server:
        outcomes = ask(server, made_calls(6))
    assert all(outcome.answer for outcome in outcomes)
    assert set(server.tried.values()) == {2}


def test_a_request_that_hangs_is_asked_again() -> None:
    server = FaultServer(faults={"hang": 1.0}, most_faults=1)
    with fault_server(server):
        outcomes = ask(server, made_calls(6), made_params(requests={"timeout_s": 0.3}))
    assert all(outcome.answer for outcome in outcomes)
    assert set(server.tried.values()) == {2}


def test_a_fault_that_stays_fails_its_row_after_all_tries() -> None:
    with fault_server(
        FaultServer(fault=lambda body, tries: (500, {}, b"") if number_of(body) == 2 else None)
    ) as server:
        outcomes = ask(server, made_calls(5))
    assert [bool(outcome.answer) for outcome in outcomes] == [number != 2 for number in range(5)]
    assert outcomes[2].reason == "HTTP 500 after 4 tries"
    assert max(server.tried.values()) == 4


def test_a_hard_error_costs_its_own_row_only_and_no_retry() -> None:
    def fault(body: dict[str, Any], tries: int) -> Any:
        return (400, {}, error_body("too long for me")) if number_of(body) == 3 else None

    with fault_server(FaultServer(fault=fault)) as server:
        outcomes = ask(server, made_calls(10))
        assert server.tried.total() == 10
        again = ask(server, made_calls(10))
        assert server.tried.total() == 11  # only the failed row is asked again
    assert [bool(outcome.answer) for outcome in outcomes] == [i != 3 for i in range(10)]
    assert outcomes[3].reason == "HTTP 400: too long for me"
    assert again == outcomes


FINAL = {
    "the context's length": (400, "This model's maximum context length is 8192 tokens.", "context_length_exceeded"),
    "another 404": (404, "no such path", None),
    "unprocessable": (422, "messages: field required", None),
}


@pytest.mark.parametrize("what", FINAL)
def test_what_no_later_try_mends_is_final_for_its_row(what: str) -> None:
    status, words, code = FINAL[what]

    def fault(body: dict[str, Any], tries: int) -> Any:
        return (status, {}, error_body(words, code)) if number_of(body) == 0 else None

    with fault_server(FaultServer(fault=fault)) as server:
        outcomes = ask(server, made_calls(4))
    where = f" ({server.base_url}/chat/completions)" if status == 404 else ""
    assert outcomes[0].reason == f"HTTP {status}: {words}{where}"
    assert all(outcome.answer for outcome in outcomes[1:])
    assert set(server.tried.values()) == {1}


STOPPING = {
    "a wrong key": (401, "bad key", "invalid_api_key"),
    "a forbidden key": (403, "bad key", None),
    "an empty account": (402, "Insufficient balance", None),
    "an unknown model": (404, "no such thing", "model_not_found"),
    "an unknown model, by its words": (404, "The model `fake` does not exist.", None),
    "no credit": (429, "You exceeded your current quota.", "insufficient_quota"),
}


@pytest.mark.parametrize("what", STOPPING)
def test_a_refused_key_or_model_stops_at_once(what: str) -> None:
    status, words, code = STOPPING[what]
    reply = (status, {}, error_body(words, code))
    with fault_server(FaultServer(fault=lambda body, tries: reply, delay_s=0.01)) as server:
        with pytest.raises(UserError, match=f"HTTP {status}: {words}") as caught:
            ask(server, made_calls(200))
        assert caught.value.code == 4
        assert server.tried.total() <= 2 * CEILING


def test_what_ends_a_stage_lets_requests_under_way_finish() -> None:
    def fault(body: dict[str, Any], tries: int) -> Any:
        if number_of(body) == 0:
            return 401, {}, error_body("bad key")
        time.sleep(0.3)
        return None

    with fault_server(FaultServer(fault=fault)) as server:
        with pytest.raises(UserError, match="bad key"):
            ask(server, made_calls(100))
        assert server.served.total() == CEILING - 1
    assert answered() == CEILING - 1


def test_what_ends_a_stage_does_not_wait_for_those_that_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that would be tried again in a minute is not under way."""
    monkeypatch.setattr(client_module, "LAST_ANSWERS_S", 1e6)

    def fault(body: dict[str, Any], tries: int) -> Any:
        if number_of(body) == 0:
            time.sleep(0.3)
            return 401, {}, error_body("bad key")
        return 429, {"retry-after": "60"}, error_body("slow down")

    with fault_server(FaultServer(fault=fault)) as server:
        before = time.monotonic()
        with pytest.raises(UserError, match="bad key"):
            ask(server, made_calls(100), made_params(requests={"timeout_s": 100}))
        assert time.monotonic() - before < 60  # it did not sit out the wait that was asked for


@pytest.mark.parametrize(("bad", "stops"), [(19, False), (60, True)])
def test_the_failure_budget_counts_finished_rows_and_needs_twenty(bad: int, stops: bool) -> None:
    def fault(body: dict[str, Any], tries: int) -> Any:
        return (400, {}, error_body("no")) if number_of(body) < bad else None

    with fault_server(FaultServer(fault=fault)) as server:
        if stops:
            with pytest.raises(UserError, match="failure_budget") as caught:
                ask(server, made_calls(100))
            assert caught.value.code == 5
        else:
            outcomes = ask(server, made_calls(100))
            assert sum(outcome.answer is None for outcome in outcomes) == bad


def test_one_percent_of_hard_errors_costs_one_percent_of_the_rows() -> None:
    def fault(body: dict[str, Any], tries: int) -> Any:
        return (400, {}, error_body("not with me")) if number_of(body) % 100 == 7 else None

    bad = set(range(7, 1000, 100))
    with fault_server(FaultServer(fault=fault)) as server:
        outcomes = ask(server, made_calls(1000))
        assert {i for i, outcome in enumerate(outcomes) if outcome.answer is None} == bad
        assert {outcomes[i].reason for i in bad} == {"HTTP 400: not with me"}
        assert answered() == 990
        tried = server.tried.copy()
        assert ask(server, made_calls(1000)) == outcomes
        assert sorted((server.tried - tried).values()) == [1] * len(bad)  # a rerun tries only those


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_the_server_is_left_alone_until_it_asks_for_more(form: str) -> None:
    """Retry-After is meant for every request, not only for the one that was told."""
    until = 0.0

    def fault(body: dict[str, Any], tries: int) -> Any:
        nonlocal until
        if number_of(body) != 3 or tries > 1:
            return None
        until = time.time() + 1 if form == "seconds" else float(int(time.time()) + 2)
        wait = "1" if form == "seconds" else email.utils.formatdate(until, usegmt=True)
        return 429, {"retry-after": wait}, error_body("slow down")

    with fault_server(FaultServer(fault=fault)) as server:
        outcomes = ask(server, made_calls(10), made_params(requests={"concurrency": 1}))
    assert all(outcome.answer for outcome in outcomes)
    assert [arrival.at >= until - 0.005 for arrival in server.arrivals] == [False] * 4 + [True] * 7


def test_a_wait_longer_than_the_time_out_ends_the_stage() -> None:
    reply = (429, {"retry-after": "3600"}, error_body("come back in an hour"))
    with fault_server(FaultServer(fault=lambda body, tries: reply if number_of(body) == 9 else None)) as server:
        with pytest.raises(UserError, match="3600 s") as caught:
            ask(server, made_calls(50))
        assert caught.value.code == 4
        assert server.tried.total() < 50
    assert answered() == server.served.total() >= 8


def test_fewer_in_flight_after_a_burst_of_429_and_later_all_again() -> None:
    ceiling, burst = 16, threading.Barrier(16)

    def fault(body: dict[str, Any], tries: int) -> Any:
        if number_of(body) < ceiling and tries == 1:
            burst.wait(10)
            return 429, {}, error_body("slow down")
        time.sleep(0.1)
        return None

    with fault_server(FaultServer(fault=fault)) as server:
        outcomes = ask(server, made_calls(300), made_params(requests={"concurrency": ceiling}))
    assert all(outcome.answer for outcome in outcomes)
    in_flight = [arrival.in_flight for arrival in server.arrivals]
    assert max(in_flight[:ceiling]) == ceiling
    assert max(in_flight[ceiling : ceiling + 24]) <= 10  # half, and one more for each of the first two rounds
    assert ceiling // 2 < max(in_flight[-100:]) <= ceiling
    assert server.most_in_flight == ceiling


def _most_within_a_second(arrivals: list[float]) -> int:
    return max(sum(start <= other < start + 1 for other in arrivals) for start in arrivals)


EXPECTED_TOKENS = expected_tokens([made_call(99)])


@pytest.mark.parametrize("limit", [{"requests_per_minute": 40}, {"tokens_per_minute": 40 * EXPECTED_TOKENS}])
def test_the_rate_at_the_server_stays_below_the_limit(limit: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A minute of one second. tests/test_pace.py shows the same to the last request, on a made-up clock."""
    monkeypatch.setattr("anamnesis.pace.MINUTE_S", 1.0)
    monkeypatch.setattr("anamnesis.pace.WINDOW_S", 0.1)
    params = made_params(requests={"limits": {"fake": limit}, "concurrency": 32})
    with fault_server(FaultServer()) as server:
        assert all(outcome.answer for outcome in ask(server, made_calls(100), params))
    assert _most_within_a_second([arrival.at for arrival in server.arrivals]) <= 1.25 * 40  # on the way they bunch


def test_samples_of_one_prompt_come_in_one_request() -> None:
    with fault_server(FaultServer()) as server:
        three = ask(server, made_calls(10, 3), samples_per_request=3)
        assert [arrival.samples for arrival in server.arrivals] == [3] * 10
        assert answered() == 30
        calls = made_calls(10, 5)
        five = ask(server, calls, samples_per_request=3)
        assert [arrival.samples for arrival in server.arrivals[10:]] == [2] * 10
        assert [outcome for call, outcome in zip(calls, five, strict=True) if call.sample_index < 3] == three
        assert len({outcome.answer.text for outcome in five if outcome.answer}) == 50
        assert ask(server, calls) == five  # the ledger knows samples, not requests
        assert len(server.arrivals) == 20
    usage = [outcome.answer for outcome in three if outcome.answer]
    assert sum(answer.prompt_tokens for answer in usage) == 10 * PROMPT_TOKENS
    assert sum(answer.completion_tokens for answer in usage) == 30 * COMPLETION_TOKENS


@pytest.mark.parametrize("kind", ["wrong number", "no choices", "null content"])
def test_another_number_of_samples_is_asked_for_again(kind: str) -> None:
    with fault_server(FaultServer(faults={kind: 1.0}, most_faults=1)) as server:
        outcomes = ask(server, made_calls(5, 3), samples_per_request=3)
    assert all(outcome.answer for outcome in outcomes)
    assert [arrival.samples for arrival in server.arrivals] == [3] * 10


def test_a_server_that_ignores_n_is_asked_for_the_rest() -> None:
    with fault_server(FaultServer(ignores_n=True)) as server:
        outcomes = ask(server, made_calls(4, 3), samples_per_request=3)
    assert Counter(arrival.samples for arrival in server.arrivals) == {3: 4, 1: 8}
    assert len({outcome.answer.text for outcome in outcomes if outcome.answer}) == 12


def test_replicas_share_the_work_by_what_they_finish() -> None:
    with fault_server(FaultServer(delay_s=0.15)) as slow, fault_server(FaultServer(delay_s=0.03)) as fast:
        assert all(outcome.answer for outcome in ask(slow, made_calls(200), replicas=[fast.base_url]))
        assert slow.most_in_flight == fast.most_in_flight == CEILING
        assert slow.served.total() + fast.served.total() == 200
        assert fast.served.total() > 2 * slow.served.total() > 0


def test_a_dead_replica_is_set_aside_and_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anamnesis.pace.FIRST_REST_S", 0.3)
    mortal = FaultServer(delay_s=0.03, dies_after=10, back_after_s=0.5)
    with fault_server(FaultServer(delay_s=0.03)) as steady, fault_server(mortal):
        outcomes = ask(steady, made_calls(1500), replicas=[mortal.base_url])
        assert all(outcome.answer for outcome in outcomes)
        assert mortal.served.total() > 10 + CEILING  # work again
        again = sum(one - 1 for one in (steady.served + mortal.served).values())
        assert again <= CEILING  # what was under way when it died


def test_a_server_that_starts_slowly_is_waited_for() -> None:
    with fault_server(FaultServer()) as server:
        server.stop()
        threading.Timer(0.3, server.start).start()
        server.slow_start = 5
        assert all(outcome.answer for outcome in ask(server, made_calls(20), made_params(requests={"retries": 12})))
        assert server.served.total() == 20


def test_a_server_that_nobody_reaches_is_no_matter_of_quality() -> None:
    with fault_server(FaultServer()) as server:
        server.stop()
        with pytest.raises(UserError, match="connection failed") as caught:
            ask(server, made_calls(30))
        assert caught.value.code == 3
        assert server.base_url in str(caught.value)


CAPS = {
    "requests": ({"requests": 25}, 25, 0),
    "tokens": ({"tokens": 1000}, 1000 // A_CALL, 4),
    "usd": ({"usd": 1.0}, int(1.0 / 0.034), 4),
}
PRICES = {"fake": {"input": 1000.0, "output": 2000.0}}  # a call: 10 x 0.001 + 12 x 0.002 = 0.034 USD


@pytest.mark.parametrize("cap", CAPS)
def test_a_cap_is_never_passed_and_a_higher_one_goes_on(cap: str) -> None:
    """`slack`: requests that fit but could have cost more, so they are not sent."""
    budget, most, slack = CAPS[cap]
    with fault_server(FaultServer(delay_s=0.01)) as server:
        for _ in range(2):  # a rerun under the same cap sends nothing
            with pytest.raises(UserError, match=rf"budget\.{cap}") as caught:
                ask(server, made_calls(60), made_params(budget=budget, prices=PRICES))
            assert caught.value.code == 7
            assert most - slack <= server.tried.total() <= most
            assert answered() == server.tried.total()
        higher = {name: 10 * value for name, value in budget.items()}
        outcomes = ask(server, made_calls(60), made_params(budget=higher, prices=PRICES))
        assert all(outcome.answer for outcome in outcomes)
        assert set(server.served.values()) == {1}
        assert len(server.served) == 60


def test_a_cap_on_tokens_counts_replies_that_could_not_be_used() -> None:
    """The server charges for them, and nobody knows how much."""
    faults = dict.fromkeys(CHARGED, 0.5 / len(CHARGED))
    with fault_server(FaultServer(faults=faults, seed=3)) as server:
        with pytest.raises(UserError, match=r"budget\.tokens"):
            ask(server, made_calls(200), made_params(budget={"tokens": 3000}, requests={"timeout_s": 0.5}))
        assert 500 < server.tokens <= 3000


def test_a_cap_on_tokens_holds_over_runs_where_the_server_tells_no_usage(monkeypatch: pytest.MonkeyPatch) -> None:
    for told in ("PROMPT_TOKENS", "COMPLETION_TOKENS"):
        monkeypatch.setattr(f"fault_server.{told}", 0)
    capped = made_params(budget={"tokens": 2000})
    with fault_server(FaultServer()) as server:
        for _ in range(2):
            with pytest.raises(UserError, match=r"budget\.tokens"):
                ask(server, made_calls(60), capped)
            first = answered()
            assert 0 < first < 60
        assert server.served.total() == first  # the second run knew what the first had spent
    with Ledger("l.sqlite") as ledger:
        (line,) = ledger.statistics()
    assert 1000 < line["prompt_tokens"] + line["completion_tokens"] <= 2000


def test_a_server_that_is_not_there_costs_nothing() -> None:
    with fault_server(FaultServer()) as server:
        server.stop()
        threading.Timer(0.3, server.start).start()
        params = made_params(budget={"tokens": 1000}, requests={"retries": 20, "concurrency": 2})
        assert all(outcome.answer for outcome in ask(server, made_calls(20), params))


def test_a_cap_on_requests_counts_tries() -> None:
    with fault_server(FaultServer(fault=lambda body, tries: (500, {}, b"") if tries < 3 else None)) as server:
        with pytest.raises(UserError, match=r"budget\.requests"):
            ask(server, made_calls(60), made_params(budget={"requests": 30}))
        assert server.tried.total() == 30


@pytest.mark.parametrize("error", [UserError("ledger: the disk is full"), ValueError("a defect of ours")])
def test_answers_that_can_not_be_stored_end_the_stage(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> int:
        raise error

    monkeypatch.setattr(Ledger, "put_many", refuse)
    with fault_server(FaultServer(delay_s=0.01)) as server:
        with pytest.raises(type(error), match=str(error)):
            ask(server, made_calls(60))
        assert server.tried.total() <= 2 * CEILING  # what is not kept is not asked for


def test_a_missing_key_is_one_line_before_any_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with fault_server(FaultServer()) as server:
        with pytest.raises(UserError, match="NO_SUCH_KEY") as caught:
            ask(server, made_calls(3), api_key_env="NO_SUCH_KEY")
        assert caught.value.code == 4
        assert not server.tried


KEY, SECRET = "sk-planted-0123456789", "question"
TOLD = {
    "answers": lambda body, tries: None,
    "faults": lambda body, tries: (500, {}, f"{KEY} {body}".encode()) if tries < 3 else None,
    "hard errors": lambda body, tries: (400, {}, error_body(f"not {body}")) if number_of(body) < 3 else None,
    "a refused key": lambda body, tries: (401, {}, error_body(f"Incorrect API key provided: {KEY}.")),
    "no answer at all": lambda body, tries: (400, {}, error_body(f"not with {KEY}")),
}


@pytest.mark.parametrize("what", TOLD)
def test_the_key_goes_to_the_server_and_nowhere_else(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nor do prompts: `SECRET` is in each of them. The ledger is private (tests/test_ledger.py)."""
    monkeypatch.setenv("PLANTED", KEY)
    with fault_server(FaultServer(fault=TOLD[what])) as server:
        folder = card(Path("m"), server, api_key_env="PLANTED")
        with Ledger("l.sqlite") as ledger, Client(folder, made_params(), ledger) as client:
            try:
                said = repr(client.ask(made_calls(30), "test"))
                assert what in ("answers", "faults", "hard errors")
            except UserError as error:
                said = str(error)
                assert SECRET not in said
            assert KEY not in repr(client._endpoint) + said
        assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    out = capfd.readouterr()
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    log = Path("logs/requests.jsonl").read_text(encoding="utf-8")
    assert [json.loads(line)["label"] for line in log.splitlines()][-1:] == ["test"]  # there is something to search
    assert "test: " in out.err or what not in ("answers", "faults", "hard errors")
    assert KEY not in out.out + out.err
    assert all(KEY.encode() not in path.read_bytes() for path in written)
    assert SECRET not in out.out + out.err
    assert all(SECRET.encode() not in path.read_bytes() for path in written if not path.name.startswith("l.sqlite"))


def test_the_log_counts_what_the_server_saw() -> None:
    with fault_server(FaultServer(fault=lambda body, tries: (500, {}, b"") if tries == 1 else None)) as server:
        ask(server, made_calls(12))
    events = [json.loads(line) for line in Path("logs/requests.jsonl").read_text(encoding="utf-8").splitlines()]
    assert Counter(event["event"] for event in events) == {"start": 1, "retry": 12, "end": 1}
    end = events[-1]
    assert (end["done"], end["failed"], end["retries"], end["in_flight"]) == (12, 0, {"HTTP 500": 12}, 0)


def _instructions(folder: Path, count: int) -> None:
    rows = [
        {"instruction_id": records.digest("instruction", i), "sample_index": i, "text": f"Tell me fact number {i}.",
         "status": "ok", "reason": None, "finish_reason": "stop", "tokens": 6}
        for i in range(count)
    ]  # fmt: skip
    write_conversations(folder, rows)


def _stage(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL
    )


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
        params["judging"]["control"] = 0.0  # tests/test_counts.py counts planted pairs
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
            kill(_stage(folder, stage, argument), server, after)
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


def test_two_runs_at_once_ask_nothing_twice() -> None:
    """Threads here, processes in life: a lock on a file that each opens for itself is the same for both."""
    with fault_server(FaultServer(delay_s=0.02)) as server:
        card(Path("models/pretrained/fake"), server)
        with ThreadPoolExecutor(3) as pool:
            runs = list(pool.map(lambda _: ask(server, made_calls(60)), range(3)))
    assert runs[0] == runs[1] == runs[2]
    assert len(server.served) == 60
    assert set(server.served.values()) == {1}
