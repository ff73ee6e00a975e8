"""Ask models: what the ledger has is not asked again, what is asked ends as an answer or as a reason.

`Client.ask` takes calls and gives one `Outcome` each, in their order. A few requests are in flight at once; errors
that can pass (time-outs, 408, 409, 429, 5xx, broken connections) are tried again with jittered exponential waits or
after the server's Retry-After; errors that can't are final for their row alone; a refused key or an unknown model
ends the stage at once.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import openai
import tenacity

from anamnesis.cards import load_card
from anamnesis.errors import QUALITY, REQUEST_REFUSED, UserError
from anamnesis.ledger import Answer, Ledger, Record, key_of
from anamnesis.params import Requests, Serve
from anamnesis.progress import Progress
from anamnesis.server import Endpoint, endpoint, identity_of

PASSING = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
REFUSED = frozenset({401, 403, 404})
BUDGET_FLOOR = 20  # failures below which the budget never ends a stage
LONGEST_WAIT_S = 60.0
DIGITS = tuple("12345")


@dataclass(frozen=True)
class Call:
    """One request. `request` is what goes over the wire besides the model's name; all of it is part of the key."""

    kind: Literal["chat", "completion"]
    request: dict[str, Any]
    sample_index: int = 0

    def key(self, identity: str) -> str:
        """The ledger's key of this call to the model of this identity."""
        return key_of(
            {"model": identity, "kind": self.kind, "request": self.request, "sample_index": self.sample_index}
        )


@dataclass(frozen=True)
class Outcome:
    """An answer, or the reason why there is none."""

    answer: Answer | None
    reason: str | None = None


class _Passing(Exception):
    """An error that a later try may not meet; `wait_s` is what the server asked for, if it did."""

    def __init__(self, reason: str, wait_s: float | None = None):
        super().__init__(reason)
        self.wait_s = wait_s


def _score_position(content: Sequence[Any]) -> dict[str, float] | None:
    """Top log-probabilities at the last position where a lone digit 1..5 was written, else at the first position."""
    if not content:
        return None
    position = next((token for token in reversed(content) if token.token.strip() in DIGITS), content[0])
    return {top.token: round(float(top.logprob), 6) for top in position.top_logprobs}


def _read_chat(body: Any) -> Answer:
    choice = body.choices[0]
    logprobs = choice.logprobs.content if choice.logprobs else None
    return Answer(
        text=choice.message.content,
        finish_reason=choice.finish_reason,
        prompt_tokens=body.usage.prompt_tokens if body.usage else 0,
        completion_tokens=body.usage.completion_tokens if body.usage else 0,
        logprobs=_score_position(logprobs) if logprobs else None,
        refusal=getattr(choice.message, "refusal", None),
    )


def _read_completion(body: Any) -> Answer:
    choice = body.choices[0]
    top = choice.logprobs.top_logprobs if choice.logprobs else None
    return Answer(
        text=choice.text,
        finish_reason=choice.finish_reason,
        prompt_tokens=body.usage.prompt_tokens if body.usage else 0,
        completion_tokens=body.usage.completion_tokens if body.usage else 0,
        logprobs={token: round(float(value), 6) for token, value in top[0].items()} if top else None,
    )


def _retry_after(error: openai.APIStatusError) -> float | None:
    try:
        return min(float(error.response.headers["retry-after"]), LONGEST_WAIT_S)
    except (KeyError, ValueError):
        return None


async def _send(client: openai.AsyncOpenAI, model: str, call: Call) -> Answer:
    """One try. Raises `_Passing` for what a later try may mend, and openai's errors for what it can't."""
    try:
        if call.kind == "chat":
            answer = _read_chat(await client.chat.completions.create(model=model, **call.request))
        else:
            answer = _read_completion(await client.completions.create(model=model, **call.request))
    except openai.APIStatusError as error:
        if error.status_code in PASSING:
            raise _Passing(f"HTTP {error.status_code}", _retry_after(error)) from error
        raise
    except openai.APITimeoutError as error:
        raise _Passing("timed out") from error
    except openai.APIConnectionError as error:
        raise _Passing("connection failed") from error
    except (openai.APIResponseValidationError, ValueError, AttributeError, IndexError, TypeError) as error:
        raise _Passing(f"unreadable reply ({type(error).__name__})") from error
    if answer.text is None and answer.refusal is None and answer.finish_reason not in ("content_filter", "length"):
        raise _Passing("reply without content")  # at `length` a reasoning model had no token left for its answer
    return answer


def _wait(state: tenacity.RetryCallState) -> float:
    """Seconds before the next try: what the server asked for, else full jitter over an exponential."""
    error = state.outcome.exception() if state.outcome else None
    if isinstance(error, _Passing) and error.wait_s is not None:
        return error.wait_s
    return float(tenacity.wait_random_exponential(multiplier=0.5, max=LONGEST_WAIT_S)(state))


