"""Plan: what the model calls of a run will take, and its training in memory, before it is made.

Asks nothing but a pilot, if one is wanted.

In: params.yaml, models/pretrained (`dvc repro models`), data/borrowed.parquet where a variant borrows instructions
(`dvc repro rehearse`), the ledger. Out: a table; no stage of DVC.
Run: python -m stages.plan [--pilot N] [--json]      or: make plan
--pilot N asks the first N calls of every stage and model that the ledger lacks. They are calls of the run itself: it
will not ask them again.
"""

import argparse
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa

from anamnesis import controls, foresight, judging, memory, planning, probing, records, rehearsal
from anamnesis import params as settings
from anamnesis.cards import load_card
from anamnesis.conversing import is_open
from anamnesis.errors import UserError, run
from anamnesis.ledger import Ledger
from anamnesis.lookup import KnownModels, Lookup
from anamnesis.params import Params
from anamnesis.planning import Found, Line, Range, total
from anamnesis.responding import respond_call, response_row
from anamnesis.server import identities
from anamnesis.spending import prompt_bound, spent
from anamnesis.wire import Call, Outcome
from stages import converse, judge, probe, respond

DRAW_FIRST = "data/borrowed.parquet: not what params.yaml borrows; run `dvc repro rehearse`"
WHO = ("members", "judges", "samples")


