"""Why an instruction's response was picked, or why none was: python -m anamnesis.why <variant> <instruction_id>

Prints every response with its votes and its value, the pick first, and what decided, by the statements that stage
select runs. It reads params.yaml, conversations, responses, judgments and the written pick, and asks no model. The
beginning of an id will do; --full shows whole texts.
"""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from anamnesis import params as settings
from anamnesis import records, selection, sql
from anamnesis.errors import UserError, run
from anamnesis.params import Params
from anamnesis.selection import Rule
from anamnesis.variants import BY_VOTES
from anamnesis.wording import plain

Row = dict[str, Any]
RANKED_BY = {
    "mean": "mean vote",
    "median": "median vote",
    "leave-own-judge-out": "mean vote, that of its own member left out",
    "first": "number, then place among `members`",
    "random": "seeded hash",
}


@dataclass(frozen=True)
class Case:
    """One instruction under one rule: its row of `records.SELECTED`, and by response id all that led to it."""

    rule: Rule
    seed: int
    pick: Row
    responses: dict[str, Row]
    candidates: dict[str, Row]  # rows of stages/sql/candidates.sql
    votes: dict[str, dict[str, float | None]]  # by judge

    def name(self, key: str) -> str:
        return f"{self.responses[key]['member']} {self.responses[key]['sample_index'] + 1}"


def _rows(folder: str, keys: Sequence[str], schema: pa.Schema, column: str, values: list[str]) -> pa.Table:
    """The rows of these keys' files in which `column` is one of `values`."""
    wanted = pc.field(column).isin(values)
    tables = [records.read_table(f"{folder}/{key}.parquet", schema, filters=wanted) for key in keys]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def row_of(pool: list[Row], wanted: str) -> Row:
    """The instruction with this id, or the only one whose id begins so. Raises `UserError` where there is none."""
    found = [row for row in pool if row["instruction_id"] == wanted]
    found = found or [row for row in pool if row["instruction_id"].startswith(wanted)]
    if len(found) != 1:
        what = f"{len(found)} ids begin so; write more of it" if found else "no such id"
        raise UserError(f"instruction {wanted!r}: {what}; data/selected/<variant>.parquet has them")
    return found[0]


def _pool(params: Params, source: str | None) -> pa.Table:
    """The instructions that a variant picks for: the probed ones, or those of the source that it borrows from."""
    if source:
        return selection.borrowed_pool(records.read_table("data/borrowed.parquet", records.BORROWED), source)
    conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
    hold_out = sql.statement("stages/sql/hold_out.sql")
    return selection.pool_of(hold_out, conversations, params.select.heldout, params.seed)


def case_of(params: Params, variant: str, wanted: str) -> Case:
    """Run the selection for one instruction. Raises `UserError` where the id or a file is not there."""
    rule = selection.rule_of(params, variant)
    pool = _pool(params, params.tuned_variants()[variant].borrowed)
    key = row_of(pool.to_pylist(), wanted)["instruction_id"]
    responses = _rows("data/responses", rule.members, records.RESPONSES, "instruction_id", [key])
    ids = responses["response_id"].to_pylist()
    judgments = _rows("data/judgments", rule.judges, records.JUDGMENTS, "response_id", ids)
    query = selection.candidates_query(sql.statement("stages/sql/candidates.sql"), rule)
    best = sql.statement("stages/sql/select.sql")
    one = pool.filter(pc.equal(pool["instruction_id"], key))
    [pick] = selection.select_variant(best, query, one, responses, judgments, rule, params.seed).to_pylist()
    ranked = sql.run(query.text, {"responses": responses, "judgments": judgments}, query.parameters)
    votes: dict[str, dict[str, float | None]] = {response_id: {} for response_id in ids}
    for vote in judgments.to_pylist():
        votes[vote["response_id"]][vote["judge"]] = vote["score"]
    responses_of, candidates_of = (
        {row["response_id"]: row for row in table.to_pylist()} for table in (responses, ranked)
    )
    return Case(rule, params.seed, pick, responses_of, candidates_of, votes)


