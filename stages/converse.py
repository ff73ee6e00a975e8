"""Converse: a share of the instructions grows to conversations; all may draw a system message.

For each further turn the committee answers the conversation so far, the judges score and the best mean is kept, by the
very calls of stages respond and judge; the target then writes the next user's turn. Held-out instructions are the
target's alone: its first complete answer is kept. Asks nothing where converse.share is 0.
In: data/instructions.parquet, models/pretrained. Out: data/conversations.parquet, metrics/converse.json.
Run: python -m stages.converse
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import conversing, foresight, judging, records, selection, sql
from anamnesis import params as settings
from anamnesis.conversing import UNASKED, Conversation
from anamnesis.errors import run
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.responding import respond_call, response_row
from anamnesis.selection import Rule
from anamnesis.template import pre_query
from anamnesis.turns import Models
from anamnesis.variants import THRESHOLDS
from anamnesis.wire import Call
from stages import judge, respond


def grow(params: Params, instructions: pa.Table, models: Models) -> list[Conversation]:
    """Every good instruction as a conversation of as many turns as it drew, or as it came to."""
    good = [row for row in instructions.to_pylist() if row["status"] == "ok"]
    begun = [conversing.begin(row, params.converse, params.target, params.seed) for row in good]
    conversations = {one.instruction_id: one for one in begun}
    tokenizer: Any = None
    while growing := [one for one in conversations.values() if one.grows]:
        tokenizer = tokenizer or models.tokenizer()
        table = pa.Table.from_pylist([one.row() for one in conversations.values()], records.CONVERSATIONS)
        picks = picks_of(params, table, {one.instruction_id for one in growing}, models)
        conversations |= {one.instruction_id: one for one in next_turns(params, growing, picks, tokenizer, models)}
    return list(conversations.values())


def picks_of(params: Params, table: pa.Table, growing: set[str], models: Models) -> dict[str, dict[str, Any]]:
    """The chosen answer to the last turn of each growing conversation: a row of `records.SELECTED` by instruction.

    Conversations whose answers or votes are not asked yet are left out.
    """
    # Neighbours in these orders share a model where they can, so that its server need not start again.
    members = sorted(params.members(), key=lambda name: name != params.target)
    judges = sorted(params.enabled_judges(), key=lambda name: (name != members[-1], name == params.target))
    responses: list[dict[str, Any]] = []
    for name in members:
        sampling = params.committee[name].sampling
        asked = [one for one in respond.asked_of(params, name, table, []) if one[0]["instruction_id"] in growing]
        calls = [respond_call(row, sampling, params.seed, index) for row, index in asked]
        outcomes = models.client(name).ask(calls, f"respond {name}") if calls else []
        responses += [
            response_row(row["instruction_id"], name, index, outcome)
            for (row, index), outcome in zip(asked, outcomes, strict=True)
        ]
    waiting = {row["instruction_id"] for row in responses if row["reason"] == UNASKED}
    judgments: list[dict[str, Any]] = []
    answered = [row for row in responses if row["instruction_id"] not in waiting]
    for name in judges:
        judged = judge.judged_of(params, name, table, [], answered)
        if not judged:
            break
        client = models.client(name)
        votes = judge.ask(client, params.judges[name], judge.calls_of(params, client.card, judged))
        for row, told in zip(judged, votes, strict=True):
            judgments.append(judging.judgment(row["response_id"], name, *told))
            if told[0].reason == UNASKED:
                waiting.add(row["instruction_id"])
    pool = selection.pool_of(sql.statement("stages/sql/hold_out.sql"), table, params.select.heldout, params.seed)
    pool = pool.filter(pc.is_in(pool["instruction_id"], pa.array(growing - waiting, pa.string())))
    return {
        row["instruction_id"]: row
        for held_out in (False, True)
        for row in _select(params, pool, held_out, responses, judgments).to_pylist()
    }


def _select(
    params: Params,
    pool: pa.Table,
    held_out: bool,
    responses: Sequence[Mapping[str, Any]],
    judgments: Sequence[Mapping[str, Any]],
) -> pa.Table:
    """Rule `mean` over the whole committee; for held-out instructions the target's first complete answer.

    The thresholds are those of section `select`, which a pick to train on has to meet as well.
    """
    ours = [row | {"held_out": False} for row in pool.to_pylist() if row["held_out"] == held_out]
    samples = max(member.sampling.samples for member in params.committee.values())
    if held_out:
        rule = Rule("first", [params.target], [], samples)
    else:
        judges, thresholds = params.enabled_judges(), params.select.model_dump(include=set(THRESHOLDS))
        rule = Rule("mean" if judges else "random", params.members(), judges, samples, **thresholds)
    return selection.select_variant(
        sql.statement("stages/sql/select.sql"),
        selection.candidates_query(sql.statement("stages/sql/candidates.sql"), rule),
        pa.Table.from_pylist(ours, pool.schema),
        pa.Table.from_pylist(responses, records.RESPONSES),
        pa.Table.from_pylist(judgments, records.JUDGMENTS),
        rule,
        params.seed,
    )


def next_turns(
    params: Params, growing: Sequence[Conversation], picks: Mapping[str, dict[str, Any]], tokenizer: Any, models: Models
) -> list[Conversation]:
    """The growing conversations with their next user's turn, or with the reason why there is none."""
    done: list[Conversation] = []
    asked: list[tuple[Conversation, int]] = []  # and how many tokens its next turn may have
    calls: list[Call] = []
    for one in growing:
        pick = picks.get(one.instruction_id)
        reason = conversing.dead_end(pick) if pick else UNASKED
        if pick is None or reason:
            done.append(conversing.ended(one, str(reason)))
            continue
        system = params.probe.system if one.system is None else one.system
        prefix = pre_query(tokenizer, system, history=conversing.answered(one, pick))
        room = params.converse.max_tokens - len(prefix.ids)
        if room <= 0:
            done.append(conversing.ended(one, "no room in converse.max_tokens"))
            continue
        asked.append((one, room))
        calls.append(conversing.turn_call(prefix, params.probe, params.seed, one))
    outcomes = models.client(params.target).ask(calls, "turns") if calls else []
    for (one, room), outcome in zip(asked, outcomes, strict=True):
        pick = picks[one.instruction_id]
        done.append(conversing.continued(one, pick, outcome, params.probe, room, params.target))
    return done


def main() -> None:
    params = settings.load()
    foresight.check(params)
    instructions = records.read_table("data/instructions.parquet", records.INSTRUCTIONS)
    with Ledger() as ledger:
        models = Models(params, ledger)
        try:
            conversations = grow(params, instructions, models)
        finally:
            models.close()
    rows = [one.row() for one in conversations]
    records.write("data/conversations.parquet", rows, records.CONVERSATIONS, ["instruction_id"])
    counts = conversing.counts(conversations)
    records.write_metrics("metrics/converse.json", counts)
    print("converse: " + ", ".join(f"{key} {count}" for key, count in counts.items()))


if __name__ == "__main__":
    run(main)
