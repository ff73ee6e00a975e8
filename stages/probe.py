"""Probe: the target writes user turns by continuing the part of its chat template that comes before one.

In: models/pretrained/<target>. Out: data/instructions.parquet, every sample with status and reason; metrics/probe.json.
Run: python -m stages.probe
"""

import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from anamnesis import foresight, probing, records
from anamnesis import params as settings
from anamnesis.chat import tokenizer_of
from anamnesis.client import Client
from anamnesis.errors import POOL_TOO_SMALL, UserError, run
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.template import PreQuery, pre_query
from anamnesis.wire import Call


def prefix_of(params: Params) -> PreQuery:
    """The part of the target's chat template before a user's turn, with what ends the turn."""
    trusted = params.models[params.target].trust_remote_code
    tokenizer = tokenizer_of(Path("models/pretrained") / params.target, trusted)
    return pre_query(tokenizer, params.probe.system, params.probe.prefix)


def main() -> None:
    params = settings.load()
    foresight.check(params)
    probe = params.probe
    model_dir = Path("models/pretrained") / params.target
    prefix = prefix_of(params)
    print(f"prefix {prefix.text!r}, stop ids {prefix.stop_ids}, stop strings {prefix.stop_strings}", file=sys.stderr)

    calls: list[Call] = []
    samples: list[probing.Sample] = []
    with Ledger() as ledger, Client(model_dir, params, ledger) as client:
        while wave := probing.next_wave(samples, probe):
            first = not samples
            calls += [probing.probe_call(prefix, probe, params.seed, len(calls) + i) for i in range(wave)]
            samples = probing.classify(client.ask(calls, "probe"), probe)
            if first:
                probing.check_canary(samples, probe)

    records.write(
        "data/instructions.parquet", [asdict(sample) for sample in samples], records.INSTRUCTIONS, ["sample_index"]
    )
    good = sum(sample.status == "ok" for sample in samples)
    metrics = {"asked": len(samples), "good": good, "pass_share": round(probing.pass_share(samples), 6)}
    metrics |= {f"dropped.{reason}": n for reason, n in sorted(Counter(s.reason for s in samples if s.reason).items())}
    records.write_metrics("metrics/probe.json", metrics)
    if good < probe.instructions:
        raise UserError(
            f"probe: {good} of {probe.instructions} good instructions after {len(samples)} requests; "
            "raise probe.max_requests or lower probe.instructions",
            POOL_TOO_SMALL,
        )


if __name__ == "__main__":
    run(main)
