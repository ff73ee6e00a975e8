"""What a run will ask: requests, tokens, hours and money, from calls that were answered before.

A forecast is a mean over answered calls of the same stage and model times the number of calls to come, with the 95 %
interval of the mean (Student's t); without FEWEST answered calls it is a bound: no token of an answer up to
`max_tokens` of each. Money comes from `prices` alone. Everything here is pure: lookup.py reads the ledger,
stages/plan.py goes through the stages.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from anamnesis import controls, judging
from anamnesis.conversing import Conversation, is_open
from anamnesis.ledger import Answer
from anamnesis.params import RUBRIC_TOKENS, Params
from anamnesis.sections import Budget, Judge, Price, Probe, RateLimit
from anamnesis.shares import share
from anamnesis.spending import MILLION, Cost, prompt_bound
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


@dataclass(frozen=True)
class Found:
    """Calls, the ledger's answer to each (None: to be asked), their keys, and how long each answer took."""

    calls: Sequence[Call]
    keys: Sequence[str]
    answers: Sequence[Answer | None]
    latencies: dict[str, float | None]

    @property
    def lacking(self) -> int:
        """How many different calls are to be asked."""
        return len({key for key, answer in zip(self.keys, self.answers, strict=True) if not answer})


def found_in_all(parts: Sequence[Found]) -> Found:
    """All calls of several, in their order."""
    return Found(
        [call for part in parts for call in part.calls],
        [key for part in parts for key in part.keys],
        [answer for part in parts for answer in part.answers],
        {key: latency for part in parts for key, latency in part.latencies.items()},
    )


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


def line_of(params: Params, stage: str, model: str, found: Found, more: Range, most_in: int, most_out: int) -> Line:
    """The line of what `found` has and lacks, and so many calls more; `most_in` and `most_out` as in `forecast`."""
    by_key = dict(zip(found.keys, zip(found.calls, found.answers, strict=True), strict=True))
    answered = [(answer, found.latencies[key]) for key, (_, answer) in by_key.items() if answer]
    to_come = [call for call, answer in by_key.values() if not answer]
    entry, requests = params.models[model], params.requests
    terms = Terms(
        price=params.prices.get(model),
        limit=requests.limits.get(model) or RateLimit(),
        places=requests.concurrency * max(1, len(entry.base_urls)),
        samples=entry.samples_per_request if stage.endswith("respond") else 1,
    )
    return forecast(stage, model, answered, to_come, more, most_in, most_out, terms)


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


def probes_to_come(wanted: Probe, found: Found, good: int) -> Range:
    """Calls that stage probe has not drawn up yet, where so many of `found` gave a good instruction."""
    missing = wanted.instructions - good
    if missing <= 0:
        return Range(0, 0)
    most = wanted.max_requests - len(found.calls)
    return Range(min(most, max(0, missing - found.answers.count(None))), most)


def turns_to_come(params: Params, grown: Sequence[Conversation]) -> int:
    """Answers that stage converse is still to choose, at most; of instructions to come an estimate: each draws."""
    wanted = params.converse
    unprobed = max(0, params.probe.instructions - len(grown))
    return math.ceil(unprobed * wanted.share) * (wanted.turns.max - 1) + sum(
        one.wanted - one.turns for one in grown if is_open(one)
    )


@dataclass(frozen=True)
class Asked:
    """A kind of calls to a model (respond, judge or turns): how many at most, and tokens as in `forecast`."""

    kind: str
    model: str
    calls: int
    most_in: int
    most_out: int


def asked_for_turns(params: Params, turns: int, local: Mapping[str, bool]) -> list[Asked]:
    """What stage converse asks for so many turns. `local`: whether we serve a judge ourselves, by name."""
    most = params.converse.max_tokens
    sampling = {name: params.committee[name].sampling for name in params.members()}
    asked = [Asked("respond", name, turns * one.samples, most, one.max_tokens) for name, one in sampling.items()]
    room = RUBRIC_TOKENS + most + max(one.max_tokens for one in sampling.values())
    votes = turns * sum(one.samples for one in sampling.values())
    for name in params.enabled_judges():
        again, reply = asks_again(params.judges[name], local[name]), reply_tokens(params.judges[name])
        asked.append(Asked("judge", name, votes * (1 + again), room + reply * again, reply))
    return [*asked, Asked("turns", params.target, turns, most, params.probe.max_tokens)]


def reply_tokens(judge: Judge) -> int:
    """Tokens of a judge's first reply, at most."""
    return judge.max_tokens if judge.mode == "justify" else judging.SCORE_TOKENS


