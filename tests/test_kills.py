"""A hundred kill -9 at random moments of one run, faults on: nothing finished is asked again, no byte differs.

Each run is a process of its own (tests/killed_run.py), killed with its process group at a seeded number of answers.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from asking import ROOT, card
from fault_server import FaultServer, fault_server

from anamnesis import records
from anamnesis.ledger import Ledger

KILLS, CALLS, CONCURRENCY = 100, 1500, 6
FAULTS = {"429 for seconds": 0.02, "500": 0.03, "reset": 0.02, "truncated": 0.02, "null content": 0.02, "hang": 0.002,
          "late": 0.002}  # fmt: skip


class Runs:
    """Runs in a folder, one after the other."""

    def __init__(self, folder: Path, server: FaultServer):
        self.folder, self.server = folder, server
        card(folder / "m", server)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, str(ROOT / "tests/killed_run.py")]
        self.process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self.process.stdin
        assert self.process.stdout
        self.told, self.said = self.process.stdin, self.process.stdout

    def run(self, kill_after: int | None) -> int:
        """Start a run and kill it when the server has answered so many more; its exit code, -9 where it was killed."""
        start = self.server.served.total()
        run = {"folder": str(self.folder), "instructions": CALLS, "concurrency": CONCURRENCY}
        self.told.write(json.dumps(run) + "\n")
        self.told.flush()
        pid = int(self.said.readline())
        if kill_after is not None:
            deadline = time.monotonic() + 60
            while self.server.served.total() < start + kill_after and time.monotonic() < deadline:
                time.sleep(0.001)
            os.killpg(pid, signal.SIGKILL)
        code = int(self.said.readline())
        self.server.settle()
        return code

    def stored(self) -> int:
        """How many answers the ledger has."""
        with Ledger(self.folder / "l.sqlite") as ledger:
            return len(ledger)


@pytest.mark.slow
def test_a_hundred_kills_repeat_no_finished_call_and_change_no_byte(tmp_path: Path) -> None:
    rng = random.Random(17)
    lost: list[int] = []  # answers that no ledger has, for each kill
    server = FaultServer(delay_s=0.005, seed=17, faults=FAULTS, most_faults=5, cut=0.05, refused=0.01)
    with fault_server(server):
        runs = Runs(tmp_path / "killed", server)
        for _ in range(KILLS):
            before = server.served.total() - runs.stored()
            assert runs.run(rng.randint(2, 16)) == -9
            lost.append(server.served.total() - runs.stored() - before)
        assert not (tmp_path / "killed/responses.parquet").exists()
        assert runs.run(None) == 0
        served, unheard = server.served.copy(), server.unheard.copy()
        assert runs.run(None) == 0
        assert server.served == served  # a finished run asks nothing but what was refused
        interrupted = (tmp_path / "killed/responses.parquet").read_bytes()

        runs.told.close()
        whole = Runs(tmp_path / "whole", server)
        assert whole.run(None) == 0
        whole.told.close()
    rows = records.read(tmp_path / "killed/responses.parquet", records.RESPONSES)
    assert len({row["instruction_id"] for row in rows}) == len(rows) == CALLS
    status = Counter(row["status"] for row in rows)
    assert len(served) == runs.stored() == status["ok"] + status["truncated"]
    assert status["failed"] == CALLS - len(served)
    assert {row["reason"] for row in rows if row["status"] == "failed"} == {"HTTP 400: not with me"}
    assert max(lost) <= CONCURRENCY
    assert len(served) < served.total() <= len(served) + sum(lost) + unheard.total()
    assert interrupted == (tmp_path / "whole/responses.parquet").read_bytes()
