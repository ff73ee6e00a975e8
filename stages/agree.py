"""Agree: what the judges' scores are worth – their agreement, their preferences, their weight in the picks.

In: data/conversations.parquet, data/borrowed.parquet, data/responses/<member>.parquet, data/judgments/<judge>.parquet,
data/controls/<judge>.parquet.
Out: data/agreement.parquet, one row a figure, and the same numbers in metrics/judging.json.
Run: python -m stages.agree
"""

from itertools import combinations
from typing import Any

import pyarrow as pa

from anamnesis import agreement, controls, preferences, records, sql, trust
from anamnesis import params as settings
from anamnesis.agreement import Bootstrap, Estimate
from anamnesis.errors import run
from anamnesis.selection import Rule
from anamnesis.variants import THRESHOLDS, Select
from anamnesis.wording import rounded

KEY = ["about", "subject", "other", "figure"]
EVERY = 2**31 - 1  # samples of a member that may win: all of them


def _all(folder: str, keys: list[str], schema: pa.Schema) -> pa.Table:
    """The files of these keys as one table; files of judges or members that are no longer there are left alone."""
    tables = [records.read_table(f"{folder}/{key}.parquet", schema) for key in keys]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def rows_of(about: str, subject: str, other: str, found: dict[str, Estimate]) -> list[dict[str, Any]]:
    """Rows of `records.AGREEMENT`."""
    name = {"about": about, "subject": subject, "other": other}
    return [name | {"figure": figure} | rounded(vars(estimate)) for figure, estimate in found.items()]


def agree(
    responses: pa.Table,
    judgments: pa.Table,
    planted: pa.Table,
    instructions: pa.Table,
    *,
    members: list[str],
    judges: list[str],
    select: Select,
    bootstrap: Bootstrap,
) -> list[dict[str, Any]]:
    """Every figure, as rows of `records.AGREEMENT`; tables as in records.py, all members and judges together."""
    panel = {"judges": judges}
    parameters = panel | {"members": members}
    table = sql.run(
        sql.statement("stages/sql/agree_scores.sql"), {"responses": responses, "judgments": judgments}, parameters
    )
    scored = agreement.scored_of(table, judges)
    votes = sql.run(sql.statement("stages/sql/agree_votes.sql"), {"scored": table, "judgments": judgments}, panel)
    orders = sql.run(sql.statement("stages/sql/agree_orders.sql"), {"scored": table}, {})
    ids = table["instruction_id"].unique()
    winners = preferences.winners(
        sql.statement("stages/sql/candidates.sql"),
        sql.statement("stages/sql/select.sql"),
        pa.table({"instruction_id": ids, "instruction": ids, "held_out": [False] * len(ids)}),
        responses,
        judgments,
        Rule("mean", members, judges, EVERY, **{name: getattr(select, name) for name in THRESHOLDS}),
        bootstrap.seed,
    )

    rows = rows_of("alpha", "", "", agreement.alphas(scored, bootstrap))
    for i, judge in enumerate(judges):
        found = preferences.votes(votes, judge, scored) | preferences.flips(winners, judge)
        found["own_minus_others"] = preferences.own_minus_others(scored, i, bootstrap)
        found["self_preference"] = preferences.self_preference(scored, i, bootstrap)
        found["length_slope"] = preferences.length_slope(scored, i, bootstrap)
        rows += rows_of("judge", judge, "", found)
    summed = {row["subject"] for row in rows if row["note"] == preferences.BOTH}
    for one, two in combinations(range(len(judges)), 2):
        found = agreement.pair(scored, one, two, orders, bootstrap)
        if summed & {judges[one], judges[two]}:
            found["self_preference_sum"] = preferences.self_preference_sum(scored, one, two, bootstrap)
        rows += rows_of("pair", judges[one], judges[two], found)
    for member in members:
        rows += rows_of("member", member, "", preferences.wins(winners, member, bootstrap))
    return rows + control_rows(
        controls.auc_rows(judgments, planted, responses, instructions, bootstrap.resamples, bootstrap.seed)
    )


def control_rows(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `controls.auc_rows` found as rows of `records.AGREEMENT`; the note of an AUC is its sentence."""
    rows = []
    for row in found:
        estimates = {"auc": Estimate(row["auc"], row["low"], row["high"], row["n"], controls.sentence(row))}
        for name in ("length_auc", "overlap_auc"):
            estimates[name] = Estimate(row[name], n=row["n"], note=None if row["n"] else "no pair has both votes")
        rows += rows_of("control", row["judge"], row["kind"], estimates)
    return rows


def metrics_of(rows: list[dict[str, Any]]) -> dict[str, float | int]:
    """The rows as flat metrics; what is not defined has no key, since a metric is a number."""
    flat: dict[str, float | int] = {}
    for row in sorted(rows, key=lambda row: [row[column] for column in KEY]):
        name = ".".join(filter(None, (row[column] for column in KEY)))
        for key, value in ((name, row["value"]), (f"{name}.low", row["low"]), (f"{name}.high", row["high"])):
            if value is not None:
                flat[key] = value
    return flat


def main() -> None:
    params = settings.load()
    members, judges = params.members(), params.enabled_judges()
    responses = _all("data/responses", members, records.RESPONSES)
    judgments = _all("data/judgments", judges, records.JUDGMENTS)
    planted = _all("data/controls", judges, records.CONTROLS)
    asked = (
        records.read_table("data/conversations.parquet", records.CONVERSATIONS),
        records.read_table("data/borrowed.parquet", records.BORROWED),
    )
    instructions = pa.concat_tables(table.select(["instruction_id", "text"]) for table in asked)
    bootstrap = Bootstrap(params.report.bootstrap, params.seed)
    rows = agree(
        responses,
        judgments,
        planted,
        instructions,
        members=members,
        judges=judges,
        select=params.select,
        bootstrap=bootstrap,
    )
    records.write("data/agreement.parquet", rows, records.AGREEMENT, KEY)
    records.write_metrics("metrics/judging.json", metrics_of(rows))
    print(f"agree: {len(judges)} judges, {judgments.num_rows} votes asked for")
    print(*trust.summary(rows, judges, members), sep="\n")


if __name__ == "__main__":
    run(main)