class Planner:
    """Goes through the stages as the run will, with the ledger's answers in the place of new ones."""

    def __init__(self, params: Params, ledger: Ledger, pilot: int):
        self.params, self._ledger, self._lookup = params, ledger, Lookup(params, ledger, pilot)
        self.lines: list[Line] = []
        self._borrowed = borrowed_of(params)

    def _add(self, stage: str, model: str, found: Found, more: Range, most_in: int, most_out: int) -> None:
        self.lines.append(planning.line_of(self.params, stage, model, found, more, most_in, most_out))

    def probe(self) -> pa.Table:
        """The instructions that the ledger gives."""
        load_card(Path("models/pretrained") / self.params.target)  # its tokenizer is needed
        wanted, prefix = self.params.probe, probe.prefix_of(self.params)
        calls: list[Call] = []
        samples: list[probing.Sample] = []
        found = Found([], [], [], {})
        while wave := probing.next_wave(samples, wanted):
            calls += [probing.probe_call(prefix, wanted, self.params.seed, len(calls) + i) for i in range(wave)]
            found = self._lookup.look(self.params.target, calls, "probe")
            answered = [Outcome(answer) for answer in found.answers if answer]
            samples = probing.classify(answered, wanted)
            if len(answered) < len(calls):
                break
        more = planning.probes_to_come(wanted, found, sum(sample.status == "ok" for sample in samples))
        self._add("probe", self.params.target, found, more, len(prefix.ids), wanted.max_tokens)
        return pa.Table.from_pylist([asdict(sample) for sample in samples], records.INSTRUCTIONS)

    def converse(self, instructions: pa.Table) -> pa.Table:
        """The conversations as far as the ledger gives them; the reason of those with turns to come is UNASKED."""
        params = self.params
        models = KnownModels(params, self._ledger, self._lookup)
        grown = converse.grow(params, instructions, models)
        if params.converse.share:
            local = {name: self._lookup.card(name).kind == "local" for name in params.enabled_judges()}
            for asked in planning.asked_for_turns(params, planning.turns_to_come(params, grown), local):
                found = models.found(asked.kind, asked.model)
                more = Range(0, max(0, asked.calls - found.lacking))
                self._add(f"converse: {asked.kind}", asked.model, found, more, asked.most_in, asked.most_out)
        return pa.Table.from_pylist([one.row() for one in grown], records.CONVERSATIONS)

    def respond(self, member: str, conversations: pa.Table) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Rows of the responses that the ledger gives, and the borrowed instruction of each call that it lacks.

        The last turns of open conversations are to come.
        """
        params, sampling = self.params, self.params.committee[member].sampling
        ours = [one for one in respond.asked_of(params, member, conversations, []) if not is_open(one[0])]
        theirs = respond.asked_of(params, member, conversations.slice(0, 0), self._borrowed)
        asked = [*ours, *theirs]
        calls = [respond_call(row, sampling, params.seed, index) for row, index in asked]
        found = self._lookup.look(member, calls, f"respond {member}")
        more = planning.responses_to_come(params, member, len(ours))
        self._add("respond", member, found, more, planning.most_asked(params, sampling.system), sampling.max_tokens)
        pairs = list(zip(asked, found.answers, strict=True))
        rows = [
            response_row(row["instruction_id"], member, index, Outcome(answer))
            for (row, index), answer in pairs
            if answer
        ]
        return rows, [row for (row, _), answer in pairs[len(ours) :] if not answer]

    def judge(self, name: str, conversations: pa.Table, responses: list[dict[str, Any]], to_come: Range) -> None:
        """The lines of one judge; `to_come`: responses that it will read besides those in the ledger."""
        params, wanted, card = self.params, self.params.judges[name], self._lookup.card(name)
        judged = judge.judged_of(params, name, conversations, self._borrowed, responses)
        planted = [
            row for row in controls.plant(judged, params.judging.control, params.seed) if row["text"] is not None
        ]
        calls = judge.calls_of(params, card, [*judged, *planted])  # a pilot comes to the planted ones last
        found = self._lookup.look(name, calls, f"judge {name}")
        if to_come.high:  # then more instructions may be judged, and so many pairs planted at most
            to_come += planning.planted_to_come(params, name, self._borrowed, len(planted))
        most_in = prompt_bound(calls[0].request) if calls else planning.most_judged(params, self._borrowed)
        most_out, local = planning.reply_tokens(wanted), card.kind == "local"
        self._add("judge", name, found, to_come, most_in, most_out)
        if not planning.asks_again(wanted, local):
            return
        unread = [
            judging.reask_call(call, Outcome(answer))
            for call, answer in zip(calls, found.answers, strict=True)
            if answer and judging.vote_of(wanted.mode, local, Outcome(answer), call.material).again
        ]
        again = self._lookup.look(name, unread, f"judge {name}, asked again")
        more = Range(0, found.lacking + to_come.high)
        self._add("ask again", name, again, more, most_in + most_out, judging.REASK_TOKENS)

    def run(self) -> None:
        """Fill `lines`."""
        conversations = self.converse(self.probe())
        responses: list[dict[str, Any]] = []
        expected = dict.fromkeys(self.params.enabled_judges(), Range(0, 0))
        for member in self.params.members():
            rows, borrowed = self.respond(member, conversations)
            responses += rows
            to_ask = self.lines[-1].to_ask
            expected = planning.read_by_judges(self.params, member, rows, borrowed, to_ask, expected)
        for name, to_come in expected.items():
            self.judge(name, conversations, responses, to_come)


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


def show(lines: Sequence[Line]) -> None:
    """Print the table."""
    heads = ["stage", "model", "in ledger", "to ask", "tokens in", "tokens out", "time", "USD"]
    memory.show(heads, [planning.cells(line) for line in [*lines, total(lines)]], heads[:2])


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m stages.plan", description="What a run's model calls will take.")
    parser.add_argument("--pilot", type=int, default=0, metavar="N", help="ask N calls of each stage and model first")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    told = parser.parse_args()
    if told.pilot < 0:
        raise UserError("--pilot: a number of calls, 0 or more")
    params = settings.load()
    foresight.check(params)
    with Ledger() as ledger:
        planner = Planner(params, ledger, told.pilot)
        planner.run()
        before = spent(ledger, params.prices, identities(params))
    target = Path("models/pretrained") / params.target
    tunings = {name: variant.tuning for name, variant in params.tuned_variants().items()}
    training = memory.plan(target, tunings, params.train, load_card(target).trust_remote_code)
    verdicts = planning.verdicts(params.budget, before, total(planner.lines))
    if told.json:
        lines = [asdict(line) for line in [*planner.lines, total(planner.lines)]]
        print(json.dumps({"lines": lines, "budget": verdicts, "memory": training}))
        return
    show(planner.lines)
    print("Ranges are 95 % intervals of a mean over answered calls, or bounds where fewer than five are in the ledger.")
    print(*verdicts, sep="\n")
    memory.show_plan(training)


if __name__ == "__main__":
    run(main)
