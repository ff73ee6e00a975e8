"""A warm process for tests/test_kills.py: forks a run for each line on stdin, so that a start costs no imports.

A line is a JSON object (folder, prompts, concurrency); it prints the run's process id, and its exit status (-9: killed)
when it is over. A run asks as stage respond does, and writes responses.parquet in its folder.
"""

import json
import os
import sys
from pathlib import Path

import yaml

from anamnesis import client as client_module
from anamnesis import records
from anamnesis.client import Client
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.responding import respond_call, response_row
from anamnesis.sections import Sampling

SAMPLING = Sampling(samples=1, max_tokens=16)


def respond(folder: str, instructions: int, concurrency: int) -> None:
    """One run over made-up instructions."""
    raw = yaml.safe_load((Path(__file__).parent.parent / "params.yaml").read_text(encoding="utf-8"))
    raw["requests"] |= {"concurrency": concurrency, "retries": 6, "timeout_s": 1.0}
    os.chdir(folder)
    client_module.FIRST_WAIT_S = 0.05
    rows = [{"instruction_id": records.digest("made", i), "text": f"fact {i}"} for i in range(instructions)]
    calls = [respond_call(row, SAMPLING, 17, 0) for row in rows]
    with Ledger("l.sqlite") as ledger, Client("m", Params.model_validate(raw), ledger) as client:
        outcomes = client.ask(calls, "respond")
    responses = [
        response_row(row["instruction_id"], "fake", 0, outcome) for row, outcome in zip(rows, outcomes, strict=True)
    ]
    records.write("responses.parquet", responses, records.RESPONSES, ["instruction_id", "sample_index"])


def main() -> None:
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os.setsid()
            os.close(0)
            respond(**json.loads(line))
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    main()
