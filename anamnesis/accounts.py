"""The account of a run, counted from its rows: what the page, the Markdown, the terminal and summary.json all tell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from anamnesis import flat as flat_numbers
from anamnesis import results, tallies, wording
from anamnesis.likeness import Likeness
from anamnesis.params import Params
from anamnesis.results import Results
from anamnesis.tables import Model
from anamnesis.trust import Trust, trust

EXAMPLES = 6

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Answer:
    """One response of an example; `scores` by judge, None for a missing vote."""

    member: str
    number: int
    status: str
    reason: str
    text: str
    scores: dict[str, float | None]
    mean: float | None
    picked: bool


@dataclass(frozen=True)
class Example:
    instruction: str
    type: str | None  # None for one that stage distribution did not draw
    answers: list[Answer]


@dataclass(frozen=True)
class Account:
    """Everything the report shows, counted and compared."""

    found: Results
    funnel: tallies.Funnel
    lengths: list[int]
    likeness: Likeness
    members: list[tallies.MemberTally]
    member_drops: dict[str, list[tallies.Drop]]
    judges: list[tallies.JudgeTally]
    trust: Trust
    contests: list[tallies.Contest]
    select_drops: dict[str, list[tallies.Drop]]
    ways: list[tallies.Way]
    domain_drops: list[tallies.Drop]
    parts: dict[str, list[tallies.Part]]
    curves: dict[str, list[tuple[int, float]]]
    shown_variant: str | None  # whose picks the examples mark
    examples: list[Example]


def reference_of(params: Params) -> str | None:
    """The first variant that rehearses nothing, of those tuned in full where there are some: the others' reference."""
    alone = [name for name, variant in params.variants.items() if variant.rehearsal == "none"]
    return min(alone, key=lambda name: params.variants[name].tuning.method != "full", default=None)


PAPER_TARGET = "llama-3-70b-instruct"  # a part of every address of it: Meta-Llama-3-70B-Instruct
PAPER_INSTRUCTIONS = 100_000


def is_paper_size(params: Params) -> bool:
    """Whether target, instructions and items are the paper's, so that its numbers may stand beside ours."""
    target = params.models[params.target]
    named = [target.uri] if isinstance(target.uri, str) else [*(target.uri or []), target.model or ""]
    known = any(PAPER_TARGET in name.lower() for name in named)
    return known and params.probe.instructions >= PAPER_INSTRUCTIONS and params.evaluate.items is None


def models_of(params: Params) -> list[Model]:
    """What each model of the report is and how its row is called, base first."""
    found = []
    tuned = params.tuned_variants()
    for name in params.evaluated():
        told = params.label(name)
        model = Model(name, "base", told.label or name, told.stands_for, told.paper)
        if name in tuned:
            variant = tuned[name]
            model = replace(
                model,
                kind="variant",
                rehearsal=variant.rehearsal,
                tuning=variant.tuning.method,
                members=tuple(variant.members),
                seeds=(params.seed, *(seed for of, seed in params.reseeded() if of == name)),
                init=params.continued[name].init if name in params.continued else None,
            )
        elif name in params.interpolations:
            between = params.interpolations[name]
            model = replace(model, kind="interpolation", variant=between.variant, alpha=between.alpha)
        found.append(model)
    return found


def taking_part(params: Params, variant: str) -> list[str]:
    """The members whose responses one variant picks from: named by it and enabled."""
    return [member for member in params.tuned_variants()[variant].members if member in params.members()]


