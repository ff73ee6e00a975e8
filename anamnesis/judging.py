"""From a response to a score: the prompt a judge reads, and the ladder that turns its reply into a vote or a NULL.

Mode `expected` reads the probabilities of the score token: with p_k the probability of the token k, renormalised over
k = 1..5, the score is the sum of k p_k. Mode `justify` lets the judge write its reason and a last line `Score:
<rating>`. A response can't forge a vote: it stands between marks that its writer can't know, and only the judge's own
last line counts.
"""

import math
import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anamnesis.chat import render
from anamnesis.errors import UserError
from anamnesis.ledger import Answer
from anamnesis.params import Judge
from anamnesis.records import digest, seed_of
from anamnesis.wire import DIGITS, Call, Outcome

LAST_LINE = re.compile(r"Score: ?([1-5])")
CONSTRAINT = r"[^\n]{10,400}\nScore: [1-5]"
TRANSCRIPT = "(This is a whole conversation. The answer to grade replies to its last turn and should fit all of it.)"
REASK = "Your last line was not in the form asked for. Reply with that one line and nothing else:\nScore: <rating>"
LEAST_MASS = 0.05  # of probability on 1..5, below which the reply says nothing about the score
EXPECTED_TOKENS = 8  # of a reply that is the score line alone
REASK_TOKENS = 16  # of the same, asked for once more
TOP_LOGPROBS = 20  # what vLLM and OpenAI allow


@dataclass(frozen=True)
class Vote:
    """A score from 1 to 5, or None with the reason why it is missing; `parse` is the rung that gave it."""

    score: float | None
    parse: str
    justification: str = ""
    reason: str | None = None