def verdict(case: Case) -> str:
    """What decided."""
    rule, pick = case.rule, case.pick
    match pick["reason"]:
        case "held out":
            return "Dropped: held out of every variant, to measure forgetting on (select.heldout)."
        case "no complete response":
            return "Dropped: no member of this variant has a complete response to it."
        case "too few votes":
            return f"Dropped: every response has too few votes (min_votes {rule.min_votes})."
        case "below minimum score":
            return f"Dropped: the best value, {pick['value']:g}, is below min_score {rule.min_score:g}."
        case "margin too small":
            return f"Dropped: the best value is {pick['margin']:g} above the next; min_margin is {rule.min_margin:g}."
    name = case.name(pick["response_id"])
    if pick["candidates"] == 1:
        return f"Picked: {name}, the only candidate."
    if pick["tied"] > 1:
        what = f" within {rule.tie:g} of the best value" if rule.name in BY_VOTES else ""
        digest = hashlib.sha256(f"{case.seed}\x1fpick\x1f{pick['response_id']}".encode()).hexdigest()
        return (
            f"Picked: {name}, with the lowest hash of seed and id ({digest[:8]}…) of {pick['tied']} candidates{what}."
        )
    margin = "" if pick["margin"] is None else f", by {pick['margin']:g}"
    return f"Picked: {name}, ahead of {case.name(pick['runner_up_id'])}{margin}."


def _place(case: Case, key: str) -> tuple[int, float, str]:
    """The order to show responses in: pick, runner-up, other candidates by what they are ranked by, the rest."""
    found, best = case.candidates.get(key), [case.pick["response_id"], case.pick["runner_up_id"]]
    if found is None:
        return (4, 0.0, key)
    return (best.index(key) if key in best else 3 if found["counted"] < found["needed"] else 2, -found["key"], key)


def _standing(case: Case, key: str) -> str:
    """What a response is to the pick."""
    found = case.candidates.get(key)
    if case.pick["reason"] == "held out":
        return "held out: not judged"
    if found is None:
        return f"no candidate: {plain(case.responses[key]['reason'] or 'beyond `samples`')}"
    if found["counted"] < found["needed"]:
        return f"no candidate: {found['counted']} of {found['needed']} votes"
    return {case.pick["response_id"]: "picked", case.pick["runner_up_id"]: "runner-up"}.get(key, "")


def _votes(case: Case, key: str) -> str:
    own = case.responses[key]["member"] if case.rule.name == "leave-own-judge-out" else None
    told = []
    for judge in case.rule.judges:
        score = case.votes[key].get(judge)
        told.append(f"{judge} {'missing' if score is None else f'{score:g}'}{' (not counted)' if judge == own else ''}")
    return ", ".join(told)


def _short(text: str, length: int | None = 60) -> str:
    line = plain(text)
    return line if length is None or len(line) <= length else line[: length - 1] + "…"


def tell(case: Case, console: Console, length: int | None = 60) -> None:
    """Print the case as a table, with the rule before and the verdict after it; texts cut to `length` characters."""
    rule = case.rule
    console.print(Text(f"{case.pick['instruction_id']}: {_short(case.pick['instruction'], length)}"))
    told = f"rule {rule.name} ({RANKED_BY[rule.name]}), seed {case.seed}"
    if rule.name in BY_VOTES:
        told += f", min_votes {rule.min_votes}, min_score {rule.min_score:g}, min_margin {rule.min_margin:g}"
        told += f", tie {rule.tie:g}"
    console.print(Text(told))
    table = Table("response", "value", "mean", "votes", "", "text", box=box.SIMPLE)
    for key in sorted(case.responses, key=lambda key: _place(case, key)):
        found = case.candidates.get(key, {})
        figures = ["–" if (figure := found.get(name)) is None else f"{figure:g}" for name in ("value", "mean")]
        text = Text(_short(case.responses[key]["text"] or "", length))
        table.add_row(case.name(key), *figures, _votes(case, key), Text(_standing(case, key)), text)
    console.print(table)
    console.print(Text(verdict(case)))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m anamnesis.why", description="Why an instruction's response was picked, or why none was."
    )
    parser.add_argument("variant", help="one that rehearses what the committee answered")
    parser.add_argument("instruction_id", help="or its beginning; data/selected/<variant>.parquet has them")
    parser.add_argument("--full", action="store_true", help="whole texts, not their first 60 characters")
    told = parser.parse_args()
    params = settings.load()
    names = [name for name, variant in params.tuned_variants().items() if variant.rehearsal == "reconstructed"]
    if told.variant not in names:
        raise UserError(f"variant {told.variant!r} picks no responses; those that do: {', '.join(names) or 'none'}")
    case = case_of(params, told.variant, told.instruction_id)
    tell(case, Console(width=None if sys.stdout.isatty() else 160), None if told.full else 60)
    key, file = case.pick["instruction_id"], f"data/selected/{told.variant}.parquet"
    written = records.read_table(file, records.SELECTED, filters=pc.field("instruction_id") == key).to_pylist()
    if written != [case.pick]:
        print(f"{file} says otherwise: it is out of date; run `dvc repro select`")


if __name__ == "__main__":
    run(main)