def account(
    params: Params,
    *,
    instructions: Rows,
    responses: Mapping[str, Rows],
    judgments: Mapping[str, Rows],
    selected: Mapping[str, Rows],
    cleaned: Mapping[str, Rows],
    domain: Rows,
    mixed: Mapping[str, Rows],
    samples: Mapping[str, results.Samples],
    reseeded: Mapping[tuple[str, int], results.Samples] | None = None,
    curves: Mapping[str, Sequence[tuple[int, float]]],
    agreement: Rows,
    likeness: Likeness,
    types: Mapping[str, str],
) -> Account:
    """Count and compare. Rows are those of records.py by member, judge or variant.

    `samples` has `base` and the interpolations as well, `reseeded` the variants that were trained with further seeds,
    by variant and seed; `cleaned` has the variants that rehearse, `selected` those of them with picks; `domain` are the
    cleaned domain rows; `types` are the instructions' types by id.

    Raises `UserError` where two models did not answer the same items.
    """
    variants = params.tuned_variants()
    kept = [row for row in instructions if row["status"] == "ok"]
    shown = max(selected, key=lambda name: len(taking_part(params, name)), default=None)
    contests = [
        tallies.contest(name, rows, responses, taking_part(params, name), variants[name].samples)
        for name, rows in selected.items()
    ]
    ways = [
        tallies.way(
            name,
            rows,
            mixed[name],
            instructions=() if variants[name].borrowed else instructions,
            selected=selected.get(name),
            responses={key: rows for key, rows in responses.items() if key in variants[name].members},
            judgments={key: rows for key, rows in judgments.items() if key in variants[name].judges},
            samples=variants[name].samples,
        )
        for name, rows in cleaned.items()
    ]
    return Account(
        found=results.results(
            samples,
            reference_of(params),
            params.report.bootstrap,
            params.seed,
            reseeded=reseeded,
            models=models_of(params),
            paper_size=is_paper_size(params),
        ),
        funnel=tallies.funnel(instructions),
        lengths=[row["tokens"] for row in kept if row["tokens"] is not None],
        likeness=likeness,
        members=tallies.members(responses),
        member_drops={member: tallies.drops(rows) for member, rows in responses.items()},
        judges=tallies.judges(judgments, responses),
        trust=trust(agreement, params.enabled_judges(), params.members()),
        contests=contests,
        select_drops={name: tallies.drops(rows) for name, rows in selected.items()},
        ways=ways,
        domain_drops=tallies.clean_drops(domain),
        parts={name: tallies.composition(rows) for name, rows in mixed.items()},
        curves={name: list(points) for name, points in curves.items()},
        shown_variant=shown,
        examples=[]
        if shown is None
        else _examples(params.seed, selected[shown], responses, judgments, variants[shown].judges, types),
    )


def _examples(
    seed: int,
    selected: Rows,
    responses: Mapping[str, Rows],
    judgments: Mapping[str, Rows],
    judges: Sequence[str],
    types: Mapping[str, str],
) -> list[Example]:
    """A seeded handful of picked instructions with every response and its scores; `judges` are those of the mean."""
    picks = {row["instruction_id"]: row for row in selected if row["status"] == "ok"}
    votes = {judge: {row["response_id"]: row["score"] for row in rows} for judge, rows in judgments.items()}
    keys = tallies.example_ids(picks, EXAMPLES, seed)
    answers: dict[str, list[Answer]] = {key: [] for key in keys}
    for rows in responses.values():
        shown = (row for row in rows if row["instruction_id"] in answers)
        for row in sorted(shown, key=lambda row: (row["instruction_id"], row["sample_index"])):
            scores = {judge: by_id.get(row["response_id"]) for judge, by_id in votes.items()}
            given = [score for judge, score in scores.items() if judge in judges and score is not None]
            answers[row["instruction_id"]].append(
                Answer(
                    member=row["member"],
                    number=row["sample_index"] + 1,
                    status=row["status"],
                    reason=wording.plain(row["reason"] or ""),
                    text=row["text"] or "",
                    scores=scores,
                    mean=fmean(given) if given else None,
                    picked=row["response_id"] == picks[row["instruction_id"]]["response_id"],
                )
            )
    texts = {key: picks[key]["instruction"] for key in keys}
    return [Example(texts[key], types.get(key), answers[key]) for key in keys]


def summary(account: Account) -> dict[str, float | int]:
    """The flat numbers of metrics/summary.json: comparisons first, then counts, rounded to six digits."""
    funnel = account.funnel
    flat: dict[str, float | int | None] = {
        "probe.asked": funnel.asked,
        "probe.failed": funnel.failed,
        "probe.passed": funnel.passed,
        "probe.kept": funnel.kept,
        "probe.pass_share": funnel.pass_share,
    }
    for member in account.members:
        flat |= {f"respond.{member.member}.{status}": count for status, count in member.statuses.items()}
        flat[f"respond.{member.member}.mean_tokens"] = member.mean_tokens
    for judge in account.judges:
        flat[f"judge.{judge.judge}.scored"] = judge.scored
        flat[f"judge.{judge.judge}.missing"] = judge.missing
        flat[f"judge.{judge.judge}.mean"] = judge.mean
    for contest in account.contests:
        flat[f"select.{contest.variant}.picks"] = contest.picks
        for win in contest.wins:
            flat[f"select.{contest.variant}.wins.{win.member}"] = win.picks
            flat[f"select.{contest.variant}.chance.{win.member}"] = win.chance
    for way in account.ways:
        flat |= {f"funnel.{way.variant}.{step}": count for step, count in way.left.items()}
    for variant, parts in account.parts.items():
        flat[f"mix.{variant}.rows"] = sum(part.rows for part in parts)
        flat[f"mix.{variant}.tokens"] = sum(part.tokens for part in parts)
    for variant, points in account.curves.items():
        flat[f"train.{variant}.steps"] = len(points)
        if points:
            flat[f"train.{variant}.last_loss"] = points[-1][1]
    known = {key: value for key, value in flat.items() if value is not None}
    return flat_numbers.summary(account.found) | wording.rounded(known)
