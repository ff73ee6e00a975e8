"""Plan: what the model calls of a run will take, before it is made. Asks nothing but a pilot, if one is wanted.

In: params.yaml, models/pretrained (`dvc repro models`), data/borrowed.parquet where a variant borrows instructions
(`dvc repro rehearse`), the ledger. Out: a table; no stage of DVC.
Run: python -m stages.plan [--pilot N] [--json]      or: make plan
--pilot N asks the first N calls of every stage and model that the ledger lacks. They are calls of the run itself: it
will not ask them again.
"""

import argparse
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from rich.console import Console
from rich.table import Table

from anamnesis import controls, judging, probing, records, rehearsal, sources
from anamnesis import params as settings
from anamnesis.cards import Card, load_card
from anamnesis.client import Client
from anamnesis.errors import MODEL_UNAVAILABLE, UserError, run
from anamnesis.ledger import Answer, Ledger
from anamnesis.params import RUBRIC_TOKENS, Params, RateLimit, share
from anamnesis.planning import Line, Range, Terms, forecast, total
from anamnesis.responding import respond_call, response_row
from anamnesis.server import identities, identity_of
from anamnesis.spending import prompt_bound, spent
from anamnesis.wire import Call, Outcome
from stages import converse, judge, probe, respond

STALE = "models.{}: changed since stage models made it; run `dvc repro models`"
DRAW_FIRST = "data/borrowed.parquet: not what params.yaml borrows; run `dvc repro rehearse`"
WHO = ("members", "judges", "samples")


@dataclass(frozen=True)
class Found:
    """Calls, the ledger's answer to each (None: to be asked), their keys, and how long each answer took."""

    calls: Sequence[Call]
    keys: Sequence[str]
    answers: Sequence[Answer | None]
    latencies: dict[str, float | None]


class KnownModels(converse.Models):
    """The models of stage converse as the ledger knows them: what it lacks is counted, and answered UNASKED."""

    def __init__(self, params: Params, ledger: Ledger, card: Callable[[str], Card], look: Callable[..., Found]):
        super().__init__(params, ledger)
        self._card, self._look = card, look
        self._found: dict[tuple[str, str], list[Found]] = {}

    def client(self, name: str) -> Client:
        return KnownClient(self._card(name), self._ask)

    def _ask(self, name: str, calls: Sequence[Call], label: str) -> list[Outcome]:
        kind = label.split(maxsplit=1)[0]
        found = self._look(name, calls, f"converse: {kind} {name}")
        self._found.setdefault((kind, name), []).append(found)
        return [Outcome(answer, None if answer else converse.UNASKED) for answer in found.answers]

    def found(self, kind: str, name: str) -> Found:
        """All calls of a kind (respond, judge, turns) to a model."""
        parts = self._found.get((kind, name), [])
        return Found(
            [call for part in parts for call in part.calls],
            [key for part in parts for key in part.keys],
            [answer for part in parts for answer in part.answers],
            {key: latency for part in parts for key, latency in part.latencies.items()},
        )


class KnownClient(Client):
    """A client that asks nobody."""

    def __init__(self, card: Card, ask: Callable[[str, Sequence[Call], str], list[Outcome]]):
        self.card, self._answers = card, ask

    def ask(self, calls: Sequence[Call], label: str, essential: bool = True) -> list[Outcome]:
        return self._answers(self.card.name, calls, label)


