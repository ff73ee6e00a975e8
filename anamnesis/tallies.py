"""Counts over the pipeline's rows for the report: what was probed, answered, scored, picked and trained on.

Pure functions from rows (dicts of the schemas in records.py) to small tables. Every share is of the rows named in its
docstring; a share of nothing is None, never 0.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from anamnesis.records import STATUSES, digest

Rows = Sequence[Mapping[str, Any]]

SURPLUS = "surplus"  # a probed sample that passed every filter when enough were there already
NO_REASON = "no reason given"
STEPS = ("probed", "unique", "answered", "judged", "kept", "clean", "mixed")


@dataclass(frozen=True)
class Drop:
    """Rows that did not pass, with one status and reason."""

    status: str
    reason: str
    count: int


@dataclass(frozen=True)
class Funnel:
    """From samples asked for to samples kept; `pass_share` is of the answered ones."""

    asked: int
    failed: int
    passed: int  # kept and surplus
    kept: int
    pass_share: float | None
    drops: list[Drop]


@dataclass(frozen=True)
class MemberTally:
    member: str
    statuses: dict[str, int]
    total: int
    mean_tokens: float | None  # of complete responses


@dataclass(frozen=True)
class JudgeTally:
    """One judge's votes over the responses it was asked about: complete, and not to a held-out instruction."""

    judge: str
    asked: int
    scored: int
    missing: int
    rungs: dict[str, int]
    scores: list[float]
    mean: float | None
    length_correlation: float | None  # Spearman's, of score and response tokens
    by_member: dict[str, float | None]  # mean score


@dataclass(frozen=True)
class Win:
    """How often one member's response was picked, against a pick at random among the same candidates."""

    member: str
    picks: int
    share: float
    low: float
    high: float
    chance: float


@dataclass(frozen=True)
class Contest:
    """The picks of one variant."""

    variant: str
    picks: int
    wins: list[Win]
    picked_tokens: float | None
    candidate_tokens: float | None


@dataclass(frozen=True)
class Way:
    """How many instructions of a variant are left after each of `STEPS`; None for a step it didn't take."""

    variant: str
    left: dict[str, int | None]
    drops: list[Drop]  # at step clean


@dataclass(frozen=True)
class Part:
    """The rows of a training set that come from one source and, for rehearsal, one member."""

    source: str
    member: str | None
    rows: int
    tokens: int
    row_share: float
    token_share: float | None


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return fmean(found) if found else None


def status_counts(rows: Rows) -> dict[str, int]:
    """Rows by status, every known status named, unknown ones after them."""
    counts = Counter(row["status"] for row in rows)
    return {status: counts[status] for status in (*STATUSES, *sorted(set(counts) - set(STATUSES)))}


def drops(rows: Rows) -> list[Drop]:
    """The rows that are not `ok` by status and reason, most frequent first."""
    counts = Counter((row["status"], row["reason"] or NO_REASON) for row in rows if row["status"] != "ok")
    return [Drop(*key, count) for key, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))]


def funnel(instructions: Rows) -> Funnel:
    """How the probed samples passed. Failed requests say nothing about the model and don't count against it."""
    failed = sum(row["status"] == "failed" for row in instructions)
    kept = sum(row["status"] == "ok" for row in instructions)
    passed = kept + sum(row["reason"] == SURPLUS for row in instructions)
    answered = len(instructions) - failed
    share = passed / answered if answered else None
    return Funnel(len(instructions), failed, passed, kept, share, drops(instructions))


def members(responses: Mapping[str, Rows]) -> list[MemberTally]:
    """Responses by member and status, in the order given."""
    return [
        MemberTally(
            member,
            status_counts(rows),
            len(rows),
            _mean(row["tokens"] for row in rows if row["status"] == "ok" and row["tokens"] is not None),
        )
        for member, rows in responses.items()
    ]


def complete(responses: Mapping[str, Rows]) -> dict[str, Mapping[str, Any]]:
    """The `ok` responses of all members by their id."""
    return {row["response_id"]: row for rows in responses.values() for row in rows if row["status"] == "ok"}


def _rank_correlation(x: list[float], y: list[float]) -> float | None:
    """Spearman's rank correlation; None where one side does not vary."""
    if len(set(x)) < 2 or len(set(y)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(x, y).statistic)


def judges(judgments: Mapping[str, Rows], responses: Mapping[str, Rows]) -> list[JudgeTally]:
    """Votes by judge: stage judge wrote a row for each response it was to score, NULL where the vote is missing.

    A judgment of a response that isn't there any more is not counted.
    """
    answers = complete(responses)
    found = []
    for judge, rows in judgments.items():
        rows_of = {row["response_id"]: row for row in rows if row["response_id"] in answers}
        votes = {key: row["score"] for key, row in rows_of.items() if row["score"] is not None}
        rungs = Counter(rows_of[key]["parse"] or "unnamed" for key in votes)
        timed = [(votes[key], answers[key]["tokens"]) for key in sorted(votes) if answers[key]["tokens"] is not None]
        found.append(
            JudgeTally(
                judge=judge,
                asked=len(rows_of),
                scored=len(votes),
                missing=len(rows_of) - len(votes),
                rungs=dict(sorted(rungs.items(), key=lambda item: (-item[1], item[0]))),
                scores=[votes[key] for key in sorted(votes)],
                mean=_mean(votes.values()),
                length_correlation=_rank_correlation([score for score, _ in timed], [length for _, length in timed]),
                by_member={
                    member: _mean(votes[key] for key in votes if answers[key]["member"] == member)
                    for member in responses
                },
            )
        )
    return found


