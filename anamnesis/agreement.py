"""Do the judges' scores mean anything? Their agreement, their self-preference, their taste for length, their weight.

In: the complete responses with every judge's score (stages/sql/agree_scores.sql) and what SQL counts over them. Out:
rows of `records.AGREEMENT`, one a figure, with its interval and, where it is not defined, the reason.

Every figure is a function of sums over instructions, so that the bootstrap resamples instructions, whole ones with all
their responses, and adds up. Formulas: docs/agreement.md.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from anamnesis.controls import room
from anamnesis.records import seed_of
from anamnesis.stats import CONFIDENCE, MIN_ITEMS

RATINGS = (1, 2, 3, 4, 5)
DEFINED = 0.9  # share of resamples in which a figure must be defined for an interval
BLOCKS = 2000  # more instructions than these are drawn in so many blocks: as good an interval, and the cost stays
RANKED = 20_000_000  # responses ranked for one rank correlation, over all its resamples
LEAST_RESAMPLES = 200  # and not fewer resamples than these
TINY = 1e-9  # a spread below this is rounding, not variance

Statistic = Callable[[np.ndarray], Any]
Range = tuple[float, float]  # what a figure can be at the least and at the most
CORRELATION: Range = (-1.0, 1.0)
SHARE: Range = (0.0, 1.0)


@dataclass(frozen=True)
class Scored:
    """Responses with their scores: row i is a response, `scores[i, j]` what judge j gave it, NaN for a missing vote."""

    instruction: np.ndarray  # (responses,) from 0 on, ascending
    member: np.ndarray  # (responses,) names
    characters: np.ndarray  # (responses,)
    scores: np.ndarray  # (responses, judges)
    judges: list[str]
    ids: list[str]  # of the instructions

    def sums(self, *columns: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
        """Sums of columns by instruction, (instructions, columns); rows outside `where` count as 0."""
        kept = np.ones(len(self.instruction), bool) if where is None else where
        groups = self.instruction[kept]
        found = [np.bincount(groups, np.broadcast_to(column, kept.shape)[kept], len(self.ids)) for column in columns]
        return np.stack(found, axis=1)

    def places(self, ids: pa.ChunkedArray) -> np.ndarray:
        """Where instructions stand among `ids`, all of which are known."""
        return np.searchsorted(self.ids, ids.to_numpy(zero_copy_only=False).astype(str))


@dataclass(frozen=True)
class Estimate:
    """A figure and its 95 % interval; `n` is what it was made from, `note` why a value is missing or how to read it."""

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    note: str | None = None


@dataclass(frozen=True)
class Bootstrap:
    resamples: int
    seed: int

    def weights(self, count: int, resamples: int | None = None) -> Iterator[np.ndarray]:
        """For each resample, how often each of `count` instructions was drawn: the same for every figure of `count`."""
        rng = np.random.default_rng(seed_of("agree", self.seed))
        for _ in range(resamples or self.resamples):
            yield np.bincount(rng.integers(0, count, count), minlength=count).astype(float)

    def estimate(
        self, statistic: Statistic, sums: np.ndarray, n: int, undefined: str, limits: Range | None = None
    ) -> Estimate:
        """`statistic` of the column sums, with the interval over resampled instructions (rows of `sums`).

        `statistic` takes (..., columns) and gives NaN where it is not defined; `undefined` is then the note. Fewer
        than MIN_ITEMS instructions give no interval. `limits`: as in `interval`.
        """
        value = float(statistic(sums.sum(axis=0)))
        if not np.isfinite(value):
            return Estimate(None, n=n, note=undefined)
        count = int(sums.any(axis=1).sum())
        if count < MIN_ITEMS:
            return Estimate(value, n=n)
        blocks = np.zeros((min(len(sums), BLOCKS), sums.shape[1]))
        np.add.at(blocks, np.arange(len(sums)) % BLOCKS, sums)  # ids are hashes, so their order means nothing
        draws = np.stack([weights @ blocks for weights in self.weights(len(blocks))])
        low, high = interval(statistic(draws), count, limits)
        return Estimate(value, low, high, n)


def interval(draws: np.ndarray, count: int, limits: Range | None = None) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of the resamples in which a figure of `count` instructions is defined.

    None where it is defined in too few. Where all agree, a share of the instructions below `room` may yet be otherwise:
    the interval reaches that far towards the `limits` of the figure, and is None for a figure that has none. Nor does
    any other interval end nearer to a limit than that: instructions that nearly agree say no more than those that do.
    """
    known = draws[np.isfinite(draws)]
    if len(known) < max(2, DEFINED * len(draws)):
        return None, None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    alike = np.ptp(known) < TINY
    if limits is None:
        return (None, None) if alike else (float(low), float(high))
    least, most = limits
    unseen = room(count)
    nearest_low, nearest_high = (known[0], known[0]) if alike else (most, least)
    low = min(low, nearest_low + unseen * (least - nearest_low))
    high = max(high, nearest_high + unseen * (most - nearest_high))
    return float(low), float(high)


