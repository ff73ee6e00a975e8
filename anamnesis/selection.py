"""Which response of an instruction is kept, for each variant; which instructions are held out.

In: tables or files of instructions, responses and judgments. Out: a table of the picks (`records.SELECTED`) in which
every good instruction has its row, and the held-out instructions with the target's own answers (`records.HELDOUT`). The
rules are in stages/sql; these functions bind their parameters, so that a test can call them on five rows.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import sql
from anamnesis.params import Params
from anamnesis.records import CONVERSATIONS, HELDOUT, SELECTED
from anamnesis.shares import share

REASONS = ("held out", "no complete response", "too few votes", "below minimum score", "margin too small")


@dataclass(frozen=True)
class Rule:
    """How one variant picks: docs/selection.md."""

    name: str  # mean, median, leave-own-judge-out, first or random
    members: Sequence[str]
    judges: Sequence[str]
    samples: int
    min_votes: int = 1
    min_score: float = 0.0
    min_margin: float = 0.0
    tie: float = 0.0


def rule_of(params: Params, variant: str) -> Rule:
    """A variant's rule: its enabled members and judges, and its own thresholds or else those of section `select`."""
    chosen = params.tuned_variants()[variant]
    return Rule(
        chosen.rule,
        [member for member in chosen.members if member in params.members()],
        [judge for judge in chosen.judges if judge in params.enabled_judges()],
        chosen.samples,
        **chosen.thresholds(params.select),
    )


def pool_of(text: str, instructions: pa.Table, heldout: float, seed: int, threads: int = 0) -> pa.Table:
    """The good instructions (instruction_id, instruction, held_out), with the share `heldout` of them marked."""
    good = pc.sum(pc.equal(instructions["status"], "ok")).as_py() or 0
    parameters = {"seed": seed, "count": share(good, heldout)}
    return sql.run(text, {"instructions": instructions}, parameters, threads)


def held_out(text: str, instructions: pa.Table, heldout: float, seed: int) -> set[str]:
    """The ids of the held-out instructions: only the target answers them, and nobody judges them."""
    pool = pool_of(text, instructions, heldout, seed)
    return {row["instruction_id"] for row in pool.to_pylist() if row["held_out"]}


def borrowed_pool(borrowed: pa.Table, source: str) -> pa.Table:
    """The instructions of one rehearsal source as a pool like that of `pool_of`; none of them is held out."""
    ours = borrowed.filter(pc.equal(borrowed["source"], source))
    pool = pa.table({"instruction_id": ours["instruction_id"], "instruction": ours["text"]})
    return pool.append_column("held_out", pa.array([False] * pool.num_rows, pa.bool_()))


def candidates_query(text: str, rule: Rule) -> sql.Query:
    """Every complete response that `rule` may pick, with its votes counted and its value: stages/sql/candidates.sql."""
    return sql.Query(
        text,
        {
            "members": list(rule.members),
            "judges": list(rule.judges),
            "samples": rule.samples,
            "rule": rule.name,
            "min_votes": rule.min_votes,
        },
    )


def select_variant(
    text: str,
    candidates: sql.Table,
    pool: pa.Table,
    responses: sql.Table,
    judgments: sql.Table,
    rule: Rule,
    seed: int,
    threads: int = 0,
) -> pa.Table:
    """One row of `records.SELECTED` for each instruction of the pool, in no order: the pick, or why there is none.

    `candidates` is `candidates_query` of the same rule, or its rows. The highest value wins; all within `rule.tie` of
    it are tied and a seeded hash of their ids decides.
    """
    parameters = {
        "judges": list(rule.judges),
        "min_score": rule.min_score,
        "min_margin": rule.min_margin,
        "tie": rule.tie,
        "seed": seed,
    }
    tables: dict[str, sql.Table] = {"pool": pool, "responses": responses, "judgments": judgments}
    return sql.run(text, tables | {"candidates": candidates}, parameters, threads).cast(SELECTED)


def heldout_rows(
    text: str,
    pool: pa.Table,
    responses: sql.Table,
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
    """How many instructions were kept, from which member, how many of them by the hash, and why others were dropped."""
    reasons, picked, statuses = (
        Counter({one["values"]: one["counts"] for one in pc.value_counts(selected[column]).to_pylist()})
        for column in ("reason", "member", "status")
    )
    return {
        "kept": statuses["ok"],
        **{f"picked.{member}": picked[member] for member in members},
        "ties": pc.sum(pc.greater(selected["tied"], 1)).as_py() or 0,
        **{f"dropped.{reason.replace(' ', '_')}": reasons[reason] for reason in REASONS},
    }
