"""Whatever mix of faults a server has: every call ends in an answer or a reason, and answers are those without faults.

And nothing is asked more often than its faults explain, nor more at once than allowed. A seed decides what happens.
"""

from collections import Counter
from pathlib import Path

import pytest
from asking import ask, made_calls, made_params
from fault_server import PASSING, FaultServer, fault_server

from anamnesis import client as client_module
from anamnesis.errors import UserError

REQUESTS = {"concurrency": 6, "retries": 2, "timeout_s": 0.5, "failure_budget": 1.0}
SEEDS = range(12)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logs, cards and ledgers are written below the current folder; waits are short."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(client_module, "FIRST_WAIT_S", 0.02)


def mixed(seed: int) -> FaultServer:
    """A server where a third of the tries fail: each kind of fault now and then, the slow ones rarely."""
    shares = {kind: 0.01 if kind in ("hang", "late") else 0.03 for kind in PASSING}
    return FaultServer(seed=seed, faults=shares, most_faults=6, refused=0.05, cut=0.05, slow_start=seed % 3)


@pytest.mark.parametrize("seed", SEEDS)
def test_mixed_faults_change_no_answer(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = 1 + 2 * (seed % 2)  # every other seed asks for several samples a request
    calls, params = made_calls(60, samples), made_params(requests=REQUESTS)
    with fault_server(FaultServer(seed=seed, refused=0.05, cut=0.05)) as sound:
        expected = ask(sound, calls, params, samples_per_request=samples)
    monkeypatch.chdir(tmp_path / "logs")  # another ledger
    server = mixed(seed)
    with fault_server(server):
        if seed % 4 == 0:
            server.dies_after, server.back_after_s = 20, 0.2
        for _ in range(6):
            outcomes = ask(server, calls, params, samples_per_request=samples)
            assert all((outcome.answer is None) != (outcome.reason is None) for outcome in outcomes)
            failed = [outcome.reason for outcome in outcomes if outcome.reason]
            if all(reason == "HTTP 400: not with me" for reason in failed):
                break
        server.settle()
    assert outcomes == expected
    assert server.most_in_flight <= REQUESTS["concurrency"]
    good = Counter(dict.fromkeys(server.served, 1))
    assert server.served - good - server.unheard == Counter()  # twice only where the first answer came too late
    assert sum(server.faulted.values()) > 5


@pytest.mark.parametrize("kind", PASSING)
def test_one_fault_that_never_ends_fails_every_row_with_its_reason(kind: str) -> None:
    params = made_params(requests=REQUESTS | {"retries": 1, "timeout_s": 0.2, "concurrency": 2})
    with fault_server(FaultServer(faults={kind: 1.0}, most_faults=99)) as server:
        with pytest.raises(UserError, match=r"none of 3 requests was answered; the last: .* after 2 tries"):
            ask(server, made_calls(3), params)
        assert set(server.tried.values()) == {2}
        assert server.most_in_flight <= 2