def divide(above: Any, below: Any) -> Any:
    """above / below, NaN where `below` is hardly more than nothing."""
    above, below = np.asarray(above, float), np.asarray(below, float)
    return np.divide(above, below, out=np.full(np.broadcast(above, below).shape, np.nan), where=np.abs(below) > TINY)


def scored_of(table: pa.Table, judges: Sequence[str]) -> Scored:
    """The table of stages/sql/agree_scores.sql as arrays; its rows are ordered by instruction."""
    names = table["instruction_id"].to_numpy(zero_copy_only=False).astype(str)
    ids, instruction = np.unique(names, return_inverse=True)
    scores = table["scores"].combine_chunks().flatten().to_numpy(zero_copy_only=False).astype(float)
    return Scored(
        instruction=instruction,
        member=table["member"].to_numpy(zero_copy_only=False).astype(str),
        characters=table["characters"].to_numpy(zero_copy_only=False).astype(float),
        scores=scores.reshape(len(names), len(judges)),
        judges=list(judges),
        ids=list(ids),
    )


def ratings(scores: np.ndarray) -> np.ndarray:
    """Scores as whole ratings from 1 to 5, half a point up; NaN stays NaN."""
    return np.clip(np.floor(scores + 0.5), RATINGS[0], RATINGS[-1])


# --------------------------------------------------------------------------------------------------------- agreement


def alpha_ordinal(coincidences: np.ndarray) -> Any:
    """Krippendorff's alpha, ordinal, of flattened coincidence matrices over the ratings, (..., ratings * ratings).

    1 - observed / expected disagreement (Krippendorff, Content Analysis, 2004, ch. 11). The ordinal distance of two
    ratings is the squared difference of their mean ranks among all pairable ratings.
    """
    size = len(RATINGS)
    table = coincidences.reshape(*coincidences.shape[:-1], size, size)
    counts = table.sum(axis=-1)
    ranks = np.cumsum(counts, axis=-1) - counts / 2
    distances = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    observed = (table * distances).sum(axis=(-2, -1))
    expected = (counts[..., :, None] * counts[..., None, :] * distances).sum(axis=(-2, -1))
    return 1 - divide(observed * (counts.sum(axis=-1) - 1), expected)


def alpha_interval(moments: np.ndarray) -> Any:
    """Krippendorff's alpha, interval, of (..., [votes, sum, sum of squares, disagreement within responses]).

    The mean squared distance of pairs, within responses and over all votes, written as sums.
    """
    votes, total, squares, within = np.moveaxis(moments, -1, 0)
    spread = squares - divide(total**2, votes)
    return 1 - divide(within * (votes - 1), np.where(spread > TINY * votes, votes * spread, 0.0))


