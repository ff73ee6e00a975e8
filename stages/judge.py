"""Judge: one judge scores every complete response of the committee, those to held-out instructions excepted.

In: data/instructions.parquet, data/responses/<member>.parquet, models/pretrained/<judge>, the judge's prompt.
Out: data/judgments/<judge>.parquet; a missing vote is NULL with its reason.
Run: python -m stages.judge <judge>
"""

import sys
from typing import Any

from anamnesis import judging, records, selection, sql
from anamnesis import params as settings
from anamnesis.client import Client
from anamnesis.errors import UserError, run
from anamnesis.judging import Vote
from anamnesis.ledger import Ledger
from anamnesis.params import Judge, Params
from anamnesis.wire import Call, Outcome

PROMPT = "prompts/judge.txt"


def read_responses(params: Params, prompt: Any) -> tuple[list[dict[str, Any]], list[list[dict[str, str]]]]:
    """The complete responses, those to one instruction together (their prompts share a prefix), and their prompts."""
    instructions = records.read_table("data/instructions.parquet", records.INSTRUCTIONS)
    pool = selection.pool_of(
        sql.statement("stages/sql/hold_out.sql"), instructions, params.select.heldout, params.seed
    ).to_pylist()
    text_of = {row["instruction_id"]: row["instruction"] for row in pool if not row["held_out"]}
    responses = [
        row
        for member in params.members()
        for row in records.read(f"data/responses/{member}.parquet", records.RESPONSES)
        if row["status"] == "ok" and row["instruction_id"] in text_of
    ]
    responses.sort(key=lambda row: (row["instruction_id"], row["response_id"]))
    conversations = [
        judging.judge_messages(prompt, text_of[row["instruction_id"]], row["text"], params.seed) for row in responses
    ]
    return responses, conversations


def tokens_of(outcome: Outcome) -> int:
    return outcome.answer.completion_tokens if outcome.answer else 0


def vote_expected(client: Client, name: str, conversations: list[list[dict[str, str]]]) -> list[tuple[Vote, int]]:
    """Votes and completion tokens from the probabilities of the score token."""
    calls: list[Call]
    if client.card.kind == "local":
        from transformers import AutoTokenizer

        trusted = client.card.trust_remote_code
        tokenizer = AutoTokenizer.from_pretrained(f"models/pretrained/{name}", trust_remote_code=trusted)
        calls = [judging.local_expected_call(tokenizer, messages) for messages in conversations]
    else:
        calls = [judging.remote_expected_call(messages) for messages in conversations]
    outcomes = client.ask(calls, f"judge {name}")
    score_line = client.card.kind != "local"  # a local reply is the rating's token alone
    return [
        (judging.vote_expected(outcome.answer, outcome.reason, score_line), tokens_of(outcome)) for outcome in outcomes
    ]


def vote_justify(
    client: Client, name: str, judge: Judge, conversations: list[list[dict[str, str]]], seed: int
) -> list[tuple[Vote, int]]:
    """Votes and completion tokens from a reason and a last line; an unreadable reply is asked for once more."""
    local = client.card.kind == "local"
    calls = [judging.justify_call(messages, judge, seed, constrained=local) for messages in conversations]
    outcomes = client.ask(calls, f"judge {name}")
    rung = "constrained" if local else "strict"
    votes = [judging.vote_justify(outcome.answer, outcome.reason, rung) for outcome in outcomes]
    tokens = [tokens_of(outcome) for outcome in outcomes]
    again = [i for i, vote in enumerate(votes) if vote.score is None and outcomes[i].answer is not None]
    reasked = [judging.reask_call(calls[i], outcomes[i]) for i in again]
    for i, outcome in zip(again, client.ask(reasked, f"judge {name}, asked again"), strict=True):
        second = judging.vote_justify(outcome.answer, outcome.reason, "reask")
        votes[i] = Vote(second.score, second.parse, votes[i].justification, second.reason)
        tokens[i] += tokens_of(outcome)
    return list(zip(votes, tokens, strict=True))


def main() -> None:
    params = settings.load()
    if len(sys.argv) != 2 or sys.argv[1] not in params.judges:
        raise UserError(f"usage: python -m stages.judge <judge>; judges: {', '.join(params.judges)}")
    name = sys.argv[1]
    prompt = judging.load_prompt(PROMPT)
    rows: list[dict[str, Any]] = []
    if params.models[name].enabled:
        responses, conversations = read_responses(params, prompt)
        model_dir = f"models/pretrained/{name}"
        with Ledger() as ledger, Client(model_dir, params, ledger) as client:
            if params.judges[name].mode == "expected":
                votes = vote_expected(client, name, conversations)
            else:
                votes = vote_justify(client, name, params.judges[name], conversations, params.seed)
        rows = [judging.judgment(row["response_id"], name, *vote) for row, vote in zip(responses, votes, strict=True)]
    records.write(f"data/judgments/{name}.parquet", rows, records.JUDGMENTS, ["response_id"])


if __name__ == "__main__":
    run(main)
