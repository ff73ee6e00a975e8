"""Ask models: what the ledger has is not asked again, what is asked ends as an answer or as a reason.

`Client.ask` takes calls and gives one `Outcome` each, in their order. As many requests are in flight as the server
stands (anamnesis/pace.py) and the budget allows (anamnesis/spending.py). Errors that can pass (time-outs, 408, 409,
429, 5xx, broken connections, unreadable replies) are tried again with jittered exponential waits or after the server's
Retry-After; errors that can't are final for their row alone; a refused key or an unknown model ends the stage at once.
What ends a stage lets the requests under way finish first, for they are paid for.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import openai
import tenacity

from anamnesis import batch, wire
from anamnesis.cards import Card, load_card
from anamnesis.errors import MODEL_UNAVAILABLE, QUALITY, REQUEST_REFUSED, UserError
from anamnesis.ledger import Answer, Ledger, Record
from anamnesis.meter import Meter
from anamnesis.pace import Pool, Replica, Throttle
from anamnesis.params import Params
from anamnesis.progress import say
from anamnesis.sections import RateLimit, Requests
from anamnesis.server import Endpoint, endpoint, identities, identity_of
from anamnesis.spending import Cost, Purse, expected_tokens, metered, spent
from anamnesis.wire import Call, Outcome

BUDGET_FLOOR = 20  # failures below which the failure budget never ends a stage
FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0
CONNECT_S = 20.0
PATIENCE_S = 600.0  # longest Retry-After that is waited for
LAST_ANSWERS_S = 30.0  # how long a stage that ends waits for what is under way
TICK_S = 1.0


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next try: full jitter over an exponential, after what the server asked for."""
    error = state.outcome.exception() if state.outcome else None
    jitter = float(tenacity.wait_random_exponential(multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S)(state))
    if isinstance(error, wire.Passing) and error.wait_s is not None:
        return error.wait_s + jitter
    return jitter


class _Writer:
    """Puts the answers that come in within one turn of the event loop into the ledger in one transaction.

    `put` returns when its answers are committed, so whoever waits for it still counts as in flight: kill -9 costs no
    more than that.
    """

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._waiting: list[Record] = []
        self._written: asyncio.Future[None] | None = None

    async def put(self, records: Sequence[Record]) -> None:
        self._waiting += records
        if self._written is None:
            loop = asyncio.get_running_loop()
            self._written = loop.create_future()
            loop.call_soon(self._flush)
        await asyncio.shield(self._written)  # one waiter's cancellation is not the others'

    def _flush(self) -> None:
        records, self._waiting = self._waiting, []
        written, self._written = self._written, None
        assert written
        try:
            self._ledger.put_many(records)
        except Exception as error:  # whatever it is, those who wait must hear of it
            written.set_exception(error)
        else:
            written.set_result(None)


