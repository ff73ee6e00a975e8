"""What asking costs, and the cap on it: `prices` and `budget` of params.yaml.

A cap counts what the ledger already holds and what is under way. Before a request is sent, the most it can cost is set
aside; its reply replaces that by what it did cost. So a cap is never passed, and an interrupted run begins where it
stopped.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anamnesis.errors import OVER_BUDGET, UserError
from anamnesis.ledger import Answer, Ledger
from anamnesis.sections import Budget, Price
from anamnesis.wire import Call

MILLION = 1e6
TURN_TOKENS = 32  # of a chat template around one message, generously
BYTES_A_TOKEN = 3  # of a prompt, few enough for most languages
REPLY_TOKENS = 16  # a completion's max_tokens where a request names none (the API's own default)


@dataclass(frozen=True)
class Cost:
    """Calls (a sample each), tokens (prompt and completion) and US dollars; a model without a price adds none."""

    requests: int = 0  # as `budget` calls them
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.requests + other.requests, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(self.requests - other.requests, self.tokens - other.tokens, self.usd - other.usd)


def cost_of(price: Price | None, prompt_tokens: int, completion_tokens: int, requests: int = 1) -> Cost:
    """The cost of so many tokens."""
    usd = (price.input * prompt_tokens + price.output * completion_tokens) / MILLION if price else 0.0
    return Cost(requests, prompt_tokens + completion_tokens, usd)


def prompt_bound(request: Mapping[str, Any]) -> int:
    """Tokens that a request's prompt has at most: a tokenizer over bytes gives no more tokens than bytes."""
    prompt = request.get("prompt")
    if isinstance(prompt, list):
        return len(prompt)
    if isinstance(prompt, str):
        return len(prompt.encode("utf-8", "surrogatepass")) + 1
    contents = [str(message.get("content") or "") for message in request.get("messages", ())]
    return TURN_TOKENS * (1 + len(contents)) + sum(len(text.encode("utf-8", "surrogatepass")) for text in contents)


def reply_bound(calls: Iterable[Call]) -> int:
    """Tokens that the replies to these calls have at most."""
    return sum(call.request.get("max_tokens") or REPLY_TOKENS for call in calls)


def expected_tokens(calls: Iterable[Call]) -> int:
    """About what an account's limit counts for one request: its prompt at BYTES_A_TOKEN, and all of `max_tokens`."""
    some = list(calls)
    prompt = some[0].request.get("prompt")
    tokens = len(prompt) if isinstance(prompt, list) else prompt_bound(some[0].request) // BYTES_A_TOKEN
    return tokens + reply_bound(some)


def metered(calls: Sequence[Call], answers: Sequence[Answer]) -> list[Answer]:
    """The answers of one reply; where the server told no usage, with the most tokens each can have had."""
    if any(answer.prompt_tokens or answer.completion_tokens for answer in answers):
        return list(answers)
    prompt = prompt_bound(calls[0].request)
    told = []
    for place, (call, answer) in enumerate(zip(calls, answers, strict=False)):
        most = min(reply_bound([call]), len((answer.text or "").encode()) + 1)  # a byte each, and the end
        told.append(replace(answer, prompt_tokens=0 if place else prompt, completion_tokens=most))
    return told


def bound(calls: Iterable[Call], price: Price | None) -> Cost:
    """The most that one request for samples of one prompt can cost."""
    some = list(calls)
    return cost_of(price, prompt_bound(some[0].request), reply_bound(some), len(some))


def spent(ledger: Ledger, prices: Mapping[str, Price], names: Mapping[str, str]) -> Cost:
    """What the ledger's answers cost at the prices of params.yaml. `names`: a model's key under models by identity."""
    total = Cost()
    for line in ledger.statistics():
        price = prices.get(names.get(line["model"], ""))
        total += cost_of(price, line["prompt_tokens"], line["completion_tokens"], line["calls"])
    return total


class Purse:
    """Holds a run within its budget. `before`: what was spent when it began."""

    def __init__(self, budget: Budget, price: Price | None, before: Cost):
        self._budget, self.price = budget, price
        self._spent, self._held = before, Cost()
        self._changed = asyncio.Event()

    async def hold(self, calls: Iterable[Call]) -> Cost:
        """Set aside what a request can cost at most; wait while requests under way may leave room for it.

        Raises `UserError` (OVER_BUDGET) where nothing is under way and it does not fit.
        """
        wanted = bound(calls, self.price)
        while over := self._over(wanted):
            if self._held == Cost():
                raise UserError(over, OVER_BUDGET)
            self._changed.clear()
            await self._changed.wait()
        return self.set_aside(wanted)

    def check(self, wanted: Cost) -> None:
        """Raise `UserError` (OVER_BUDGET) where so much more does not fit."""
        if over := self._over(wanted):
            raise UserError(over, OVER_BUDGET)

    def set_aside(self, wanted: Cost) -> Cost:
        """Count so much as under way; `settle` takes it back."""
        self._held += wanted
        return wanted

    def settle(self, held: Cost, real: Cost) -> None:
        """Replace what was set aside for a request by what it cost."""
        self._held -= held
        if not self._held.requests:
            self._held = Cost()  # no rests of rounding
        self._spent += real
        self._changed.set()

    def price_of(self, prompt_tokens: int, completion_tokens: int, calls: int = 1) -> Cost:
        """The cost of one reply of this model, to so many calls."""
        return cost_of(self.price, prompt_tokens, completion_tokens, calls)

    def _over(self, wanted: Cost) -> str:
        """The line that says which cap one more request could pass; empty where it fits."""
        used, after = self._spent, self._spent + self._held + wanted
        caps = {
            "usd": (self._budget.usd, used.usd, after.usd, "{:.4f}"),
            "requests": (self._budget.requests, used.requests, after.requests, "{:.0f}"),
            "tokens": (self._budget.tokens, used.tokens, after.tokens, "{:.0f}"),
        }
        for name, (cap, now, then, form) in caps.items():
            if cap is not None and then > cap:
                held = getattr(self._held, name)
                waiting = f", {form.format(held)} under way" if held else ""
                return (
                    f"budget.{name}: {form.format(now)} of {cap:g} is spent{waiting} and the next request may pass it; "
                    "answered calls are kept: raise the cap and rerun"
                )
        return ""
