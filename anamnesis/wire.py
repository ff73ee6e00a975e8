"""One request on the wire: what is sent, how its reply is read, and which errors a later try can mend.

`send` makes one try. What it raises says what to do next: `Passing` (try again), `Final` (this row alone has failed) or
`UserError` (the key or the model is refused: the stage ends).
"""

import email.utils
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import openai

from anamnesis.errors import REQUEST_REFUSED, UserError
from anamnesis.ledger import Answer, key_of

PASSING = frozenset({408, 409, 425, 429, *range(500, 600)})
REFUSED = frozenset({401, 402, 403})  # 402: several providers' word for an account that is empty
BAD_REQUEST, NOT_FOUND, TOO_MANY, SERVER_ERROR = 400, 404, 429, 500
UNKNOWN_MODEL = re.compile(
    r"\bmodel\b.*\b(not found|not exist|unknown|not a valid|not valid)\b|\b(unknown|invalid|no such) model\b",
    re.IGNORECASE,
)
NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
DIGITS = tuple("12345")
SAID_CHARACTERS = 200
UNREACHABLE = "connection failed"
LEAST_KEY = 8  # characters; what is shorter is no key but a word (`none`)


@dataclass(frozen=True)
class Call:
    """One sample asked for. `request` is what goes over the wire besides the model's name; all of it is in the key."""

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


class Passing(Exception):
    """An error that a later try may not meet.

    `kind` is its class for counts; `wait_s` what the server asked to wait; `overload` says that fewer requests at once
    may help, `unreachable` that nobody answered at all, `paid` that the server may charge for it all the same; `said`
    has the cause in the system's words.
    """

    def __init__(
        self,
        kind: str,
        wait_s: float | None = None,
        *,
        overload: bool = False,
        unreachable: bool = False,
        paid: bool = False,
        said: str = "",
    ):
        super().__init__(f"{kind}: {said}" if said else kind)
        self.said = said
        self.kind, self.wait_s, self.overload, self.unreachable = kind, wait_s, overload, unreachable
        self.paid = paid


class Final(Exception):
    """An error that no later try will mend; the row ends with it as its reason."""


def merged(calls: Sequence[Call]) -> dict[str, Any]:
    """One request for several samples of one prompt: the first one's, with `n` where there are more."""
    first = calls[0].request
    return first | {"n": len(calls)} if len(calls) > 1 else first


def grouped(todo: Mapping[str, Call], most: int) -> list[dict[str, Call]]:
    """Calls by key in groups of neighbours that differ in seed and sample index alone, at most `most` in each.

    Calls that ask for logprobs stay alone.
    """
    groups: list[dict[str, Call]] = []
    last: tuple[str, dict[str, Any]] | None = None
    for key, call in todo.items():
        common = (call.kind, {name: value for name, value in call.request.items() if name != "seed"})
        joins = groups and common == last and len(groups[-1]) < most and not call.request.get("logprobs")
        if joins:
            groups[-1][key] = call
        else:
            groups.append({key: call})
        last = common
    return groups


async def send(client: openai.AsyncOpenAI, model: str, calls: Sequence[Call]) -> list[Answer]:
    """Make one try for samples of one prompt; an answer each.

    Raises `Passing`, `Final`, or `UserError` (REQUEST_REFUSED) where the server refuses the key or the model.
    """
    request, kind = merged(calls), calls[0].kind
    try:
        if kind == "chat":
            body: Any = await client.chat.completions.create(model=model, **request)
        else:
            body = await client.completions.create(model=model, **request)
    except openai.APIStatusError as error:
        raise _judged(error, model, client) from error
    except openai.APITimeoutError as error:
        if type(error.__cause__).__name__ == "ConnectTimeout":
            raise Passing(UNREACHABLE, unreachable=True, said=_cause(error, client)) from error
        raise Passing("timed out", overload=True, paid=True) from error
    except openai.APIConnectionError as error:
        unreachable = type(error.__cause__).__name__ == "ConnectError"  # of whichever httpx openai is built on
        raise Passing(UNREACHABLE, unreachable=unreachable, paid=not unreachable, said=_cause(error, client)) from error
    except (openai.OpenAIError, ValueError) as error:
        raise Passing("unreadable reply", paid=True) from error
    return read(body, kind, len(calls))


def _cause(error: openai.APIConnectionError, client: openai.AsyncOpenAI) -> str:
    """Which server, and what the system says of the connection."""
    cause = error.__cause__
    return f"{client.base_url}: {short(cause) or type(cause or error).__name__}"