class _Run:
    """One run of `Client.ask` over what the ledger lacks: workers take groups of calls from one iterator."""

    def __init__(
        self, where: Endpoint, requests: Requests, purse: Purse, throttle: Throttle, ledger: Ledger, known: int | None
    ):
        """`known`: calls of the same `Client.ask` that the ledger has; None where any number of calls may fail."""
        self._where, self._requests, self._purse, self._throttle = where, requests, purse, throttle
        self._ledger, self._writer, self._known = ledger, _Writer(ledger), known
        self._clients = [_connect(url, where.api_key, requests) for url in where.base_urls]
        self.pool = Pool(self._clients, requests.concurrency)
        self.failures: dict[str, str] = {}
        self._ending: UserError | None = None
        self._under_way: set[asyncio.Task[None] | None] = set()  # workers between sending and the ledger
        self._retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(wire.Passing),
            stop=lambda state: state.attempt_number > requests.retries or self._ending is not None,
            wait=_wait,
            before_sleep=self._count_retry,
            reraise=True,
        )

    def in_flight(self) -> int:
        """Requests at the servers; a place that waits for its rate is none."""
        return len(self._under_way)

    async def ask(self, groups: list[dict[str, Call]], meter: Meter) -> None:
        """Ask every group and store the answers; `failures` has the reasons of those that failed, by key.

        Raises what ends the stage, after the requests under way have come back or had LAST_ANSWERS_S to.
        """
        self._meter = meter
        queue = iter(groups)
        places = self._requests.concurrency * len(self.pool.replicas)
        # Twice as many workers as places: one that waits for its next try leaves its place to another.
        workers = [asyncio.create_task(self._work(queue)) for _ in range(min(2 * places, len(groups)))]
        ticker = asyncio.create_task(self._tick())
        try:
            await self._join(workers)
        finally:
            for task in (ticker, *workers):
                task.cancel()
            await asyncio.gather(ticker, *workers, return_exceptions=True)
            for client in self._clients:
                await client.close()
        if self._ending:
            raise self._ending

    async def _join(self, workers: Sequence[asyncio.Task[None]]) -> None:
        waiting = set(workers)
        deadline: float | None = None
        while waiting and (deadline is None or time.monotonic() < deadline):
            done, waiting = await asyncio.wait(waiting, timeout=TICK_S, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                if not task.cancelled() and (error := task.exception()):
                    raise error
            if self._ending and deadline is None:
                deadline = time.monotonic() + LAST_ANSWERS_S
                for task in waiting - self._under_way:
                    task.cancel()  # it waits for its next try, a place or its rate: nothing is paid for yet

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._meter.tick()

    async def _work(self, queue: Iterator[dict[str, Call]]) -> None:
        for group in queue:
            if self._ending:
                return
            try:
                await self._one(group)
            except UserError as error:
                self._ending = self._ending or error

    async def _one(self, group: Mapping[str, Call]) -> None:
        """Ask one group of samples until it is answered or has failed."""
        try:
            stored: int = await self._retrying(self._try, group)
        except wire.Passing as error:
            if self._ending:
                return  # not tried to the end, so not failed: a rerun asks again
            tries = f"{error.kind} after {self._requests.retries + 1} tries"
            self._fail(group, error.kind, f"{tries}: {error.said}" if error.said else tries)
            return
        except wire.Final as error:
            self._fail(group, str(error).split(":")[0], str(error))
            return
        for key in list(group)[stored:]:  # the server ignores `n`: what it gave is kept, the rest asked for singly
            await self._one({key: group[key]})

    async def _try(self, group: Mapping[str, Call]) -> int:
        """One try: wait for budget, a place and rate, send, store the answers, and tell them how it went.

        Returns how many calls of the group, from its first, the ledger has now.
        """
        calls = list(group.values())
        held = await self._purse.hold(calls)
        real = Cost()
        try:
            replica = await self.pool.acquire()
            sent = time.monotonic()
            try:
                await self._throttle.take(expected_tokens(calls))
                await asyncio.sleep(max(0.0, replica.opens - time.monotonic()))  # it may have asked for a pause since
                if self._ending:
                    raise wire.Passing("stopped")
                if len(self._ledger.known(group)) == len(group):  # another process asks the same and was faster
                    self._meter.answer(len(group), real)
                    return len(group)
                sent, real = time.monotonic(), Cost(requests=len(calls))
                self._under_way.add(asyncio.current_task())
                answers = metered(calls, await wire.send(replica.client, self._where.model, calls))
                real = self._paid(answers)
                self.pool.answered(replica)
                latency, identity = time.monotonic() - sent, self._where.identity
                # The place is given back after this, so no more than the ceiling is ever in flight and not stored.
                await self._writer.put(
                    [
                        Record(key, identity, call.kind, answer, latency)
                        for (key, call), answer in zip(group.items(), answers, strict=False)
                    ]
                )
                self._meter.answer(len(answers), real)
            except wire.Passing as error:
                real = held if error.paid else real
                self._slow_down(replica, error, sent)
                raise
            finally:
                self._under_way.discard(asyncio.current_task())
                self.pool.release(replica)
            return len(answers)
        finally:
            self._purse.settle(held, real)

    def _paid(self, answers: Sequence[Answer]) -> Cost:
        prompt = sum(answer.prompt_tokens for answer in answers)
        completion = sum(answer.completion_tokens for answer in answers)
        return self._purse.price_of(prompt, completion, len(answers))

    def _slow_down(self, replica: Replica, error: wire.Passing, sent: float) -> None:
        if error.overload:
            self.pool.overloaded(replica, sent)
        if error.wait_s is not None:
            if error.wait_s > max(PATIENCE_S, self._requests.timeout_s) and len(self.pool.replicas) == 1:
                raise UserError(
                    f"model {self._where.model} at {replica.client.base_url}: {error}: it asks to wait "
                    f"{error.wait_s:.0f} s; answered calls are kept: rerun then",
                    REQUEST_REFUSED,
                )
            self.pool.pause(replica, error.wait_s)
        if error.unreachable and (ended := self._where.ended()):
            raise UserError(f"{ended}; answered calls are kept", MODEL_UNAVAILABLE)
        if error.kind != "HTTP 429":  # a server that counts is no broken one
            self.pool.failed(replica, at_once=error.unreachable)

    def _count_retry(self, state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, wire.Passing):
            self._meter.retry(error.kind, state.upcoming_sleep)

    def _fail(self, group: Mapping[str, Call], kind: str, reason: str) -> None:
        """Mark a group's calls as failed. Raises `UserError` where too many have."""
        self.failures |= dict.fromkeys(group, reason)
        self._meter.failure(len(group), kind)
        if self._known is not None:
            finished = self._known + self._meter.answered + self._meter.failed
            check_failures(self._where.model, self.failures, finished, self._requests)


def _connect(base_url: str, key: str, requests: Requests) -> openai.AsyncOpenAI:
    """A client without retries of its own; one for this machine goes past any proxy."""
    timeout = openai.Timeout(requests.timeout_s, connect=min(CONNECT_S, requests.timeout_s))
    here = urlsplit(base_url).hostname in ("127.0.0.1", "localhost", "::1")
    http = openai.DefaultAsyncHttpxClient(timeout=timeout, trust_env=not here)
    return openai.AsyncOpenAI(base_url=base_url, api_key=key, timeout=timeout, max_retries=0, http_client=http)


def check_failures(model: str, failures: Mapping[str, str], finished: int, requests: Requests) -> None:
    """Raise `UserError` where too many finished calls failed: QUALITY, or MODEL_UNAVAILABLE if nobody answers."""
    failed = len(failures)
    if failed < BUDGET_FLOOR or failed <= requests.failure_budget * finished:
        return
    raise UserError(
        f"model {model}: {failed} of {finished} requests failed, more than requests.failure_budget "
        f"({requests.failure_budget:.0%}); the last: {list(failures.values())[-1]}; "
        "answered calls are kept: mend the cause and rerun",
        _code_of(failures) if failed == finished else QUALITY,
    )


def _code_of(failures: Mapping[str, str]) -> int:
    """The exit code where every call failed: nobody may have answered at all."""
    silent = all(reason.startswith(wire.UNREACHABLE) for reason in failures.values())
    return MODEL_UNAVAILABLE if silent else QUALITY


class Client:
    """Asks one model: a context manager that starts a local server with the first call the ledger lacks, if it comes.

    `model_dir`: the model's directory, as stage models left it. `card` is its identity card.
    """

    def __init__(self, model_dir: str | Path, params: Params, ledger: Ledger):
        self.card: Card = load_card(model_dir)
        self._identity = identity_of(self.card, params.serve)
        self._connect = lambda: endpoint(model_dir, params.serve, params.requests)
        self._params, self._ledger = params, ledger
        self._servers = ExitStack()
        self._endpoint: Endpoint | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._servers.__exit__(*exception)

    def ask(self, calls: Sequence[Call], label: str, essential: bool = True) -> list[Outcome]:
        """One outcome a call, in the calls' order. `essential` calls must not all fail, nor too many of them.

        Raises `UserError`: MODEL_UNAVAILABLE where a local server can't start or ends, REQUEST_REFUSED where the server
        refuses the key or the model, OVER_BUDGET where a cap of `budget` is reached, QUALITY where more than
        `requests.failure_budget` of the finished requests failed, or no call has an answer. What was answered by then
        is in the ledger.
        """
        keys = [call.key(self._identity) for call in calls]
        known = self._ledger.known(keys)
        todo = {key: call for key, call in zip(keys, calls, strict=True) if key not in known}
        finished = len(set(keys)) if essential else None
        failures: dict[str, str] = {}
        if todo:
            with self._ledger.turn(self._identity, label):
                known = self._ledger.known(keys)  # what another process has asked meanwhile is here by now
                todo = {key: call for key, call in todo.items() if key not in known}
                if known:
                    say(f"{label}: {len(known)} of {len(set(keys))} calls are in the ledger")
                failures = self._ask(todo, label, finished and finished - len(todo)) if todo else {}
        elif keys:
            say(f"{label}: all {len(set(keys))} calls are in the ledger")
        if failures:
            kinds = Counter(
                reason.split(":")[0] for reason in failures.values()
            )  # what a server says may quote a prompt
            told = ", ".join(f"{kind} {count}x" for kind, count in kinds.most_common(3))
            say(f"{label}: {len(failures)} of {len(set(keys))} calls failed: {told}; their rows have the reasons")
        answers = self._ledger.get_many(keys)
        outcomes = [Outcome(answers.get(key), failures.get(key)) for key in keys]
        if finished:
            check_failures(self.card.name, failures, finished, self._params.requests)  # a batch's are counted here
            if failures and not answers:
                last = list(failures.values())[-1]
                raise UserError(
                    f"model {self.card.name}: none of {finished} requests was answered; the last: {last}",
                    _code_of(failures),
                )
        return outcomes

    def _ask(self, todo: dict[str, Call], label: str, known: int | None) -> dict[str, str]:
        """Ask what the ledger lacks; the reasons of what failed, by key. `known`: see `_Run`."""
        name, params = self.card.name, self._params
        price = params.prices.get(name)
        capped = any(cap is not None for cap in params.budget.model_dump().values())
        before = spent(self._ledger, params.prices, identities(params)) if capped else Cost()
        purse = Purse(params.budget, price, before)
        self._endpoint = self._endpoint or self._servers.enter_context(self._connect())
        if self.card.mode == "batch":
            return batch.ask(todo, self._endpoint, self._ledger, params.requests, purse, label)

        batch.check_none_waits(todo, self._endpoint, self._ledger, name)

        async def run() -> dict[str, str]:
            assert self._endpoint
            throttle = Throttle(params.requests.limits.get(name) or RateLimit())
            asking = _Run(self._endpoint, params.requests, purse, throttle, self._ledger, known)
            with Meter(label, len(todo), asking.in_flight, price is not None) as meter:
                await asking.ask(wire.grouped(todo, self.card.samples_per_request), meter)
            return asking.failures

        return asyncio.run(run())
