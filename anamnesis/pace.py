"""How fast to ask: requests in flight for each server, and requests and tokens a minute for the account behind them.

In flight: additive increase, multiplicative decrease (Chiu and Jain, 1989), from the ceiling downwards. A server that
says it is overloaded (429, 503, 529) or lets a request time out is sent half as many at once, at most once for all
requests that were under way; every limit's worth of answers admits one more, up to the ceiling again.
"""

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import openai
from aiolimiter import AsyncLimiter

from anamnesis.sections import RateLimit

FIRST_REST_S, LONGEST_REST_S = 2.0, 60.0  # how long a server that does nothing but fail is set aside
FAILURES = 3  # one after the other that make it such a one
WINDOW_S = 3.0  # in which a minute's rate may be used at once
MINUTE_S = 60.0


@dataclass(eq=False)
class Replica:
    """One server: its client, how many requests it may have at once (`limit`) and has (`in_flight`)."""

    client: openai.AsyncOpenAI
    ceiling: int
    limit: float = 0.0
    in_flight: int = 0
    opens: float = 0.0  # time.monotonic() before which nothing is sent there
    cut: float = 0.0  # time.monotonic() of the last decrease
    failed: int = 0  # tries since its last answer
    rest_s: float = FIRST_REST_S

    def __post_init__(self) -> None:
        self.limit = float(self.ceiling)


class Pool:
    """Gives out places in flight: the server with the fewest outstanding requests first, waiting callers in order."""

    def __init__(self, clients: Sequence[openai.AsyncOpenAI], ceiling: int):
        self.replicas = [Replica(client, ceiling) for client in clients]
        self._waiting: deque[asyncio.Future[Replica]] = deque()
        self._alarm: asyncio.TimerHandle | None = None

    @property
    def in_flight(self) -> int:
        return sum(replica.in_flight for replica in self.replicas)

    async def acquire(self) -> Replica:
        """Wait for a place and take it."""
        place: asyncio.Future[Replica] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        self._hand_out()
        try:
            return await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():
                self.release(place.result())
            raise

    def release(self, replica: Replica) -> None:
        """Give a place back."""
        replica.in_flight -= 1
        self._hand_out()

    def answered(self, replica: Replica) -> None:
        """Count an answer: one more at once for every limit's worth of them."""
        replica.limit = min(replica.ceiling, replica.limit + 1 / replica.limit)
        replica.failed = 0
        replica.rest_s = FIRST_REST_S

    def overloaded(self, replica: Replica, sent: float) -> None:
        """Halve a server's limit, unless that was done after this request was sent (`sent`: time.monotonic())."""
        if sent >= replica.cut:
            replica.limit = max(1.0, replica.limit / 2)
            replica.cut = time.monotonic()

    def pause(self, replica: Replica, seconds: float) -> None:
        """Send nothing to a server for so long."""
        replica.opens = max(replica.opens, time.monotonic() + seconds)

    def failed(self, replica: Replica, at_once: bool) -> None:
        """Set a server aside that does nothing but fail, for longer each time until it answers.

        `at_once`: nobody could be reached there. Without another server there is nothing to turn to.
        """
        replica.failed += 1
        broken = at_once or replica.failed >= FAILURES
        if broken and len(self.replicas) > 1 and replica.opens <= time.monotonic():
            self.pause(replica, replica.rest_s)
            replica.rest_s = min(LONGEST_REST_S, 2 * replica.rest_s)

    def _hand_out(self) -> None:
        now = time.monotonic()
        while self._waiting:
            free = [one for one in self.replicas if one.opens <= now and one.in_flight < int(one.limit)]
            if not free:
                break
            place = self._waiting.popleft()
            if not place.done():  # a caller that was cancelled waits no more
                replica = min(free, key=lambda one: (one.in_flight + one.failed, one.failed))
                replica.in_flight += 1
                place.set_result(replica)
        if self._alarm:
            self._alarm.cancel()
            self._alarm = None
        later = [one.opens - now for one in self.replicas if one.opens > now]
        if self._waiting and later:
            self._alarm = asyncio.get_running_loop().call_later(min(later), self._hand_out)


class Throttle:
    """Requests and tokens a minute, as leaky buckets; never more than the limit in any minute."""

    def __init__(self, limit: RateLimit):
        self._requests = _bucket(limit.requests_per_minute)
        self._tokens = _bucket(limit.tokens_per_minute)
        self._turn = asyncio.Lock()

    async def take(self, tokens: int) -> None:
        """Wait until one request of so many tokens may be sent."""
        async with self._turn:  # one after the other: parts of several requests would fill up at the same moment
            if self._requests:
                await self._requests.acquire()
            if self._tokens:
                left = float(tokens)
                while left > 0:  # more than the bucket holds goes in parts
                    part = min(left, self._tokens.max_rate)
                    await self._tokens.acquire(part)
                    left -= part


def _bucket(per_minute: int | None) -> AsyncLimiter | None:
    """A bucket that lets a minute's rate pass in any minute: its own content and what leaks meanwhile together."""
    if per_minute is None:
        return None
    held = max(1.0, per_minute * WINDOW_S / (MINUTE_S + WINDOW_S))
    leak = max(per_minute - held, per_minute / 2) / MINUTE_S  # a second
    return AsyncLimiter(held, held / leak)