def alpha_centred(moments: np.ndarray, judges: int) -> Any:
    """`alpha_interval` after each judge's own mean is taken out, of what `_judge_moments` sums, (..., columns).

    The means are those of the sums: resampled with the instructions.
    """
    each, cross = moments[..., 3 : 3 + 3 * judges], moments[..., 3 + 3 * judges :]
    counts, totals, gaps = np.split(each, 3, axis=-1)
    means = np.nan_to_num(divide(totals, counts))
    cross = cross.reshape(*cross.shape[:-1], judges, judges)
    squares = moments[..., 1] - (counts * means**2).sum(axis=-1)
    crossed = (means[..., :, None] * cross * means[..., None, :]).sum(axis=(-2, -1))
    within = moments[..., 2] - 2 * (means * gaps).sum(axis=-1) + crossed
    return alpha_interval(np.stack([moments[..., 0], np.zeros_like(squares), squares, within], axis=-1))


def alphas(scored: Scored, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Krippendorff's alpha of whole ratings (ordinal), of the scores as they are, and with each judge's mean taken out.

    Over the responses with at least two votes. The third tells a judge that is merely strict from one that disagrees.
    """
    names = ("ordinal", "interval", "centred")
    several = np.isfinite(scored.scores).sum(axis=1) >= 2
    if len(scored.judges) < 2 or not several.any():
        alone = {0: "there is no judge", 1: "there is one judge alone"}
        note = alone.get(len(scored.judges), "no response has two votes")
        return dict.fromkeys(names, Estimate(None, note=note))
    n = int(several.sum())
    known = replace(scored, scores=np.where(several[:, None], scored.scores, np.nan))
    whole = ratings(known.scores)
    counts = np.stack([(whole == rating).sum(axis=1) for rating in RATINGS], axis=1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(RATINGS))
    pairs = pairs / np.maximum(counts.sum(axis=1) - 1, 1)[:, None, None]
    coincidences = scored.sums(*pairs.reshape(len(pairs), -1).T)
    with np.errstate(all="ignore"):
        means = np.nansum(known.scores, axis=0) / np.isfinite(known.scores).sum(axis=0)
    centred = _judge_moments(replace(known, scores=known.scores - means))  # the shift is there for the rounding alone
    same, flat = "all votes are the same", "each judge gave every response the same score"

    def estimate(statistic: Statistic, sums: np.ndarray, undefined: str) -> Estimate:
        return bootstrap.estimate(statistic, sums, n, undefined, CORRELATION)

    return {
        "ordinal": estimate(alpha_ordinal, coincidences, f"{same} when rounded"),
        "interval": estimate(alpha_interval, _moments(known), same),
        "centred": estimate(lambda sums: alpha_centred(sums, len(scored.judges)), centred, flat),
    }


def _moments(scored: Scored) -> np.ndarray:
    """What `alpha_interval` takes, by instruction."""
    there = np.isfinite(scored.scores)
    votes, filled = there.sum(axis=1), np.where(there, scored.scores, 0.0)
    total, squares = filled.sum(axis=1), (filled**2).sum(axis=1)
    of_response = squares - divide(total**2, votes)
    within = np.where(votes >= 2, votes * of_response / np.maximum(votes - 1, 1), 0.0)
    return scored.sums(votes, total, squares, within)


def _judge_moments(scored: Scored) -> np.ndarray:
    """What `alpha_centred` takes, by instruction: the moments as a polynomial in the judges' means.

    Columns: votes, sum of squares, disagreement within responses; by judge its votes, their sum, and its weighted gap
    to the mean of the response; by two judges the weight of both in one response.
    """
    there = np.isfinite(scored.scores)
    votes, filled = there.sum(axis=1), np.where(there, scored.scores, 0.0)
    means = divide(filled.sum(axis=1), votes)[:, None]
    weight = np.where(votes >= 2, votes / np.maximum(votes - 1, 1), 0.0)[:, None]
    gaps = np.where(there, filled - means, 0.0)
    squares, within = (filled**2).sum(axis=1), weight[:, 0] * (gaps**2).sum(axis=1)
    present = there.astype(float)
    cross = weight[:, :, None] * (
        present[:, :, None] * np.eye(there.shape[1])
        - present[:, :, None] * present[:, None, :] / np.maximum(votes, 1)[:, None, None]
    )
    each = (*present.T, *filled.T, *(weight * gaps).T)
    return scored.sums(votes, squares, within, *each, *cross.reshape(len(cross), -1).T)


def kappa(moments: np.ndarray) -> Any:
    """Cohen's kappa with quadratic weights of (..., [responses, a, b, a squared, b squared, (a - b) squared]).

    With these weights the table of ratings is not needed (Fleiss and Cohen 1973): 1 - observed / expected mean squared
    difference.
    """
    n, a, b, a_squares, b_squares, differences = np.moveaxis(moments, -1, 0)
    return 1 - divide(differences, a_squares + b_squares - 2 * divide(a * b, n))


def pair(scored: Scored, one: int, two: int, orders: pa.Table, bootstrap: Bootstrap) -> dict[str, Estimate]:
    """Two judges: weighted kappa, Spearman's correlation, and pairs of responses to one instruction in the same order.

    `orders` is what stages/sql/agree_orders.sql counts.
    """
    a, b = scored.scores[:, one], scored.scores[:, two]
    both = np.isfinite(a) & np.isfinite(b)
    n = int(both.sum())
    if not n:
        return dict.fromkeys(("kappa", "spearman", "same_order"), Estimate(None, note="no response has a vote of both"))
    x, y = ratings(a), ratings(b)
    squares = scored.sums(np.ones(len(a)), x, y, x * x, y * y, (x - y) ** 2, where=both)
    found = {
        "kappa": bootstrap.estimate(kappa, squares, n, "both rounded to one and the same rating", CORRELATION),
        "spearman": spearman(scored.instruction[both], a[both], b[both], len(scored.ids), bootstrap),
    }
    ours = orders.filter((pc.field("one") == one) & (pc.field("two") == two))
    counts = np.zeros((len(scored.ids), 2))
    counts[scored.places(ours["instruction_id"])] = np.stack([ours["same"], ours["pairs"]], axis=1)
    found["same_order"] = bootstrap.estimate(
        lambda sums: divide(sums[..., 0], sums[..., 1]),
        counts,
        int(counts[:, 1].sum()),
        "no two responses to one instruction that both tell apart",
        SHARE,
    )
    return found


def spearman(groups: np.ndarray, a: np.ndarray, b: np.ndarray, count: int, bootstrap: Bootstrap) -> Estimate:
    """Spearman's rank correlation; every resample of the `count` instructions is ranked anew.

    That costs: beyond RANKED responses there are fewer resamples, at least LEAST_RESAMPLES.
    """
    if np.ptp(a) < TINY or np.ptp(b) < TINY:
        return Estimate(None, n=len(a), note="one of them gave every response the same score")
    ordered = [_Ranked.of(values) for values in (a, b)]

    def correlation(weights: np.ndarray) -> float:
        middle = (weights.sum() + 1) / 2
        x, y = (values.ranks(weights) - middle for values in ordered)
        weighted = weights * x
        return float(divide(weighted @ y, np.sqrt((weighted @ x) * (weights @ (y * y)))))

    instructions = len(np.unique(groups))
    if instructions < MIN_ITEMS:
        return Estimate(correlation(np.ones(len(a))), n=len(a))
    resamples = min(bootstrap.resamples, max(LEAST_RESAMPLES, RANKED // len(a)))
    resampled = (weights[groups % BLOCKS] for weights in bootstrap.weights(min(count, BLOCKS), resamples))
    draws = [correlation(weights) if weights.any() else np.nan for weights in resampled]
    low, high = interval(np.array(draws), instructions, CORRELATION)
    return Estimate(correlation(np.ones(len(a))), low, high, len(a))


@dataclass(frozen=True)
class _Ranked:
    """Values sorted once, to be ranked again and again under other weights."""

    level: np.ndarray  # which distinct value each one is, from the lowest on

    @staticmethod
    def of(values: np.ndarray) -> "_Ranked":
        return _Ranked(np.unique(values, return_inverse=True)[1])

    def ranks(self, weights: np.ndarray) -> np.ndarray:
        """Mean ranks of the values where value i is there `weights[i]` times."""
        counts = np.bincount(self.level, weights)
        return np.asarray((np.cumsum(counts) - counts / 2 + 0.5)[self.level])
