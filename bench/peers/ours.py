"""Our client as stage respond uses it, with the ledger on a fresh file.

Run by bench.client, from the folder of params.yaml's copy: python ours.py <base URL> <questions as JSON> <concurrency>
"""

import json
import sys
import time
from dataclasses import asdict
from pathlib import Path

from anamnesis import params as settings
from anamnesis.cards import CARD, Card
from anamnesis.client import Client
from anamnesis.ledger import Ledger
from anamnesis.responding import respond_call
from anamnesis.sections import Sampling

if __name__ == "__main__":
    base_url, path, concurrency = sys.argv[1:]
    questions = json.loads(Path(path).read_text(encoding="utf-8"))
    params = settings.load()
    requests = params.requests.model_copy(update={"concurrency": int(concurrency)})
    params = params.model_copy(update={"requests": requests})
    card = Card("fake", "endpoint", "bench:fake", base_url=base_url, model="fake")
    Path(CARD).write_text(json.dumps(asdict(card)), encoding="utf-8")
    rows = [{"text": question, "instruction_id": str(index)} for index, question in enumerate(questions)]
    calls = [respond_call(row, Sampling(), params.seed, 0) for row in rows]
    start = time.monotonic()
    with Ledger("ledger.sqlite") as ledger, Client(".", params, ledger) as client:
        outcomes = client.ask(calls, "bench")
    seconds = time.monotonic() - start
    print(json.dumps({"answered": sum(outcome.answer is not None for outcome in outcomes), "seconds": seconds}))