def load_prompt(path: str | Path) -> string.Template:
    """Read a judge prompt; it must hold $instruction, $response and $mark. Raises `UserError` otherwise."""
    try:
        prompt = string.Template(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {error}; it must be a text file") from None
    if not prompt.is_valid() or {"instruction", "response", "mark"} - set(prompt.get_identifiers()):
        raise UserError(f"{path}: a judge prompt holds $instruction, $response and $mark ($$ for a dollar sign)")
    return prompt


def judge_messages(
    prompt: string.Template,
    instruction: str,
    response: str,
    secret: object,
    context: Sequence[Mapping[str, str]] = (),
) -> list[dict[str, str]]:
    """The judge's conversation: one user turn, the rubric first and the response last, so that prefixes are shared.

    `context`: a system message that the instruction drew, and the turns before it.
    """
    mark = digest("mark", secret, instruction)[:8]
    shown = transcript(instruction, context, mark) if context else instruction
    return [{"role": "user", "content": prompt.substitute(instruction=shown, response=response, mark=mark)}]


def transcript(instruction: str, context: Sequence[Mapping[str, str]], mark: str) -> str:
    """A conversation for the prompt's $instruction: each turn below a marked line of its own, the instruction last."""
    turns = [f"<<<{turn['role']} {mark}>>>\n{turn['content']}" for turn in context]
    return "\n\n".join([TRANSCRIPT, *turns, f"<<<user, to be answered {mark}>>>\n{instruction}"])


def parse_score(reply: str) -> int | None:
    """The rating of a reply's last non-empty line, if that line is `Score: ` and a digit 1..5 and nothing else."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    match = LAST_LINE.fullmatch(lines[-1]) if lines else None
    return int(match.group(1)) if match else None


def expected_score(logprobs: dict[str, float] | None) -> float | None:
    """Expectation over the natural-log probabilities of the tokens 1..5; None where they hold hardly any."""
    mass = dict.fromkeys(DIGITS, 0.0)
    for token, logprob in (logprobs or {}).items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    total = sum(mass.values())
    if total < LEAST_MASS:
        return None
    return round(sum(int(digit) * share for digit, share in mass.items()) / total, 6)


def score_prefix(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    """Token ids of the rendered conversation and `Score: `, up to the token that holds the rating.

    Raises `UserError` where the tokenizer does not give each rating a token of its own.
    """
    rendered = render(tokenizer, messages, generate=True)
    whole = [tokenizer(f"{rendered}Score: {digit}", add_special_tokens=False)["input_ids"] for digit in DIGITS]
    if len({tuple(ids[:-1]) for ids in whole}) != 1 or len({ids[-1] for ids in whole}) != len(DIGITS):
        raise UserError(
            f"{tokenizer.name_or_path}: the ratings 1..5 are not one token each; set judges.<judge>.mode to justify"
        )
    return list(whole[0][:-1])


def local_expected_call(tokenizer: Any, messages: list[dict[str, str]]) -> Call:
    """Mode `expected` on our own vLLM server: one token behind `Score: `, as token ids."""
    prompt = score_prefix(tokenizer, messages)
    return Call("completion", {"prompt": prompt, "max_tokens": 1, "temperature": 0.0, "logprobs": TOP_LOGPROBS})


def remote_expected_call(messages: list[dict[str, str]]) -> Call:
    """Mode `expected` on a chat endpoint: the judge is asked for the score line alone."""
    content = f"{messages[-1]['content']}\n\nWrite no reason this time. Reply with the last line only."
    short = [*messages[:-1], {"role": "user", "content": content}]
    request = {
        "messages": short,
        "max_tokens": EXPECTED_TOKENS,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }
    return Call("chat", request)


def justify_call(messages: list[dict[str, str]], judge: Judge, seed: int, constrained: bool) -> Call:
    """Mode `justify`: reason and last line; `constrained` where the server takes vLLM's structured outputs.

    The seed of the request is derived from `seed` and the conversation.
    """
    request: dict[str, Any] = {
        "messages": messages,
        "max_tokens": judge.max_tokens,
        "temperature": judge.temperature,
        "seed": seed_of(seed, "judge", messages[-1]["content"]),
    }
    if constrained:
        request["extra_body"] = {"structured_outputs": {"regex": CONSTRAINT}}
    return Call("chat", request)


def reask_call(call: Call, outcome: Outcome) -> Call:
    """The one further question after a reply without a readable last line."""
    reply = (outcome.answer.text or "") if outcome.answer else ""
    messages = [*call.request["messages"], {"role": "assistant", "content": reply}, {"role": "user", "content": REASK}]
    request = {key: value for key, value in call.request.items() if key != "extra_body"}
    return Call("chat", request | {"messages": messages, "max_tokens": REASK_TOKENS})


def vote_expected(answer: Answer | None, reason: str | None, score_line: bool = False) -> Vote:
    """The vote in an `expected` reply; with `score_line` the reply must end in a readable last line of its own."""
    if answer is None:
        return Vote(None, "missing", reason=reason)
    if score_line and parse_score(answer.text or "") is None:
        return Vote(None, "missing", (answer.text or "").strip(), "no readable last line")
    score = expected_score(answer.logprobs)
    if score is None:
        return Vote(None, "missing", reason="no probability on a rating")
    return Vote(score, "logprobs")


def vote_justify(answer: Answer | None, reason: str | None, rung: str) -> Vote:
    """The vote in a `justify` reply; `rung` names the step of the ladder that asked for it."""
    if answer is None:
        return Vote(None, "missing", reason=reason)
    text = answer.text or ""
    score = parse_score(text)
    if score is None:
        return Vote(None, "missing", text.strip(), "no readable last line")
    return Vote(float(score), rung, "\n".join(text.strip().splitlines()[:-1]).strip())


def judgment(response_id: str, judge: str, vote: Vote, tokens: int) -> dict[str, Any]:
    """A row of `records.JUDGMENTS`."""
    return {
        "response_id": response_id,
        "judge": judge,
        "score": vote.score,
        "parse": vote.parse,
        "justification": vote.justification,
        "tokens": tokens,
        "status": "ok" if vote.score is not None else "failed",
        "reason": vote.reason,
    }
