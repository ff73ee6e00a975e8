"""Which response of an instruction is kept, for each variant; which instructions are held out.

In: tables of instructions, responses and judgments. Out: a table of the picks (`records.SELECTED`) in which every good
instruction has its row, and the held-out instructions with the target's own answers (`records.HELDOUT`). The rules are
in stages/sql; these functions bind their parameters, so that a test can call them on five rows.
"""

from collections import Counter
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import sql
from anamnesis.params import share
from anamnesis.records import CONVERSATIONS, HELDOUT, SELECTED

REASONS = ("held out", "no complete response", "too few votes")


def pool_of(text: str, instructions: pa.Table, heldout: float, seed: int, threads: int = 0) -> pa.Table:
    """The good instructions (instruction_id, instruction, held_out), with the share `heldout` of them marked."""
    good = pc.sum(pc.equal(instructions["status"], "ok")).as_py() or 0
    parameters = {"seed": seed, "count": share(good, heldout)}
    return sql.run(text, {"instructions": instructions}, parameters, threads)


def held_out(text: str, instructions: pa.Table, heldout: float, seed: int) -> set[str]:
    """The ids of the held-out instructions: only the target answers them, and nobody judges them."""
    pool = pool_of(text, instructions, heldout, seed)
    return {row["instruction_id"] for row in pool.to_pylist() if row["held_out"]}


def select_variant(
    text: str,
    pool: pa.Table,
    responses: pa.Table,
    judgments: pa.Table,
    *,
    members: Sequence[str],
    judges: Sequence[str],
    samples: int,
    rule: str,
    min_votes: int,
    seed: int,
    threads: int = 0,
) -> pa.Table:
    """One row of `records.SELECTED` for each instruction of the pool.

    Candidates are complete responses of `members` with a sample index below `samples`; votes are the scores of `judges`
    that are not NULL. Rule `mean` takes the highest mean of at least `min_votes` votes, `first` the lowest sample index
    and then the order of `members`, `random` a seeded hash, which also breaks every tie.
    """
    parameters = {
        "members": list(members),
        "judges": list(judges),
        "samples": samples,
        "rule": rule,
        "min_votes": min_votes,
        "seed": seed,
    }
    tables = {"pool": pool, "responses": responses, "judgments": judgments}
    return sql.run(text, tables, parameters, threads).cast(SELECTED)


def heldout_rows(
    text: str,
    pool: pa.Table,
    responses: pa.Table,
    target: str,
    system: str | None = None,
    threads: int = 0,
    conversations: pa.Table | None = None,
) -> pa.Table:
    """The held-out instructions of the pool, each answered by the target's first complete response.

    `system` is the system message that the target answered under where `conversations` (`records.CONVERSATIONS`) has
    no other.
    """
    parameters = {"target": target, "system": system}
    before = conversations if conversations is not None else CONVERSATIONS.empty_table()
    tables = {"pool": pool, "responses": responses, "conversations": before}
    return sql.run(text, tables, parameters, threads).cast(HELDOUT)


def counts(selected: pa.Table, members: Sequence[str]) -> dict[str, int]:
    """How many instructions were kept, from which member, and how many were dropped for which reason."""
    rows = selected.select(["status", "reason", "member"]).to_pylist()
    reasons = Counter(row["reason"] for row in rows)
    picked = Counter(row["member"] for row in rows)
    return {
        "kept": sum(row["status"] == "ok" for row in rows),
        **{f"picked.{member}": picked[member] for member in members},
        **{f"dropped.{reason.replace(' ', '_')}": reasons[reason] for reason in REASONS},
    }