def asks_again(judge: Judge, local: bool) -> bool:
    """Whether a reply may be asked for once more, below the first; one token is always read, or always missing."""
    return not (judge.mode == "expected" and local)


def most_asked(params: Params, system: str | None) -> int:
    """Tokens that stand before an answer at most, under this system message or one that is drawn."""
    drawn = params.converse
    systems = [system, *(one.text for one in drawn.systems)]
    turns = max(params.probe.max_tokens, drawn.max_tokens if drawn.share else 0)
    return turns + max(prompt_bound({"messages": [{"content": text}]}) for text in systems)


def most_judged(params: Params, borrowed: Iterable[Mapping[str, Any]]) -> int:
    """Tokens of a judge's prompt, at most."""
    longest = max(member.sampling.max_tokens for member in params.committee.values())
    asked = max([most_asked(params, None), *(len(row["text"].encode()) for row in borrowed)])
    return RUBRIC_TOKENS + asked + longest


def responses_to_come(params: Params, member: str, known: int) -> Range:
    """Responses of a member to instructions that don't exist yet, where `known` calls are to those that do."""
    goal = params.probe.instructions
    kept_back = 0 if member == params.target else share(goal, params.select.heldout)
    more = max(0, (goal - kept_back) * params.committee[member].sampling.samples - known)
    return Range(more, more)


def planted_to_come(params: Params, judge: str, borrowed: Iterable[Mapping[str, Any]], known: int) -> Range:
    """Planted responses besides `known` ones, where more instructions may be judged."""
    goal = params.probe.instructions - share(params.probe.instructions, params.select.heldout)
    goal += sum(judge in row["judges"] for row in borrowed)
    most = share(goal, params.judging.control) * len(controls.KINDS)
    return Range(0, max(0, most - known))


def read_by_judges(
    params: Params, member: str, rows: Sequence[Mapping[str, Any]], borrowed: Sequence[Mapping[str, Any]],
    to_ask: Range, before: Mapping[str, Range],
) -> dict[str, Range]:  # fmt: skip
    """How many responses to come each judge will read: what it had `before`, and those of this member.

    `rows`: the member's responses in the ledger. `to_ask`: all that are to come, those to `borrowed` ones among them.
    """
    probed = to_ask + Range(-len(borrowed), -len(borrowed))
    complete = sum(row["status"] == "ok" for row in rows) / len(rows) if rows else 0.0
    judged = 1.0 - (params.select.heldout if member == params.target else 0.0)  # its own are not
    found = {}
    for name, had in before.items():
        theirs = sum(name in row["judges"] for row in borrowed)
        read = Range(probed.low * complete * judged, probed.high * judged)
        found[name] = had + read + Range(theirs * complete, theirs)
    return found


def verdicts(budget: Budget, before: Cost, plan: Line) -> list[str]:
    """What each cap will say to a plan (its total) after what was spent before."""
    wanted = {
        "usd": (budget.usd, before.usd, plan.usd),
        "requests": (budget.requests, before.requests, plan.to_ask),
        "tokens": (budget.tokens, before.tokens, plan.tokens_in + plan.tokens_out),
    }
    told = []
    for name, (cap, used, more) in wanted.items():
        if cap is None:
            continue
        if more is None:
            verdict = "what the plan adds is unknown: a model with calls to come has no price (0 is one)"
        elif used + more.high <= cap:
            verdict = "the plan fits"
        else:
            over = f"up to {used + more.high - cap:,.4g} too much"
            verdict = f"the plan goes over it, {over}" if used + more.low > cap else f"the plan may go over it, {over}"
        told.append(f"budget.{name}: {used:,.4g} of {cap:,g} spent; {verdict}")
    return told


def _count(span: Range, form: str = "{:,.0f}") -> str:
    low, high = form.format(span.low), form.format(span.high)
    return low if low == high else f"{low} to {high}"


def _told(hours: Range) -> str:
    """Hours, or minutes where there is less than one hour."""
    return _count(hours, "{:,.1f} h") if hours.high >= 1 else _count(hours * 60, "{:,.1f} min")


def cells(line: Line) -> list[str]:
    """A row of the table: stage, model, in ledger, to ask, tokens in, tokens out, time, US dollars."""
    hours = "unknown" if line.hours is None else _told(line.hours)
    usd = "unknown" if line.usd is None else _count(line.usd, "{:,.4f}")
    if not line.to_ask.high:
        hours = usd = "-"
    counts = [_count(line.to_ask), _count(line.tokens_in), _count(line.tokens_out)]
    return [line.stage, line.model, f"{line.in_ledger:,}", *counts, hours, usd]
