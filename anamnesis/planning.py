"""What a run will ask: requests, tokens, hours and money, from calls that were answered before.

A forecast is a mean over answered calls of the same stage and model times the number of calls to come, with the 95 %
interval of the mean (Student's t); without FEWEST answered calls it is a bound: no token of an answer up to
`max_tokens` of each. Money comes from `prices` alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from anamnesis.ledger import Answer
from anamnesis.sections import Price, RateLimit
from anamnesis.spending import MILLION, prompt_bound
from anamnesis.wire import Call

FEWEST = 5  # answered calls below which nothing is extrapolated
MOST_BYTES_A_TOKEN = 8.0  # of a prompt that was never counted


@dataclass(frozen=True)
class Range:
    """From `low` to `high`, in the unit of its column."""

    low: float
    high: float

    def __add__(self, other: "Range") -> "Range":
        return Range(self.low + other.low, self.high + other.high)

    def __mul__(self, factor: float) -> "Range":
        return Range(self.low * factor, self.high * factor)


@dataclass(frozen=True)
class Line:
    """One stage and model: calls in the ledger, calls to come, and what these take; None where nothing is known."""

    stage: str
    model: str
    in_ledger: int
    to_ask: Range
    tokens_in: Range
    tokens_out: Range
    hours: Range | None
    usd: Range | None


def mean_range(values: Sequence[float]) -> Range:
    """The 95 % interval of a mean, never below 0."""
    array = np.asarray(values, dtype=float)
    half = stats.t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array))
    return Range(max(0.0, array.mean() - half), array.mean() + half)


@dataclass(frozen=True)
class Terms:
    """What a stage's calls to one model are asked under: prices, rate limits, requests at once, samples a request."""

    price: Price | None
    limit: RateLimit
    places: int
    samples: int = 1


def forecast(
    stage: str, model: str, answered: Sequence[tuple[Answer, float | None]], known: Sequence[Call], more: Range,
    most_in: int, most_out: int, terms: Terms,
) -> Line:  # fmt: skip
    """The line of one stage and model.

    `answered`: answers of the ledger to calls of this plan, with latencies in seconds. `known`: calls to come whose
    prompt is known; `more`: how many others will come, from instructions or responses that don't exist yet. `most_in`
    and `most_out`: tokens of a prompt that doesn't exist yet and of a completion, at most.
    """
    to_ask = more + Range(len(known), len(known))
    if len(answered) >= FEWEST:
        tokens_in = _product(to_ask, mean_range([answer.prompt_tokens for answer, _ in answered]))
        tokens_out = _product(to_ask, mean_range([answer.completion_tokens for answer, _ in answered]))
    else:
        tokens_in = sum((_prompt_range(call) for call in known), Range(0, more.high * most_in))
        tokens_out = Range(0, to_ask.high * most_out)
    timed = [latency for _, latency in answered if latency is not None]
    hours = None
    if len(timed) >= FEWEST:
        busy = _product(to_ask * (1 / terms.samples), mean_range(timed)) * (1 / terms.places)
        slowest = [busy]
        if terms.limit.requests_per_minute:
            slowest.append(to_ask * (60 / terms.samples / terms.limit.requests_per_minute))
        if terms.limit.tokens_per_minute:
            charged = tokens_in + to_ask * most_out  # a limit counts what a request may take
            slowest.append(charged * (60 / terms.limit.tokens_per_minute))
        hours = Range(max(one.low for one in slowest), max(one.high for one in slowest)) * (1 / 3600)
    price = terms.price
    usd = tokens_in * (price.input / MILLION) + tokens_out * (price.output / MILLION) if price else None
    return Line(stage, model, len(answered), to_ask, tokens_in, tokens_out, hours, usd)


def _prompt_range(call: Call) -> Range:
    """Tokens of a known prompt: token ids are counted, a text has one token a byte at most."""
    most = prompt_bound(call.request)
    return Range(most, most) if isinstance(call.request.get("prompt"), list) else Range(most / MOST_BYTES_A_TOKEN, most)


def _product(count: Range, each: Range) -> Range:
    return Range(count.low * each.low, count.high * each.high)


def total(lines: Sequence[Line]) -> Line:
    """All lines together; hours or money are None where one line with calls to come has none."""
    zero = Range(0, 0)
    hours = [line.hours for line in lines if line.to_ask.high]
    usd = [line.usd for line in lines if line.to_ask.high]
    return Line(
        stage="all",
        model="",
        in_ledger=sum(line.in_ledger for line in lines),
        to_ask=sum((line.to_ask for line in lines), zero),
        tokens_in=sum((line.tokens_in for line in lines), zero),
        tokens_out=sum((line.tokens_out for line in lines), zero),
        hours=_sum(hours),
        usd=_sum(usd),
    )


def _sum(spans: Sequence[Range | None]) -> Range | None:
    """The sum; None where one is unknown."""
    total = Range(0, 0)
    for span in spans:
        if span is None:
            return None
        total += span
    return total
