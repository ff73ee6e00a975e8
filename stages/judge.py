"""Judge: one judge scores every complete response of the committee, those to held-out instructions excepted.

In: data/conversations.parquet, data/responses/<member>.parquet, models/pretrained/<judge>, the judge's prompt.
Out: data/judgments/<judge>.parquet; a missing vote is NULL with its reason.
Run: python -m stages.judge <judge>
"""

import sys
from collections.abc import Iterable
from itertools import chain
from typing import Any

import pyarrow as pa

from anamnesis import judging, records, selection, sql
from anamnesis import params as settings
from anamnesis.cards import Card
from anamnesis.client import Client
from anamnesis.errors import UserError, run
from anamnesis.judging import Vote
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.responding import context_of
from anamnesis.wire import Call, Outcome

PROMPT = "prompts/judge.txt"


def judged_of(params: Params, instructions: pa.Table, responses: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The complete responses with their `instruction`, those to one together (their prompts share a prefix)."""
    pool = selection.pool_of(
        sql.statement("stages/sql/hold_out.sql"), instructions, params.select.heldout, params.seed
    ).to_pylist()
    text_of = {row["instruction_id"]: row["instruction"] for row in pool if not row["held_out"]}
    before = {row["instruction_id"]: context_of(row, None) for row in instructions.to_pylist()}
    judged = [
        row | {"instruction": text_of[row["instruction_id"]], "context": before[row["instruction_id"]]}
        for row in responses
        if row["status"] == "ok" and row["instruction_id"] in text_of
    ]
    return sorted(judged, key=lambda row: (row["instruction_id"], row["response_id"]))


def calls_of(params: Params, card: Card, judged: Iterable[dict[str, Any]]) -> list[Call]:
    """A judge's first call for each response."""
    prompt, judge = judging.load_prompt(PROMPT), params.judges[card.name]
    local = card.kind == "local"
    conversations = [
        judging.judge_messages(prompt, row["instruction"], row["text"], params.seed, row["context"]) for row in judged
    ]
    if judge.mode == "justify":
        return [judging.justify_call(messages, judge, params.seed, constrained=local) for messages in conversations]
    if not local:
        return [judging.remote_expected_call(messages) for messages in conversations]

    from transformers import AutoTokenizer

    model_dir = f"models/pretrained/{card.name}"
    tokenizer = AutoTokenizer.from_pretrained(model_dir, trust_remote_code=card.trust_remote_code)
    return [judging.local_expected_call(tokenizer, messages) for messages in conversations]


def tokens_of(outcome: Outcome) -> int:
    return outcome.answer.completion_tokens if outcome.answer else 0


def vote_expected(client: Client, calls: list[Call]) -> list[tuple[Vote, int]]:
    """Votes and completion tokens from the probabilities of the score token."""
    outcomes = client.ask(calls, f"judge {client.card.name}")
    score_line = client.card.kind != "local"  # a local reply is the rating's token alone
    return [
        (judging.vote_expected(outcome.answer, outcome.reason, score_line), tokens_of(outcome)) for outcome in outcomes
    ]


def vote_justify(client: Client, calls: list[Call]) -> list[tuple[Vote, int]]:
    """Votes and completion tokens from a reason and a last line; an unreadable reply is asked for once more."""
    name = client.card.name
    outcomes = client.ask(calls, f"judge {name}")
    rung = "constrained" if client.card.kind == "local" else "strict"
    votes = [judging.vote_justify(outcome.answer, outcome.reason, rung) for outcome in outcomes]
    tokens = [tokens_of(outcome) for outcome in outcomes]
    again = [i for i, vote in enumerate(votes) if vote.score is None and outcomes[i].answer is not None]
    reasked = [judging.reask_call(calls[i], outcomes[i]) for i in again]
    for i, outcome in zip(again, client.ask(reasked, f"judge {name}, asked again", essential=False), strict=True):
        second = judging.vote_justify(outcome.answer, outcome.reason, "reask")
        votes[i] = Vote(second.score, second.parse, votes[i].justification, second.reason)
        tokens[i] += tokens_of(outcome)
    return list(zip(votes, tokens, strict=True))


def main() -> None:
    params = settings.load()
    if len(sys.argv) != 2 or sys.argv[1] not in params.judges:
        raise UserError(f"usage: python -m stages.judge <judge>; judges: {', '.join(params.judges)}")
    name = sys.argv[1]
    judging.load_prompt(PROMPT)  # its mistakes come before any work
    rows: list[dict[str, Any]] = []
    if params.models[name].enabled:
        instructions = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
        answers = [records.read(f"data/responses/{member}.parquet", records.RESPONSES) for member in params.members()]
        judged = judged_of(params, instructions, chain.from_iterable(answers))
        model_dir = f"models/pretrained/{name}"
        with Ledger() as ledger, Client(model_dir, params, ledger) as client:
            vote = vote_expected if params.judges[name].mode == "expected" else vote_justify
            votes = vote(client, calls_of(params, client.card, judged))
        rows = [judging.judgment(row["response_id"], name, *told) for row, told in zip(judged, votes, strict=True)]
    records.write(f"data/judgments/{name}.parquet", rows, records.JUDGMENTS, ["response_id"])


if __name__ == "__main__":
    run(main)
