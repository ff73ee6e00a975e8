"""Judge: one judge scores every complete response of the committee, those to held-out instructions excepted.

In: data/conversations.parquet, data/borrowed.parquet, data/responses/<member>.parquet, models/pretrained/<judge>, the
judge's prompt.
Out: data/judgments/<judge>.parquet; a missing vote is NULL with its reason. data/controls/<judge>.parquet: planted
responses, asked about like any other beside those to the same instruction, and their scores (anamnesis/controls.py).
Run: python -m stages.judge <judge>
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa

from anamnesis import controls, foresight, judging, records, selection, sql
from anamnesis import params as settings
from anamnesis.cards import Card
from anamnesis.chat import tokenizer_of
from anamnesis.client import Client
from anamnesis.errors import UserError, run
from anamnesis.judging import Question, Vote
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.responding import context_of
from anamnesis.sections import Judge
from anamnesis.wire import Call, Outcome

PROMPT = "prompts/judge.txt"


def judged_of(
    params: Params,
    judge: str,
    conversations: pa.Table,
    borrowed: Iterable[dict[str, Any]],
    responses: Iterable[dict[str, Any]],
) -> list[dict[str, Any]]:
    """The complete responses with their `instruction` and `context`: system message that was drawn, turns before.

    Those to one instruction stand together (their prompts share a prefix). Responses to borrowed instructions are for
    the judges of the variants that borrow them.
    """
    pool = selection.pool_of(
        sql.statement("stages/sql/hold_out.sql"), conversations, params.select.heldout, params.seed
    ).to_pylist()
    text_of = {row["instruction_id"]: row["instruction"] for row in pool if not row["held_out"]}
    text_of |= {row["instruction_id"]: row["text"] for row in borrowed if judge in row["judges"]}
    before = {row["instruction_id"]: context_of(row, None) for row in conversations.to_pylist()}
    judged = [
        row | {"instruction": text_of[row["instruction_id"]], "context": before.get(row["instruction_id"], [])}
        for row in responses
        if row["status"] == "ok" and row["instruction_id"] in text_of
    ]
    return sorted(judged, key=lambda row: (row["instruction_id"], row["response_id"]))


def grouped(judged: Iterable[dict[str, Any]], planted: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Genuine and planted pairs to ask about, those of one instruction together."""
    asked = [*judged, *(row for row in planted if row["status"] == "ok")]
    return sorted(asked, key=lambda row: (row["instruction_id"], row["response_id"], row.get("pair_id", "")))


def calls_of(params: Params, card: Card, rows: Iterable[dict[str, Any]], path: str | Path = PROMPT) -> list[Question]:
    """A judge's first call for each pair of `instruction`, below its `context`, and `text`."""
    prompt, judge = judging.load_prompt(path), params.judges[card.name]
    local = card.kind == "local"
    tokenizer = tokenizer_of(f"models/pretrained/{card.name}", card.trust_remote_code) if local else None
    control = judging.control_of(tokenizer) if local else judging.CONTROL_TOKEN

    def call_of(messages: list[dict[str, str]]) -> Call:
        if judge.mode == "expected":
            local_call = judging.local_expected_call
            return local_call(tokenizer, messages) if local else judging.remote_expected_call(messages)
        call = judging.justify_call if judge.mode == "justify" else judging.score_call
        return call(messages, judge, params.seed, constrained=local)

    questions = []
    for row in rows:
        asked, response, before = row["instruction"], row["text"], row["context"]
        call = call_of(judging.judge_messages(prompt, asked, response, params.seed, before, control))
        material = "\n".join([*(turn["content"] for turn in before), asked, response])
        questions.append(Question(call.kind, call.request, material=material, control=control))
    return questions


def tokens_of(outcome: Outcome) -> int:
    """Completion tokens of a reply as the server counted them, 0 where there is no reply."""
    return outcome.answer.completion_tokens if outcome.answer else 0


def ask(client: Client, judge: Judge, calls: Sequence[Question]) -> list[tuple[Vote, int]]:
    """Votes and completion tokens; a reply without a readable score is asked for once more."""
    name, local = client.card.name, client.card.kind == "local"
    outcomes = client.ask(calls, f"judge {name}")
    votes = [
        judging.vote_of(judge.mode, local, outcome, call.material)
        for call, outcome in zip(calls, outcomes, strict=True)
    ]
    tokens = [tokens_of(outcome) for outcome in outcomes]
    again = [place for place, vote in enumerate(votes) if vote.again]
    reasked = [judging.reask_call(calls[place], outcomes[place]) for place in again]
    answers = client.ask(reasked, f"judge {name}, asked again", essential=False)
    for place, outcome in zip(again, answers, strict=True):
        second = judging.vote_of(judge.mode, local, outcome, calls[place].material, reasked=True)
        votes[place] = replace(second, justification=votes[place].justification, answered=True)
        tokens[place] += tokens_of(outcome)
    return list(zip(votes, tokens, strict=True))


def main() -> None:
    params = settings.load()
    foresight.check(params)
    if len(sys.argv) != 2 or sys.argv[1] not in params.judges:
        raise UserError(f"usage: python -m stages.judge <judge>; judges: {', '.join(params.judges)}")
    name = sys.argv[1]
    judge = params.judges[name]
    judging.load_prompt(PROMPT)  # its mistakes come before any work
    judged: list[dict[str, Any]] = []
    planted: list[dict[str, Any]] = []
    told: dict[str, tuple[Vote, int]] = {}
    if params.models[name].enabled:
        conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
        answers = [records.read(f"data/responses/{member}.parquet", records.RESPONSES) for member in params.members()]
        borrowed = records.read("data/borrowed.parquet", records.BORROWED)
        judged = judged_of(params, name, conversations, borrowed, chain.from_iterable(answers))
        planted = controls.plant(judged, params.judging.control, params.seed)
        rows = grouped(judged, planted)
        with Ledger() as ledger, Client(f"models/pretrained/{name}", params, ledger) as client:
            votes = ask(client, judge, calls_of(params, client.card, rows))
        told = {row.get("pair_id", row["response_id"]): vote for row, vote in zip(rows, votes, strict=True)}
    scored = [judging.judgment(row["response_id"], name, *told[row["response_id"]]) for row in judged]
    records.write(f"data/judgments/{name}.parquet", scored, records.JUDGMENTS, ["response_id"])
    pairs = [judging.control(row, name, told.get(row["pair_id"])) for row in planted]
    records.write(f"data/controls/{name}.parquet", pairs, records.CONTROLS, ["pair_id"])
    genuine = [told[row["response_id"]][0] for row in judged]
    judging.check_parse_rate(name, judge.mode, genuine, params.judging.min_parse_rate)


if __name__ == "__main__":
    run(main)