def read(body: Any, kind: str, count: int) -> list[Answer]:
    """The answers in a reply, in the order of their index: `count` of them, or fewer where the server ignores `n`.

    Raises `Passing` where it is not what was asked for.
    """
    try:
        choices = sorted(body.choices, key=lambda choice: choice.index)
        if not 1 <= len(choices) <= count:
            raise Passing("wrong number of choices", paid=True)
        read_one = _read_chat if kind == "chat" else _read_completion
        prompt_tokens = (body.usage and body.usage.prompt_tokens) or 0
        completion_tokens = (body.usage and body.usage.completion_tokens) or 0
        answers = []
        for place, choice in enumerate(choices):
            # Usage comes for a reply as a whole: the first answer carries the prompt, completions are shared evenly.
            share = completion_tokens // len(choices) + (place < completion_tokens % len(choices))
            answers.append(read_one(choice, 0 if place else prompt_tokens, share))
    except (ValueError, AttributeError, IndexError, KeyError, TypeError) as error:
        raise Passing("unreadable reply", paid=True) from error
    for answer in answers:
        # At `length` a reasoning model had no token left for its answer.
        if answer.text is None and answer.refusal is None and answer.finish_reason not in ("content_filter", "length"):
            raise Passing("reply without content", paid=True)
    return answers


def _whole(text: str | None) -> str | None:
    """A text without halves of characters (lone surrogates), which no file could hold."""
    return text and text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_chat(choice: Any, prompt_tokens: int, completion_tokens: int) -> Answer:
    logprobs = choice.logprobs.content if choice.logprobs else None
    return Answer(
        text=_whole(choice.message.content),
        finish_reason=choice.finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprobs=_score_position(logprobs) if logprobs else None,
        refusal=getattr(choice.message, "refusal", None),
    )


def _read_completion(choice: Any, prompt_tokens: int, completion_tokens: int) -> Answer:
    top = choice.logprobs.top_logprobs if choice.logprobs else None
    return Answer(
        text=_whole(choice.text),
        finish_reason=choice.finish_reason,
        prompt_tokens=prompt_tokens,
        completion_tokens=completion_tokens,
        logprobs={token: round(float(value), 6) for token, value in top[0].items()} if top else None,
    )


def _score_position(content: Sequence[Any]) -> dict[str, float]:
    """Top log-probabilities at the last position where a lone digit 1..5 was written, else at the first position."""
    position = next((token for token in reversed(content) if token.token.strip() in DIGITS), content[0])
    return {top.token: round(float(top.logprob), 6) for top in position.top_logprobs}


def _judged(error: openai.APIStatusError, model: str, client: openai.AsyncOpenAI) -> Exception:
    """What an HTTP error means for the row and for the stage."""
    status, said, base_url = error.status_code, message_of(error, client.api_key), client.base_url
    code = str(error.code or "")
    if status == TOO_MANY and (code in NO_CREDIT or error.type in NO_CREDIT):
        return UserError(
            f"model {model} at {base_url}: HTTP {status}: {said}; answered calls are kept", REQUEST_REFUSED
        )
    if status in PASSING:
        overload = status == TOO_MANY or status >= SERVER_ERROR
        return Passing(f"HTTP {status}", retry_after(error.response.headers), overload=overload)
    unknown = status in (BAD_REQUEST, NOT_FOUND) and (code == "model_not_found" or UNKNOWN_MODEL.search(said))
    if status in REFUSED or unknown:
        line = f"model {model} at {base_url}: HTTP {status}: {said}; correct its entry under models, or its key"
        return UserError(line, REQUEST_REFUSED)
    where = f" ({error.request.url})" if status == NOT_FOUND else ""  # most often a base_url without its /v1
    return Final(f"HTTP {status}: {said}{where}")


def message_of(error: openai.APIStatusError, key: str) -> str:
    """What the server said, in one short line; an API key that it repeats is left out."""
    body = error.body if isinstance(error.body, dict) else {}
    said = str(body.get("message") or error.message)
    return short(said.replace(key, "<key>") if len(key) >= LEAST_KEY else said)


def short(said: object) -> str:
    """A server's words in one line of SAID_CHARACTERS at most; empty for None."""
    return " ".join(str(said or "").split())[:SAID_CHARACTERS]


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait: Retry-After as a number or a date (RFC 9110, 10.2.3), None without one."""
    for name, factor in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * factor
        except ValueError:
            try:
                seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
            except ValueError:
                continue
        if seconds == seconds:  # no NaN
            return max(0.0, seconds)
    return None