def _message(error: openai.APIStatusError) -> str:
    """What the server said, in one short line."""
    body = error.body if isinstance(error.body, dict) else {}
    return " ".join(str(body.get("message") or error.message).split())[:200]


class _Writer:
    """Puts the answers that come in within one turn of the event loop into the ledger in one transaction.

    `put` returns when its answer is committed, so whoever waits for it still counts as in flight: kill -9 costs no
    more than that.
    """

    def __init__(self, ledger: Ledger):
        self._ledger = ledger
        self._waiting: list[Record] = []
        self._written: asyncio.Future[None] | None = None

    async def put(self, record: Record) -> None:
        self._waiting.append(record)
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
        except UserError as error:
            written.set_exception(error)
        else:
            written.set_result(None)


async def _ask_all(
    todo: dict[str, Call], endpoint: Endpoint, ledger: Ledger, requests: Requests, progress: Progress
) -> dict[str, str]:
    """Ask every call in `todo` and store the answers; the reasons of those that failed, by key."""
    failures: dict[str, str] = {}
    queue = iter(todo.items())
    writer = _Writer(ledger)
    finished = 0
    client = openai.AsyncOpenAI(
        base_url=endpoint.base_url, api_key=endpoint.api_key, timeout=requests.timeout_s, max_retries=0
    )
    retrying = tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception_type(_Passing),
        stop=tenacity.stop_after_attempt(requests.retries + 1),
        wait=_wait,
        reraise=True,
    )

    async def one(key: str, call: Call) -> None:
        start = time.monotonic()
        try:
            answer: Answer = await retrying(_send, client, endpoint.model, call)
        except _Passing as error:
            failures[key] = f"{error} after {requests.retries + 1} tries"
            return
        except openai.APIStatusError as error:
            if error.status_code in REFUSED:
                raise UserError(
                    f"model {endpoint.model} at {endpoint.base_url}: HTTP {error.status_code}: {_message(error)}",
                    REQUEST_REFUSED,
                ) from None
            failures[key] = f"HTTP {error.status_code}: {_message(error)}"
            return
        await writer.put(Record(key, endpoint.identity, call.kind, answer, time.monotonic() - start))

    async def worker() -> None:
        nonlocal finished
        for key, call in queue:
            await one(key, call)
            finished += 1
            progress.advance(note=f"{len(failures)} failed" if failures else "")
            if len(failures) >= BUDGET_FLOOR and len(failures) > requests.failure_budget * finished:
                raise UserError(
                    f"model {endpoint.model}: {len(failures)} of {finished} requests failed, more than "
                    f"requests.failure_budget ({requests.failure_budget:.0%}); the last: {list(failures.values())[-1]}",
                    QUALITY,
                )

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(requests.concurrency, len(todo))):
                group.create_task(worker())
    except* UserError as errors:
        raise errors.exceptions[0] from None
    finally:
        await client.close()
    return failures


class Client:
    """Asks one model: a context manager that starts a local server with the first call the ledger lacks, if it comes.

    `model_dir`: the model's directory, as stage models left it. `card` is its identity card.
    """

    def __init__(self, model_dir: str | Path, serve: Serve, requests: Requests, ledger: Ledger):
        self.card = load_card(model_dir)
        self._identity = identity_of(self.card, serve)
        self._connect = lambda: endpoint(model_dir, serve, requests)
        self._requests, self._ledger = requests, ledger
        self._servers = ExitStack()
        self._endpoint: Endpoint | None = None

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: Any) -> None:
        self._servers.__exit__(*exception)

    def ask(self, calls: Sequence[Call], label: str) -> list[Outcome]:
        """One outcome a call, in the calls' order.

        Raises `UserError`: MODEL_UNAVAILABLE where a local server can't start, REQUEST_REFUSED where the server refuses
        the key or the model, QUALITY where more than `requests.failure_budget` of the finished requests failed, or no
        call has an answer. What was answered by then is in the ledger.
        """
        keys = [call.key(self._identity) for call in calls]
        known = self._ledger.known(keys)
        todo = {key: call for key, call in zip(keys, calls, strict=True) if key not in known}
        failures: dict[str, str] = {}
        if todo:
            self._endpoint = self._endpoint or self._servers.enter_context(self._connect())
            with Progress(label, len(todo), "calls") as progress:
                failures = asyncio.run(_ask_all(todo, self._endpoint, self._ledger, self._requests, progress))
        answers = self._ledger.get_many(keys)
        outcomes = [Outcome(answers.get(key), failures.get(key)) for key in keys]
        if failures and all(outcome.answer is None for outcome in outcomes):
            raise UserError(
                f"model {self.card.name}: none of {len(outcomes)} requests was answered; the last: "
                f"{outcomes[-1].reason}",
                QUALITY,
            )
        return outcomes
