"""Plan: what the model calls of a run will take, before it is made. Asks nothing but a pilot, if one is wanted.

In: params.yaml, models/pretrained (`dvc repro models`), the ledger. Out: a table; no stage of DVC.
Run: python -m stages.plan [--pilot N] [--json]      or: make plan
--pilot N asks the first N calls of every stage and model that the ledger lacks. They are calls of the run itself: it
will not ask them again.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from anamnesis import params as settings
from anamnesis import probing, records
from anamnesis.cards import load_card
from anamnesis.client import Client, identities
from anamnesis.errors import UserError, run
from anamnesis.judging import EXPECTED_TOKENS
from anamnesis.ledger import Answer, Ledger
from anamnesis.params import Params, share
from anamnesis.planning import Line, Range, forecast, total
from anamnesis.responding import respond_call, response_row
from anamnesis.server import identity_of
from anamnesis.spending import spent
from anamnesis.wire import Call, Outcome
from stages import judge, probe, respond

NONE = Range(0, 0)
JUSTIFY_CALLS = 2  # a reply without a readable last line is asked for once more
RUBRIC_TOKENS = 600  # of the judge's prompt around instruction and response, at most


class Planner:
    """Goes through the stages as the run will, with the ledger's answers in the place of new ones."""

    def __init__(self, params: Params, ledger: Ledger, pilot: int):
        self.params, self._ledger, self._pilot = params, ledger, pilot
        self.lines: list[Line] = []

    def _look(self, model: str, calls: Sequence[Call], label: str) -> list[Answer | None]:
        """The ledger's answer to each call; a pilot asks the first few that it lacks."""
        directory = Path("models/pretrained") / model
        identity = identity_of(load_card(directory), self.params.serve)
        keys = [call.key(identity) for call in calls]
        known = self._ledger.known(keys)
        missing = [call for key, call in zip(keys, calls, strict=True) if key not in known][: self._pilot]
        if missing:
            with Client(directory, self.params, self._ledger) as client:
                client.ask(missing, f"pilot: {label}")
        found = self._ledger.timed(keys)
        self._latencies = {key: latency for key, (_, latency) in found.items()}
        self._keys = keys
        return [found[key][0] if key in found else None for key in keys]

    def _add(
        self,
        stage: str,
        model: str,
        calls: Sequence[Call],
        answers: Sequence[Answer | None],
        more: Range,
        out: int,
        into: int,
    ) -> None:
        """Add a stage's line. `out` and `into`: completion and prompt tokens a call, at most."""
        pairs = list(zip(self._keys, answers, strict=True))
        answered = [(answer, self._latencies[key]) for key, answer in dict(pairs).items() if answer]
        open_calls = {key: call for key, call, answer in zip(self._keys, calls, answers, strict=True) if not answer}
        places = self.params.requests.concurrency * max(1, len(self.params.models[model].base_urls))
        price = self.params.prices.get(model)
        self.lines.append(forecast(stage, model, answered, list(open_calls.values()), more, out, into, places, price))

    def probe(self) -> tuple[pa.Table, int]:
        """The instructions that the ledger gives, and how many are still to come."""
        settings_of, prefix = self.params.probe, probe.prefix_of(self.params)
        calls: list[Call] = []
        samples: list[probing.Sample] = []
        answers: list[Answer | None] = []
        while wave := probing.next_wave(samples, settings_of):
            calls += [probing.probe_call(prefix, settings_of, self.params.seed, len(calls) + i) for i in range(wave)]
            answers = self._look(self.params.target, calls, "probe")
            answered = [Outcome(answer) for answer in answers if answer]
            samples = probing.classify(answered, settings_of)
            if len(answered) < len(calls):
                break
        good = sum(sample.status == "ok" for sample in samples)
        missing = settings_of.instructions - good
        open_calls = sum(answer is None for answer in answers)
        most = settings_of.max_requests - len(calls)
        least = max(0, missing - open_calls)
        self._add(
            "probe", self.params.target, calls, answers, Range(min(least, most), most) if missing > 0 else NONE,
            settings_of.max_tokens, len(prefix.ids),
        )  # fmt: skip
        rows = [asdict(sample) for sample in samples]
        return pa.Table.from_pylist(rows, records.INSTRUCTIONS), max(0, missing)

    def respond(self, member: str, instructions: pa.Table, missing: int) -> list[dict[str, Any]]:
        """Rows of the responses that the ledger gives."""
        sampling, seed = self.params.committee[member].sampling, self.params.seed
        asked = respond.asked_of(self.params, member, instructions)
        calls = [respond_call(row, sampling, seed, index) for row, index in asked]
        answers = self._look(member, calls, f"respond {member}")
        kept_back = share(missing, self.params.select.heldout) if member != self.params.target else 0
        more = (missing - kept_back) * sampling.samples
        into = self.params.probe.max_tokens + len((sampling.system or "").encode())
        self._add("respond", member, calls, answers, Range(more, more), sampling.max_tokens, into)
        return [
            response_row(row["instruction_id"], member, index, Outcome(answer))
            for (row, index), answer in zip(asked, answers, strict=True)
            if answer
        ]

    def judge(self, name: str, instructions: pa.Table, responses: list[dict[str, Any]], to_come: Range) -> None:
        """The line of one judge; `to_come`: responses that it will read besides those in the ledger."""
        judged = judge.judged_of(self.params, instructions, responses)
        calls = judge.calls_of(self.params, load_card(Path("models/pretrained") / name), judged)
        answers = self._look(name, calls, f"judge {name}")
        settings_of = self.params.judges[name]
        justify = settings_of.mode == "justify"
        open_calls = len({key for key, answer in zip(self._keys, answers, strict=True) if not answer})
        again = open_calls + to_come.high if justify else 0.0
        answer_tokens = max(member.sampling.max_tokens for member in self.params.committee.values())
        self._add(
            "judge", name, calls, answers, Range(to_come.low, to_come.high + again),
            settings_of.max_tokens if justify else EXPECTED_TOKENS,
            RUBRIC_TOKENS + self.params.probe.max_tokens + answer_tokens,
        )  # fmt: skip

    def run(self) -> None:
        """Fill `lines`."""
        instructions, missing = self.probe()
        responses: list[dict[str, Any]] = []
        expected = NONE
        for member in self.params.members():
            rows = self.respond(member, instructions, missing)
            responses += rows
            line = self.lines[-1]
            complete = sum(row["status"] == "ok" for row in rows) / len(rows) if rows else 0.0
            share_judged = 1.0
            if member == self.params.target:  # held-out instructions are answered by it and not judged
                share_judged = 1 - self.params.select.heldout
            expected += Range(line.to_ask.low * complete * share_judged, line.to_ask.high * share_judged)
        for name in self.params.enabled_judges():
            self.judge(name, instructions, responses, expected)


