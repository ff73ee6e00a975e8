"""What else moves a vote or a pick: who wrote the response, how long it is, which judges sit on the panel.

In: `agreement.Scored`, and what panels pick (`winners`). Out: estimates by judge, pair of judges or member. Formulas:
docs/agreement.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from anamnesis import records, selection, sql
from anamnesis.agreement import RATINGS, Bootstrap, Estimate, Scored, divide
from anamnesis.selection import Rule
from anamnesis.stats import CONFIDENCE

BOTH = "the other judge wrote the other responses: only what both favour themselves by, added up, is known"
NO_PAIR = "no response has its vote and another one"


def self_preference(scored: Scored, judge: int, bootstrap: Bootstrap) -> Estimate:
    """By how many points a judge scores its own responses above what the other judges give the same responses.

    For another judge k: the mean of (its score - k's score) over its own responses, minus that mean over the responses
    that neither of them wrote, so that neither strictness nor k's own preference counts. Then the mean over all k.
    Where nobody else wrote any (two judges who are the two members) it is not defined, with the note `BOTH`:
    `self_preference_sum` is all that can be known.
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
    if not used:
        summed = any((own & there[:, k]).any() and (~own & there[:, k]).any() for k in others)
        return Estimate(None, note=BOTH if summed else NO_PAIR)
    columns = []
    for k in used:
        for side in (own, neutral[k]):
            here = side & there[:, k]
            columns += [np.where(here, gaps[:, k], 0.0), here.astype(float)]

    def preference(sums: np.ndarray) -> Any:
        parts = sums.reshape(*sums.shape[:-1], len(used), 4)
        return (divide(parts[..., 0], parts[..., 1]) - divide(parts[..., 2], parts[..., 3])).mean(axis=-1)

    n = int((own & there[:, used].any(axis=1)).sum())
    return bootstrap.estimate(preference, scored.sums(*columns), n, NO_PAIR)


def self_preference_sum(scored: Scored, one: int, two: int, bootstrap: Bootstrap) -> Estimate:
    """By how many points two judges together favour their own responses: whose preference it is can't be told.

    The mean of (score by one - score by two) over one's responses, minus that mean over two's.
    """
    gaps = scored.scores[:, one] - scored.scores[:, two]
    sides = [(scored.member == scored.judges[judge]) & np.isfinite(gaps) for judge in (one, two)]
    columns = [column for side in sides for column in (np.where(side, gaps, 0.0), side.astype(float))]
    return bootstrap.estimate(
        lambda sums: divide(sums[..., 0], sums[..., 1]) - divide(sums[..., 2], sums[..., 3]),
        scored.sums(*columns),
        int(sum(side.sum() for side in sides)),
        "one of them wrote no response that both scored",
    )


def own_minus_others(scored: Scored, judge: int, bootstrap: Bootstrap) -> Estimate:
    """The mean of (a judge's score - the mean of the others' scores) over its own responses: strictness counts too."""
    others = np.delete(scored.scores, judge, axis=1)
    votes = np.isfinite(others).sum(axis=1)
    gaps = scored.scores[:, judge] - divide(np.nansum(others, axis=1), votes)
    own = scored.member == scored.judges[judge]
    there = own & np.isfinite(gaps)
    return bootstrap.estimate(
        lambda sums: divide(sums[..., 0], sums[..., 1]),
        scored.sums(np.where(there, gaps, 0.0), there.astype(float)),
        int(there.sum()),
        NO_PAIR if own.any() else "it wrote no judged response",
    )


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


@dataclass(frozen=True)
class Winners:
    """What a panel of judges picks under one rule: row i of `picks` (`records.SELECTED`) is an instruction, by id."""

    picks: pa.Table
    candidates: pa.Table  # instruction_id and member of every response that could be picked

    def shares(self, member: str) -> np.ndarray:
        """The member's share of the candidates to each instruction, NaN where there is none."""
        ids = self.picks["instruction_id"]
        places = pc.index_in(self.candidates["instruction_id"], value_set=ids).to_numpy()
        ours = pc.equal(self.candidates["member"], member).to_numpy()
        return np.asarray(divide(np.bincount(places[ours], minlength=len(ids)), self.picks["candidates"].to_numpy()))


def winners(
    candidates: str, select: str, pool: pa.Table, responses: pa.Table, judgments: pa.Table, rule: Rule, seed: int
) -> dict[str, Winners]:
    """What `rule` picks with all of its judges (key "") and without each one (key: its name), as stage select does.

    `candidates` and `select` are the texts of that stage's statements. A panel without a judge picks nothing and has no
    key. Of the responses, only ids are in the picks.
    """
    texts = responses.schema.get_field_index("text")
    bare = responses.set_column(texts, "text", pa.nulls(responses.num_rows, pa.string()))  # most of the bytes
    found = {}
    for dropped in ("", *rule.judges):
        panel = replace(rule, judges=[judge for judge in rule.judges if judge != dropped])
        if not panel.judges:
            continue
        query = selection.candidates_query(candidates, panel)
        ranked = sql.run(query.text, {"responses": bare, "judgments": judgments}, query.parameters)
        picks = selection.select_variant(select, ranked, pool, bare, judgments, panel, seed)
        eligible = ranked.filter(pc.greater_equal(ranked["counted"], ranked["needed"]))
        eligible = eligible.filter(pc.is_in(eligible["instruction_id"], pool["instruction_id"]))
        found[dropped] = Winners(picks.sort_by("instruction_id"), eligible.select(["instruction_id", "member"]))
    return found


def flips(found: Mapping[str, Winners], judge: str) -> dict[str, Estimate]:
    """How often the winner is another without this judge, and how often a random one would be.

    Over the instructions that have a winner either way and more than one candidate.
    """
    if judge not in found:
        return dict.fromkeys(("flip", "flip_at_random"), Estimate(None, note="no judge is left without it"))
    picks, without = found[""].picks, found[judge].picks["response_id"]
    count = picks["candidates"].to_numpy()
    contested = pc.and_(picks["response_id"].is_valid(), without.is_valid()).to_numpy() & (count > 1)
    changed = pc.fill_null(pc.not_equal(picks["response_id"], without), False).to_numpy()[contested].sum()
    note = "no instruction with two candidates"
    chances = 1 - 1 / count[contested]
    at_random = Estimate(float(chances.mean()), n=len(chances)) if len(chances) else Estimate(None, note=note)
    return {"flip": share(int(changed), len(chances), note), "flip_at_random": at_random}


def wins(found: Mapping[str, Winners], member: str, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """A member's share of the committee's picks, its share of their candidates, and the difference."""
    picks = found[""].picks if found else records.SELECTED.empty_table()
    decided = picks["response_id"].is_valid().to_numpy()
    if not decided.any():
        return dict.fromkeys(
            ("win_share", "win_chance", "win_excess"), Estimate(None, note="no instruction was decided")
        )
    won = pc.equal(picks["member"], member).filter(decided).to_numpy().astype(float)
    chance = found[""].shares(member)[decided]
    excess = bootstrap.estimate(
        lambda sums: divide(sums[..., 0], sums[..., 1]),
        np.stack([won - chance, np.ones(len(won))], axis=1),
        len(won),
        "no instruction was decided",
        (-float(chance.mean()), 1 - float(chance.mean())),
    )
    return {
        "win_share": share(int(won.sum()), len(won), ""),
        "win_chance": Estimate(float(chance.mean()), n=len(won)),
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
