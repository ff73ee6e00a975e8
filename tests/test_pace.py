"""Never more in any minute than a limit allows, to the last request, and halves and steps of what is in flight.

Minutes pass at once here: the event loop's clock jumps to the next timer.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

import openai
import pytest

from anamnesis.pace import Pool, Throttle
from anamnesis.sections import RateLimit


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop that never sleeps."""

    now = 0.0

    def time(self) -> float:
        return self.now

    def _run_once(self) -> None:
        if not self._ready and self._scheduled:
            self.now = max(self.now + 1e-9, self._scheduled[0].when())  # a clock never stands still
        super()._run_once()


def run(awaitable: Awaitable[Any]) -> Any:
    loop = JumpingLoop()
    try:
        return loop.run_until_complete(awaitable)
    finally:
        loop.close()


async def sent_at(limit: RateLimit, tokens: list[int]) -> list[tuple[float, int]]:
    """When requests of so many tokens were sent that all wanted to go at once."""
    throttle, sent = Throttle(limit), []

    async def one(size: int) -> None:
        await throttle.take(size)
        sent.append((asyncio.get_running_loop().time(), size))

    await asyncio.gather(*map(one, tokens))
    return sent


def most_in_a_minute(sent: list[tuple[float, int]]) -> int:
    return max(sum(size for at, size in sent if start <= at < start + 60) for start, _ in sent)


@pytest.mark.parametrize("limit", [1, 2, 7, 60, 500])
def test_requests_a_minute(limit: int) -> None:
    sent = run(sent_at(RateLimit(requests_per_minute=limit), [1] * 4 * limit))
    assert most_in_a_minute(sent) <= limit
    assert sent[-1][0] < 9 * 60  # 4 minutes' worth: no slower than half of the limit


@pytest.mark.parametrize("size", [1, 40, 300, 700])
def test_tokens_a_minute(size: int) -> None:
    """A request above a bucket's content (1/21 of the limit) counts where it ends."""
    limit = 1000
    tokens = [max(1, size - i % 5) for i in range(5 * limit // size)]
    sent = run(sent_at(RateLimit(tokens_per_minute=limit), tokens))
    assert most_in_a_minute(sent) <= limit + (size if size > limit / 21 else 0)
    assert len(sent) == len(tokens)


def test_small_requests_do_not_overtake_a_large_one_for_ever() -> None:
    sent = run(sent_at(RateLimit(tokens_per_minute=1000), [300, *[10] * 200]))
    assert sent[0][1] == 300


def pool(servers: int, ceiling: int) -> Pool:
    return Pool([openai.AsyncOpenAI(api_key="x", base_url=f"http://h{i}/v1") for i in range(servers)], ceiling)


def test_a_limit_is_halved_once_for_all_that_were_under_way_and_grows_by_one_a_round() -> None:
    async def play() -> None:
        one = pool(1, 16)
        replica = one.replicas[0]
        for _ in range(16):
            one.overloaded(replica, sent=0.0)
        assert replica.limit == 8
        for _ in range(8):
            one.answered(replica)
        assert 8.5 < replica.limit <= 9
        for _ in range(1000):
            one.answered(replica)
        assert replica.limit == 16
        for _ in range(10):
            one.overloaded(replica, sent=replica.cut)
        assert replica.limit == 1

    run(play())


def test_places_go_to_the_least_loaded_server_and_back() -> None:
    async def play() -> None:
        two = pool(2, 2)
        first = [await two.acquire() for _ in range(4)]
        assert [two.replicas.index(replica) for replica in first] == [0, 1, 0, 1]
        waiting = [asyncio.ensure_future(two.acquire()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()  # who waits no more takes no place
        two.release(first[1])
        assert await waiting[1] is first[1]
        two.release(first[0])
        waiting[2].cancel()  # nor who has just been given one
        await asyncio.gather(*waiting, return_exceptions=True)
        assert two.in_flight == 3

    run(play())
