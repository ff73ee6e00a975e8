"""Respond: one member of the committee answers every good instruction, several times; held-out ones only the target.

In: data/conversations.parquet, data/borrowed.parquet (instructions of rehearsal sources, for the members of the
variants that borrow them), models/pretrained/<member>. Out: data/responses/<member>.parquet.
Run: python -m stages.respond <member>
"""

import sys
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from anamnesis import foresight, records, selection, sql
from anamnesis import params as settings
from anamnesis.client import Client
from anamnesis.errors import UserError, run
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.responding import respond_call, response_row


def asked_of(
    params: Params, member: str, instructions: pa.Table, borrowed: Iterable[dict[str, Any]]
) -> list[tuple[dict[str, Any], int]]:
    """The instructions that a member answers, each with every sample index; held-out ones are the target's alone.

    Borrowed ones are asked of the members of the variants that borrow them, with no more samples than these take.
    """
    good = [row for row in instructions.to_pylist() if row["status"] == "ok"]
    if member != params.target:
        hold_out = sql.statement("stages/sql/hold_out.sql")
        kept_back = selection.held_out(hold_out, instructions, params.select.heldout, params.seed)
        good = [row for row in good if row["instruction_id"] not in kept_back]
    samples = params.committee[member].sampling.samples
    ours = [row for row in borrowed if member in row["members"]]
    return [
        *((row, index) for row in good for index in range(samples)),
        *((row, index) for row in ours for index in range(min(samples, row["samples"]))),
    ]


def main() -> None:
    params = settings.load()
    foresight.check(params)
    if len(sys.argv) != 2 or sys.argv[1] not in params.committee:
        raise UserError(f"usage: python -m stages.respond <member>; members: {', '.join(params.committee)}")
    member = sys.argv[1]
    sampling = params.committee[member].sampling
    rows: list[dict[str, Any]] = []
    if params.models[member].enabled:
        conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
        asked = asked_of(params, member, conversations, records.read("data/borrowed.parquet", records.BORROWED))
        calls = [respond_call(row, sampling, params.seed, index) for row, index in asked]
        model_dir = f"models/pretrained/{member}"
        with Ledger() as ledger, Client(model_dir, params, ledger) as client:
            outcomes = client.ask(calls, f"respond {member}")
        rows = [
            response_row(row["instruction_id"], member, index, outcome)
            for (row, index), outcome in zip(asked, outcomes, strict=True)
        ]
    records.write(f"data/responses/{member}.parquet", rows, records.RESPONSES, ["instruction_id", "sample_index"])


if __name__ == "__main__":
    run(main)
