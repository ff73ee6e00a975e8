"""What else moves a vote or a pick: who wrote the response, how long it is, which judges sit on the panel.

In: `agreement.Scored` and the winners that stages/sql/agree_winners.sql found. Out: estimates by judge or member.
Formulas: docs/agreement.md.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from anamnesis.agreement import RATINGS, Bootstrap, Estimate, Scored, divide
from anamnesis.stats import CONFIDENCE

BOTH = "the other judge is the other author: this is the preference of both, added up"


def self_preference(scored: Scored, judge: int, bootstrap: Bootstrap) -> Estimate:
    """By how many points a judge scores its own responses above what the other judges give the same responses.

    For another judge k: the mean of (its score - k's score) over its own responses, minus that mean over the responses
    that neither of them wrote, so that neither strictness nor k's own preference counts. Then the mean over all k.
    Where nobody else wrote any (two judges who are the two members) the second mean is over k's responses: the two
    preferences can't be told apart, and the note says so.
    """
    name = scored.judges[judge]
    own = scored.member == name
    others = [k for k in range(len(scored.judges)) if k != judge]
    if not own.any():
        return Estimate(None, note="it wrote no judged response")
    if not others:
        return Estimate(None, note="there is no other judge")
    if own.all():
        return Estimate(None, note="it wrote every response")
    gaps = scored.scores[:, [judge]] - scored.scores
    there = np.isfinite(gaps)
    neutral = {k: ~own & (scored.member != scored.judges[k]) for k in others}
    used = [k for k in others if (own & there[:, k]).any() and (neutral[k] & there[:, k]).any()]
    note = None
    if not used:
        neutral = dict.fromkeys(others, ~own)
        used = [k for k in others if (own & there[:, k]).any() and (neutral[k] & there[:, k]).any()]
        note = BOTH
    if not used:
        return Estimate(None, note="no response has its vote and another one")
    columns = []
    for k in used:
        for side in (own, neutral[k]):
            here = side & there[:, k]
            columns += [np.where(here, gaps[:, k], 0.0), here.astype(float)]

    def preference(sums: np.ndarray) -> Any:
        parts = sums.reshape(*sums.shape[:-1], len(used), 4)
        return (divide(parts[..., 0], parts[..., 1]) - divide(parts[..., 2], parts[..., 3])).mean(axis=-1)

    n = int((own & there[:, used].any(axis=1)).sum())
    found = bootstrap.estimate(preference, scored.sums(*columns), n, "no response has its vote and another one")
    return Estimate(found.value, found.low, found.high, found.n, note)


def length_slope(scored: Scored, judge: int, bootstrap: Bootstrap) -> Estimate:
    """Points more for a response twice as long, among responses to one instruction.

    The least-squares slope of the score on log2 of the characters, with one intercept an instruction.
    """
    scores = scored.scores[:, judge]
    there = np.isfinite(scores)
    lengths = np.log2(np.maximum(scored.characters, 1))
    sums = scored.sums(np.ones(len(scores)), lengths, scores, where=there)
    means = divide(sums[:, 1:], sums[:, :1])[scored.instruction]
    x, y = lengths - means[:, 0], scores - means[:, 1]
    return bootstrap.estimate(
        lambda found: divide(found[..., 0], found[..., 1]),
        scored.sums(x * y, x * x, where=there),
        int(there.sum()),
        "no two voted responses of different length to one instruction",
    )


def share(count: int, total: int, note: str) -> Estimate:
    """A share with Wilson's interval."""
    if not total:
        return Estimate(None, note=note)
    from scipy.stats import binomtest

    found = binomtest(count, total).proportion_ci(CONFIDENCE, method="wilson")
    return Estimate(count / total, float(found.low), float(found.high), total)


def flips(winners: Sequence[dict[str, Any]], judge: str, judges: Sequence[str]) -> dict[str, Estimate]:
    """How often the winner by rule `mean` is another without this judge, and how often a random one would be.

    Over the instructions that have a winner either way and more than one candidate.
    """
    with_all = {row["instruction_id"]: row for row in winners if row["dropped"] == ""}
    without = {row["instruction_id"]: row["response_id"] for row in winners if row["dropped"] == judge}
    contested = [key for key in sorted(without) if key in with_all and len(with_all[key]["candidates"]) > 1]
    changed = sum(without[key] != with_all[key]["response_id"] for key in contested)
    note = "no instruction with two candidates" if len(judges) > 1 else "no judge is left without it"
    chances = [1 - 1 / len(with_all[key]["candidates"]) for key in contested]
    at_random = Estimate(float(np.mean(chances)), n=len(chances)) if chances else Estimate(None, note=note)
    return {"flip": share(changed, len(contested), note), "flip_at_random": at_random}


def wins(winners: Sequence[dict[str, Any]], member: str, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """A member's share of the committee's picks, its share of their candidates, and the difference.

    `winners` are those by rule `mean` over all judges and members.
    """
    rows = [row for row in winners if row["dropped"] == ""]
    if not rows:
        return dict.fromkeys(
            ("win_share", "win_chance", "win_excess"), Estimate(None, note="no instruction was decided")
        )
    won = np.array([float(row["member"] == member) for row in rows])
    chance = np.array([row["candidates"].count(member) / len(row["candidates"]) for row in rows])
    excess = bootstrap.estimate(
        lambda sums: divide(sums[..., 0], sums[..., 1]),
        np.stack([won - chance, np.ones(len(rows))], axis=1),
        len(rows),
        "no instruction was decided",
    )
    return {
        "win_share": share(int(won.sum()), len(rows), ""),
        "win_chance": Estimate(float(chance.mean()), n=len(rows)),
        "win_excess": excess,
    }


def votes(counts: pa.Table, judge: str, scored: Scored) -> dict[str, Estimate]:
    """One judge's votes: how many, how read, which ratings; `counts` is the table of stages/sql/agree_votes.sql."""
    rows = [row for row in counts.to_pylist() if row["judge"] == judge]
    asked = sum(row["votes"] for row in rows)
    given = sum(row["votes"] for row in rows if row["rating"])
    scores = scored.scores[:, scored.judges.index(judge)]
    scores = scores[np.isfinite(scores)]
    found = {
        "asked": Estimate(asked, n=asked),
        "missing": Estimate(asked - given, n=asked),
        "parse_rate": share(given, asked, "it was asked about no response"),
    }
    for rung in sorted({row["parse"] for row in rows if row["rating"]}):
        read = sum(row["votes"] for row in rows if row["parse"] == rung and row["rating"])
        found[f"rung.{rung}"] = Estimate(read, n=asked)
    for rating in RATINGS:
        found[f"rating.{rating}"] = Estimate(sum(row["votes"] for row in rows if row["rating"] == rating), n=given)
    none = Estimate(None, note="no votes")
    return found | {
        "mean": Estimate(float(scores.mean()), n=given) if given else none,
        "spread": Estimate(float(scores.std()), n=given) if given else none,
    }