class Planner:
    """Goes through the stages as the run will, with the ledger's answers in the place of new ones."""

    def __init__(self, params: Params, ledger: Ledger, pilot: int):
        self.params, self._ledger, self._pilot = params, ledger, pilot
        self.lines: list[Line] = []
        self._piloted: Counter[str] = Counter()  # calls asked, by stage and model
        self._borrowed = borrowed_of(params)

    def _card(self, name: str) -> Card:
        """A model's card as params.yaml has it: a server's needs no stage models, weights need theirs."""
        model = self.params.models[name]
        if model.base_urls:
            return sources.card_of(name, model, None, None)
        card = load_card(Path("models/pretrained") / name)
        if card.uri != model.uri:
            raise UserError(STALE.format(name), MODEL_UNAVAILABLE)
        return card

    def _look(self, model: str, calls: Sequence[Call], label: str) -> Found:
        """The ledger's answer to each call; a pilot asks the first few that it lacks."""
        directory = Path("models/pretrained") / model
        card = self._card(model)
        identity = identity_of(card, self.params.serve)
        keys = [call.key(identity) for call in calls]
        known = self._ledger.known(keys)
        missing = [call for key, call in zip(keys, calls, strict=True) if key not in known]
        missing = missing[: self._pilot - self._piloted[label]]
        self._piloted[label] += len(missing)
        if missing and card.mode == "batch":
            raise UserError(f"--pilot: models.{model} answers in batches, within a day; plan without a pilot")
        if missing and load_card(directory).identity != card.identity:
            raise UserError(STALE.format(model), MODEL_UNAVAILABLE)
        if missing:
            with Client(directory, self.params, self._ledger) as client:
                client.ask(missing, f"pilot: {label}")
        found = self._ledger.timed(keys)
        answers = [found[key][0] if key in found else None for key in keys]
        return Found(calls, keys, answers, {key: latency for key, (_, latency) in found.items()})

    def _add(self, stage: str, model: str, found: Found, more: Range, most_in: int, most_out: int) -> None:
        """Add a stage's line: what `found` lacks, and so many calls more."""
        by_key = dict(zip(found.keys, zip(found.calls, found.answers, strict=True), strict=True))
        answered = [(answer, found.latencies[key]) for key, (_, answer) in by_key.items() if answer]
        to_come = [call for call, answer in by_key.values() if not answer]
        entry, requests = self.params.models[model], self.params.requests
        terms = Terms(
            price=self.params.prices.get(model),
            limit=requests.limits.get(model) or RateLimit(),
            places=requests.concurrency * max(1, len(entry.base_urls)),
            samples=entry.samples_per_request if stage.endswith("respond") else 1,
        )
        self.lines.append(forecast(stage, model, answered, to_come, more, most_in, most_out, terms))

    def probe(self) -> pa.Table:
        """The instructions that the ledger gives."""
        load_card(Path("models/pretrained") / self.params.target)  # its tokenizer is needed
        wanted, prefix = self.params.probe, probe.prefix_of(self.params)
        calls: list[Call] = []
        samples: list[probing.Sample] = []
        found = Found([], [], [], {})
        while wave := probing.next_wave(samples, wanted):
            calls += [probing.probe_call(prefix, wanted, self.params.seed, len(calls) + i) for i in range(wave)]
            found = self._look(self.params.target, calls, "probe")
            answered = [Outcome(answer) for answer in found.answers if answer]
            samples = probing.classify(answered, wanted)
            if len(answered) < len(calls):
                break
        missing = wanted.instructions - sum(sample.status == "ok" for sample in samples)
        more = Range(0, 0)
        if missing > 0:
            most = wanted.max_requests - len(calls)
            more = Range(min(most, max(0, missing - found.answers.count(None))), most)
        self._add("probe", self.params.target, found, more, len(prefix.ids), wanted.max_tokens)
        return pa.Table.from_pylist([asdict(sample) for sample in samples], records.INSTRUCTIONS)

    def converse(self, instructions: pa.Table) -> pa.Table:
        """The conversations as far as the ledger gives them; the reason of those with turns to come is UNASKED."""
        wanted = self.params.converse
        models = KnownModels(self.params, self._ledger, self._card, self._look)
        grown = converse.grow(self.params, instructions, models)
        if wanted.share:
            unprobed = max(0, self.params.probe.instructions - len(grown))
            turns = math.ceil(unprobed * wanted.share) * (wanted.turns.max - 1)  # an estimate: each draws for itself
            turns += sum(one.wanted - one.turns for one in grown if converse.is_open(one))
            self._turns(models, turns)
        return pa.Table.from_pylist([one.row() for one in grown], records.CONVERSATIONS)

    def _turns(self, models: "KnownModels", turns: int) -> None:
        """The lines of stage converse; `turns`: answers that are still to be chosen, at most."""
        params, most = self.params, self.params.converse.max_tokens
        sampling = {name: params.committee[name].sampling for name in params.members()}

        def add(kind: str, name: str, calls: int, most_in: int, most_out: int) -> None:
            found = models.found(kind, name)
            lacking = len({key for key, answer in zip(found.keys, found.answers, strict=True) if not answer})
            self._add(f"converse: {kind}", name, found, Range(0, max(0, calls - lacking)), most_in, most_out)

        for name, one in sampling.items():
            add("respond", name, turns * one.samples, most, one.max_tokens)
        room = RUBRIC_TOKENS + most + max(one.max_tokens for one in sampling.values())
        votes = turns * sum(one.samples for one in sampling.values())
        for name in params.enabled_judges():
            mode, local = params.judges[name].mode, self._card(name).kind == "local"
            again = not (mode == "expected" and local)  # then a reply may be asked for once more, below the first
            most_out = params.judges[name].max_tokens if mode == "justify" else judging.SCORE_TOKENS
            add("judge", name, votes * (1 + again), room + most_out * again, most_out)
        add("turns", params.target, turns, most, params.probe.max_tokens)

    def _most_asked(self, system: str | None) -> int:
        """Tokens that stand before an answer at most, under this system message or one that is drawn."""
        drawn = self.params.converse
        systems = [system, *(one.text for one in drawn.systems)]
        turns = max(self.params.probe.max_tokens, drawn.max_tokens if drawn.share else 0)
        return turns + max(prompt_bound({"messages": [{"content": text}]}) for text in systems)

    def respond(self, member: str, conversations: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the responses that the ledger gives, and the borrowed instruction of each call that it lacks.

        The last turns of open conversations are to come.
        """
        sampling, goal = self.params.committee[member].sampling, self.params.probe.instructions
        ours = [one for one in respond.asked_of(self.params, member, conversations, []) if not converse.is_open(one[0])]
        theirs = respond.asked_of(self.params, member, conversations.slice(0, 0), self._borrowed)
        asked = [*ours, *theirs]
        calls = [respond_call(row, sampling, self.params.seed, index) for row, index in asked]
        found = self._look(member, calls, f"respond {member}")
        kept_back = 0 if member == self.params.target else share(goal, self.params.select.heldout)
        more = max(0, (goal - kept_back) * sampling.samples - len(ours))
        most_in = self._most_asked(sampling.system)
        self._add("respond", member, found, Range(more, more), most_in, sampling.max_tokens)
        pairs = list(zip(asked, found.answers, strict=True))
        rows = [
            response_row(row["instruction_id"], member, index, Outcome(answer))
            for (row, index), answer in pairs
            if answer
        ]
        return rows, [row for (row, _), answer in pairs[len(ours) :] if not answer]

    def judge(self, name: str, conversations: pa.Table, responses: list[dict[str, Any]], to_come: Range) -> None:
        """The lines of one judge; `to_come`: responses that it will read besides those in the ledger."""
        params, judge_params = self.params, self.params.judges[name]
        judged = judge.judged_of(params, name, conversations, self._borrowed, responses)
        planted = [
            row for row in controls.plant(judged, params.judging.control, params.seed) if row["text"] is not None
        ]
        card = self._card(name)
        calls = judge.calls_of(params, card, [*judged, *planted])  # a pilot comes to the planted ones last
        found = self._look(name, calls, f"judge {name}")
        if to_come.high:  # then more instructions may be judged, and so many pairs planted at most
            goal = params.probe.instructions - share(params.probe.instructions, params.select.heldout)
            goal += sum(name in row["judges"] for row in self._borrowed)
            most = share(goal, params.judging.control) * len(controls.KINDS)
            to_come += Range(0, max(0, most - len(planted)))
        justify = judge_params.mode == "justify"
        most_out = judge_params.max_tokens if justify else judging.SCORE_TOKENS
        longest = max(member.sampling.max_tokens for member in params.committee.values())
        asked = max([self._most_asked(None), *(len(row["text"].encode()) for row in self._borrowed)])
        most_in = prompt_bound(calls[0].request) if calls else RUBRIC_TOKENS + asked + longest
        self._add("judge", name, found, to_come, most_in, most_out)
        local = card.kind == "local"
        if judge_params.mode == "expected" and local:
            return  # one token is always read, or always missing
        unread = [
            judging.reask_call(call, Outcome(answer))
            for call, answer in zip(calls, found.answers, strict=True)
            if answer and judging.vote_of(judge_params.mode, local, Outcome(answer), call.material).again
        ]
        open_calls = len({key for key, answer in zip(found.keys, found.answers, strict=True) if not answer})
        again = self._look(name, unread, f"judge {name}, asked again")
        self._add(
            "ask again", name, again, Range(0, open_calls + to_come.high), most_in + most_out, judging.REASK_TOKENS
        )

    def run(self) -> None:
        """Fill `lines`."""
        conversations = self.converse(self.probe())
        responses: list[dict[str, Any]] = []
        judges = self.params.enabled_judges()
        expected = dict.fromkeys(judges, Range(0, 0))
        for member in self.params.members():
            rows, borrowed = self.respond(member, conversations)
            responses += rows
            to_ask = self.lines[-1].to_ask + Range(-len(borrowed), -len(borrowed))
            complete = sum(row["status"] == "ok" for row in rows) / len(rows) if rows else 0.0
            judged = 1.0 - (self.params.select.heldout if member == self.params.target else 0.0)  # its own are not
            for name in judges:
                theirs = sum(name in row["judges"] for row in borrowed)
                expected[name] += Range(to_ask.low * complete * judged, to_ask.high * judged)
                expected[name] += Range(theirs * complete, theirs)
        for name in judges:
            self.judge(name, conversations, responses, expected[name])


def borrowed_of(params: Params) -> list[dict[str, Any]]:
    """The borrowed instructions as stage rehearse drew them; it need not have run where no variant borrows any."""
    wanted = rehearsal.borrowers_of(params)
    if not wanted:
        return []
    borrowed = records.read("data/borrowed.parquet", records.BORROWED)
    count = Counter(row["source"] for row in borrowed)
    as_wanted = all(wanted.get(row["source"]) == {key: row[key] for key in WHO} for row in borrowed)
    if not as_wanted or set(count) != set(wanted) or max(count.values()) > params.rehearsal.instructions:
        raise UserError(DRAW_FIRST)
    return borrowed


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
            verdict = "what the plan adds is unknown: a model with calls to come has no price (0 is one)"
        elif used + more.high <= cap:
            verdict = "the plan fits"
        else:
            over = f"up to {used + more.high - cap:,.4g} too much"
            verdict = f"the plan goes over it, {over}" if used + more.low > cap else f"the plan may go over it, {over}"
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