def _count(span: Range, form: str = "{:,.0f}") -> str:
    low, high = form.format(span.low), form.format(span.high)
    return low if low == high else f"{low} to {high}"


def _cells(line: Line) -> list[str]:
    hours = "unknown" if line.hours is None else _count(line.hours, "{:,.2f}")
    usd = "unknown" if line.usd is None else _count(line.usd, "{:,.4f}")
    if not line.to_ask.high:
        hours = usd = "-"
    counts = [_count(line.to_ask), _count(line.tokens_in), _count(line.tokens_out)]
    return [line.stage, line.model, f"{line.in_ledger:,}", *counts, hours, usd]


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    table = Table(box=None, pad_edge=False)
    for name in ("stage", "model", "in ledger", "to ask", "tokens in", "tokens out", "hours", "USD"):
        table.add_column(name, justify="left" if name in ("stage", "model") else "right", overflow="fold")
    for line in [*lines, total(lines)]:
        table.add_row(*_cells(line))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def budget_lines(params: Params, ledger: Ledger, lines: Sequence[Line]) -> list[str]:
    """What each cap will say to this plan."""
    before, all_lines = spent(ledger, params.prices, identities(params)), total(lines)
    wanted = {
        "usd": (params.budget.usd, before.usd, all_lines.usd),
        "requests": (params.budget.requests, before.requests, all_lines.to_ask),
        "tokens": (params.budget.tokens, before.tokens, all_lines.tokens_in + all_lines.tokens_out),
    }
    told = []
    for name, (cap, used, more) in wanted.items():
        if cap is None:
            continue
        if more is None:
            verdict = "the plan's is unknown: a model has no price"
        elif used + more.high <= cap:
            verdict = "the plan fits"
        else:
            verdict = "the plan passes it" if used + more.low > cap else "the plan may pass it"
        told.append(f"budget.{name}: {used:,.4g} of {cap:,g} spent; {verdict}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.plan", description="What a run's model calls will take.")
    parser.add_argument("--pilot", type=int, default=0, metavar="N", help="ask N calls of each stage and model first")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    told = parser.parse_args()
    if told.pilot < 0:
        raise UserError("--pilot: a number of calls, 0 or more")
    params = settings.load()
    with Ledger() as ledger:
        planner = Planner(params, ledger, told.pilot)
        planner.run()
        verdicts = budget_lines(params, ledger, planner.lines)
    if told.json:
        lines = [asdict(line) for line in [*planner.lines, total(planner.lines)]]
        print(json.dumps({"lines": lines, "budget": verdicts}))
        return
    show(planner.lines)
    print("Ranges are 95 % intervals of a mean over answered calls, or bounds where fewer than five are in the ledger.")
    print(*verdicts, sep="\n")


if __name__ == "__main__":
    run(main)
