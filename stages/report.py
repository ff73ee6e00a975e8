"""Report: the table and the page that say what was learnt and what was forgotten.

In: every row of the pipeline (data/…), the training curves (metrics/train/<variant>.csv) and metrics/distribution.json,
by the keys of params.yaml.
Out: report.html, report.md, metrics/summary.json and, for `dvc plots`, metrics/frontier.csv, scores.csv, tasks.csv
and types.csv.
Run: python -m stages.report
"""

import csv
import json
import math

from anamnesis import accounts, flat, likeness, page, plaintext, records
from anamnesis import params as settings
from anamnesis.errors import UserError, run
from anamnesis.params import Params


def read(params: Params) -> accounts.Account:
    """Read what the report is about, by the keys of params: a file of a member or variant that is gone stays unread."""
    responses = {
        member: records.read(f"data/responses/{member}.parquet", records.RESPONSES) for member in params.members()
    }
    judgments = {
        judge: records.read(f"data/judgments/{judge}.parquet", records.JUDGMENTS) for judge in params.enabled_judges()
    }
    selected = {
        variant: records.read(f"data/selected/{variant}.parquet", records.SELECTED)
        for variant, setting in params.tuned_variants().items()
        if setting.rehearsal == "reconstructed"
    }
    return accounts.account(
        params,
        instructions=records.read("data/instructions.parquet", records.INSTRUCTIONS),
        responses=responses,
        judgments=judgments,
        selected=selected,
        cleaned={
            name: records.read(f"data/cleaned/{name}.parquet", records.CLEANED)
            for name, variant in params.tuned_variants().items()
            if variant.rehearsal != "none"
        },
        domain=records.read("data/domain/cleaned.parquet", records.CLEANED),
        mixed={name: records.read(f"data/mixed/{name}.parquet", records.MIXED) for name in params.tuned_variants()},
        samples={name: records.read(f"data/samples/{name}.parquet", records.SAMPLES) for name in params.evaluated()},
        reseeded={
            (variant, seed): records.read(f"data/reseeded/{variant}-{seed}.parquet", records.SAMPLES)
            for variant, seed in params.reseeded()
        },
        agreement=records.read("data/agreement.parquet", records.AGREEMENT),
        curves={name: read_curve(f"metrics/train/{name}.csv") for name in params.tuned_variants()},
        likeness=read_likeness("metrics/distribution.json"),
        types={
            row["instruction_id"]: row["type"]
            for row in records.read("data/distribution.parquet", records.DISTRIBUTION)
            if row["source"] == likeness.RECONSTRUCTED
        },
    )


def read_likeness(path: str) -> likeness.Likeness:
    """What stage distribution found. Raises `UserError` where the file is missing or not what it writes."""
    try:
        with open(path, encoding="utf-8") as file:
            return likeness.read(json.load(file))
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro`") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: not what stage distribution writes ({error!r}); run `dvc repro`") from None


def read_curve(path: str) -> list[tuple[int, float]]:
    """Steps and losses of one training run. Raises `UserError` where the file is missing or not what train writes."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            points = [(int(line["step"]), float(line["loss"])) for line in csv.DictReader(file)]
    except FileNotFoundError:
        raise UserError(f"{path}: not found; run `dvc repro`") from None
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not a training curve ({error!r}); delete it and run `dvc repro`") from None
    return [point for point in points if math.isfinite(point[1])]


def show(account: accounts.Account) -> None:
    """Print the result table, in the terminal's width or in 120 columns where there is no terminal."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=plaintext.TERMINAL_WIDTH)
    console.print(plaintext.terminal(account.found))


def main() -> None:
    params = settings.load()
    account = read(params)
    records.write_metrics("metrics/summary.json", accounts.summary(account))
    found = account.found
    records.write_text("metrics/frontier.csv", flat.csv_text(flat.FRONTIER, flat.frontier_lines(found)))
    records.write_text("metrics/scores.csv", flat.csv_text(flat.SCORES, flat.score_lines(found)))
    records.write_text("metrics/tasks.csv", flat.csv_text(flat.TASKS, flat.task_lines(found)))
    records.write_text("metrics/types.csv", flat.csv_text(likeness.TYPES, likeness.type_lines(account.likeness)))
    records.write_text("report.md", plaintext.markdown(account))
    records.write_text("report.html", page.html(account, params))
    show(account)


if __name__ == "__main__":
    run(main)