def contest(
    variant: str, selected: Rows, responses: Mapping[str, Rows], taking_part: Sequence[str], samples: int
) -> Contest:
    """Who wrote the picks of one variant, against chance.

    Chance is the mean over the picked instructions of a member's share among the complete responses that could have
    been picked; the interval is Wilson's 95 % interval of the observed share.
    """
    from scipy.stats import binomtest

    candidates: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in complete({member: responses.get(member, []) for member in taking_part}).values():
        if row["sample_index"] < samples:
            candidates[row["instruction_id"]].append(row)
    by_id = {row["response_id"]: row for rows in candidates.values() for row in rows}
    picks = [row for row in selected if row["status"] == "ok" and row["response_id"] in by_id]
    wins = []
    for member in taking_part if picks else []:
        won = sum(row["member"] == member for row in picks)
        among = [candidates[row["instruction_id"]] for row in picks]
        chance = fmean(sum(row["member"] == member for row in rows) / len(rows) for rows in among)
        interval = binomtest(won, len(picks)).proportion_ci(0.95, method="wilson")
        wins.append(Win(member, won, won / len(picks), float(interval.low), float(interval.high), chance))
    lengths = [by_id[row["response_id"]]["tokens"] for row in picks]
    of_candidates = [
        fmean(row["tokens"] or 0 for row in candidates[row["instruction_id"]]) for row in picks
    ]  # one mean an instruction, so that both columns weigh instructions alike
    return Contest(variant, len(picks), wins, _mean(tokens or 0 for tokens in lengths), _mean(of_candidates))


def way(
    variant: str,
    cleaned: Rows,
    mixed: Rows,
    *,
    instructions: Rows = (),
    selected: Rows | None = None,
    responses: Mapping[str, Rows],
    judgments: Mapping[str, Rows],
    samples: int,
) -> Way:
    """One variant's rows from probe to training set; `selected` None: its rows come from elsewhere.

    `instructions` are the probed ones; none where those of a rehearsal source were answered.
    `responses` and `judgments` are those of the variant's own members and judges. Held-out instructions are not counted
    as answered. A variant without judges has no step `judged`.
    """
    left: dict[str, int | None] = dict.fromkeys(STEPS)
    if selected is not None:
        ours = {row["instruction_id"] for row in selected if row["reason"] != "held out"}
        answers = {
            row["response_id"]: row["instruction_id"]
            for row in complete(responses).values()
            if row["instruction_id"] in ours and row["sample_index"] < samples
        }
        votes = (row["response_id"] for rows in judgments.values() for row in rows if row["score"] is not None)
        left |= {
            "probed": len(instructions) or None,
            "unique": sum(row["status"] == "ok" for row in instructions) if instructions else None,
            "answered": len(set(answers.values())),
            "judged": len({answers[vote] for vote in votes if vote in answers}) if judgments else None,
        }
    left |= {
        "kept": len(cleaned),
        "clean": sum(row["status"] == "ok" for row in cleaned),
        "mixed": sum(row["source"].partition(":")[0] != "domain" for row in mixed),
    }
    return Way(variant, left, clean_drops(cleaned))


def clean_drops(cleaned: Rows) -> list[Drop]:
    """Rows that cleaning took out, by reason; the near-duplicate's other row and the refusal's turn are left out."""
    return drops([{**row, "reason": re.split(r" (?:of|in) ", row["reason"] or "")[0]} for row in cleaned])


def composition(mixed: Rows) -> list[Part]:
    """A training set by source and member, the domain first."""
    groups: dict[tuple[str, str | None], list[int]] = defaultdict(list)
    for row in mixed:
        groups[row["source"], row["member"]].append(row["tokens"] or 0)
    rows, tokens = len(mixed), sum(map(sum, groups.values()))
    order = sorted(groups, key=lambda key: (key[0].partition(":")[0] != "domain", key[0], key[1] or ""))
    return [
        Part(
            *key,
            len(groups[key]),
            sum(groups[key]),
            len(groups[key]) / rows,
            sum(groups[key]) / tokens if tokens else None,
        )
        for key in order
    ]


def example_ids(instruction_ids: Iterable[str], count: int, seed: int) -> list[str]:
    """`count` instructions in an order that depends on the seed and each id only."""
    return sorted(set(instruction_ids), key=lambda key: (digest("example", seed, key), key))[:count]
