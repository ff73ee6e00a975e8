"""From a response to a score: the prompt a judge reads, and the ladder that turns its reply into a vote or a NULL.

Mode `expected` reads the probabilities of the score token: with p_k the probability of the token k, renormalised over
k = 1..5, the score is the sum of k p_k. Mode `score` asks for the line `Score: <rating>` alone, mode `justify` for a
reason before it. The ladder: constrained decoding (our own server) or a strict parse of the last line, one re-ask,
missing. A response can't forge a vote: it stands between marks that its writer can't know, a chat template's own tokens
in it are broken up, only the judge's last line counts, and one that may be quoted is asked for again.
"""

import math
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from anamnesis.chat import render
from anamnesis.errors import QUALITY, UserError
from anamnesis.records import digest, seed_of
from anamnesis.sections import Judge
from anamnesis.wire import DIGITS, Call, Outcome

LAST_LINE = re.compile(r"Score: ?([1-5])")
SCORE_LINE = "Score: [1-5]"
NO_WORD = re.compile(r"[^\w:]|_")
# One or two sentences and the score line. No counted repetition: xgrammar needs seconds for `[^\n]{10,400}`, and vLLM
# gives up after five.
SENTENCE = "[^\\n.!?。！？]+[.!?。！？]"
CONSTRAINT = rf"{SENTENCE}( ?{SENTENCE})?\n{SCORE_LINE}"
SHORT = "Write no reason this time. Reply with the last line only."
TRANSCRIPT = "(This is a whole conversation. The answer to grade replies to its last turn and should fit all of it.)"
REASK = "Your last line was not in the form asked for. Reply with that one line and nothing else:\nScore: <rating>"
LEAST_MASS = 0.05  # of probability on 1..5, below which the reply says nothing about the score
EXPECTED_TOKENS = 8  # of a reply that is the score line alone
SCORE_TOKENS = REASK_TOKENS = 16  # of the same, with room for a model that marks it up
TOP_LOGPROBS = 20  # what vLLM and OpenAI allow
PARSE_FLOOR = 20  # replies below which a parse rate ends no stage
# What known chat templates write around turns: <|im_end|>, <｜User｜>, <|turn>, <s>, <end_of_turn>, [INST], [|user|] …
CONTROL_TOKEN = re.compile(
    r"<(?=\|[^|<>\s]{1,40}\|>|｜[^｜<>\s]{1,40}｜>|\|\w{1,40}>|\w{1,40}\|>"
    r"|/?(?:s|bos|eos|unk|pad|think|tool_call|tool_response|role|seed:[\w:]{1,40})>|<?/?SYS>"
    r"|(?:start|end)_of_(?:turn|utterance)>|[se]op>|eo[adhm]>|[BE]O[PS]_TOKEN>|(?:extra_id_|reserved_|unused)\d{1,5}>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK)\]"
    r"|\|[A-Za-z_]{1,40}\|\]|[gs]MASK\]|[BE]OS\]|e~\[)"
    r"|\](?=~!?b[\[\]])"
)
BRACKETED = re.compile(r"<.+>|\[.+\]")
WORDS = re.compile(r"[\w\s]*")

Mode = Literal["expected", "score", "justify"]
ADVICE = {  # where too few replies hold a score
    "justify": "set judges.{0}.mode to score or expected, raise judges.{0}.max_tokens, or take another judge",
    "score": "set judges.{0}.mode to expected (or to justify, for a model that thinks first), or take another judge",
    "expected": "set judges.{0}.mode to score (or to justify, for a model that thinks first), or take another judge",
}


@dataclass(frozen=True)
class Vote:
    """A score from 1 to 5, or None with the reason why it is missing; `parse` is the rung that gave it.

    `answered`: there was a reply; `again`: it holds no readable score, and one more question may mend that.
    """

    score: float | None
    parse: str
    justification: str = ""
    reason: str | None = None
    answered: bool = True
    again: bool = False


@dataclass(frozen=True)
class Question(Call):
    """A judge's first call, with what its replies are read against; neither is sent, nor in the key.

    `material`: the texts between the marks, which a reply may quote; `control`: the tokens that are broken in them.
    """

    material: str = field(default="", repr=False)
    control: re.Pattern[str] = field(default=CONTROL_TOKEN, repr=False)


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
    control: re.Pattern[str] = CONTROL_TOKEN,
) -> list[dict[str, str]]:
    """The judge's conversation: one user turn, with the instruction before the response, so that prefixes are shared.

    `context`: a system message that the instruction drew, and the turns before it. `control`: see `control_of`.
    """
    mark = digest("mark", secret, instruction)[:8]
    asked = transcript(instruction, context, mark, control) if context else defused(instruction, control)
    shown = prompt.substitute(instruction=asked, response=defused(response, control), mark=mark)
    return [{"role": "user", "content": shown}]


def transcript(instruction: str, context: Sequence[Mapping[str, str]], mark: str, control: re.Pattern[str]) -> str:
    """A conversation for the prompt's $instruction: each turn below a marked line of its own, the instruction last."""
    turns = [f"<<<{turn['role']} {mark}>>>\n{defused(turn['content'], control)}" for turn in context]
    return "\n\n".join([TRANSCRIPT, *turns, f"<<<user, to be answered {mark}>>>\n{defused(instruction, control)}"])


def defused(text: str, control: re.Pattern[str] = CONTROL_TOKEN) -> str:
    """The text with a space in each token of a chat template, which would end our turn and begin another."""
    return control.sub(lambda match: f"{match.group()} ", text)


def control_of(tokenizer: Any) -> re.Pattern[str]:
    """The first character of each token that a text must not bring to this judge: CONTROL_TOKEN and the judge's own.

    Its own are the special ones but plain words, and of the other added ones those in brackets that its template
    writes: added tokens may also be words, white space or HTML. Only what this tokenizer reads as that token counts.
    """
    added = {str(token): token.special for token in tokenizer.added_tokens_decoder.values()}
    special = {*tokenizer.all_special_tokens, *(token for token, is_special in added.items() if is_special)}
    template = str(tokenizer.chat_template)
    ours = {token for token in special if len(token) > 1 and not WORDS.fullmatch(token)}
    ours |= {token for token in added if BRACKETED.fullmatch(token) and token in template}
    begins: dict[str, list[str]] = {}
    for token in sorted(ours):
        if tokenizer.convert_tokens_to_ids(token) in tokenizer(token, add_special_tokens=False)["input_ids"]:
            begins.setdefault(token[0], []).append(re.escape(token[1:]))
    own = [f"{re.escape(first)}(?={'|'.join(rests)})" for first, rests in begins.items()]
    return re.compile("|".join([CONTROL_TOKEN.pattern, *own]))


def parse_score(reply: str) -> int | None:
    """The rating of a reply's last non-empty line, if that line is `Score: ` and a digit 1..5 and nothing else.

    Lines end at a line feed alone: other separators (U+2028, form feed …) can stand in what a judge quotes.
    """
    lines = [line.strip(" \t\r") for line in reply.split("\n") if line.strip()]
    match = LAST_LINE.fullmatch(lines[-1]) if lines else None
    return int(match.group(1)) if match else None


def may_quote(rating: int, material: str) -> bool:
    """Whether a line `Score: <rating>` may come from the material, where white space, case and marks count for nothing.

    Then a reply that ends in that line can't be told from one that ends in a quotation, whatever it says before.
    """
    plain = unicodedata.normalize("NFKC", material).casefold()
    return f"score:{rating}" in NO_WORD.sub("", plain)


def expected_score(logprobs: dict[str, float] | None) -> float | None:
    """Expectation over the natural-log probabilities of the tokens 1..5; None where they hold hardly any."""
    mass = _mass(logprobs)
    total = sum(mass.values())
    if total < LEAST_MASS:
        return None
    return round(sum(int(digit) * share for digit, share in mass.items()) / total, 6)


def _mass(logprobs: dict[str, float] | None) -> dict[str, float]:
    """Probability on each of the tokens 1..5, with and without white space."""
    mass = dict.fromkeys(DIGITS, 0.0)
    for token, logprob in (logprobs or {}).items():
        if token.strip() in mass:
            mass[token.strip()] += math.exp(logprob)
    return mass


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
    request = {
        "messages": _short(messages),
        "max_tokens": EXPECTED_TOKENS,
        "temperature": 0.0,
        "logprobs": True,
        "top_logprobs": TOP_LOGPROBS,
    }
    return Call("chat", request)


def _short(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """The conversation, asking for the score line alone."""
    return [*messages[:-1], {"role": "user", "content": f"{messages[-1]['content']}\n\n{SHORT}"}]


def score_call(messages: list[dict[str, str]], judge: Judge, seed: int, constrained: bool) -> Call:
    """Mode `score`: the score line alone; `constrained` and `seed` as in `justify_call`."""
    short = justify_call(_short(messages), judge, seed, constrained).request | {"max_tokens": SCORE_TOKENS}
    if constrained:
        short["extra_body"] = {"structured_outputs": {"regex": SCORE_LINE}}
    return Call("chat", short)


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


def reask_call(call: Question, outcome: Outcome) -> Call:
    """The one further question after a reply without a readable last line; constrained where the first one was.

    The reply is shown to the judge as its own turn, and may quote: control tokens are broken in it as well.
    """
    reply = defused((outcome.answer.text or "") if outcome.answer else "", call.control)
    messages = [*call.request["messages"], {"role": "assistant", "content": reply}, {"role": "user", "content": REASK}]
    request = call.request | {"messages": messages, "max_tokens": REASK_TOKENS}
    if "extra_body" in request:
        request["extra_body"] = {"structured_outputs": {"regex": SCORE_LINE}}
    return Call("chat", request)


def vote_of(mode: Mode, local: bool, outcome: Outcome, material: str, reasked: bool = False) -> Vote:
    """The vote in a judge's reply. `local`: it was our own server's; `reasked`: it answers `reask_call`.

    `material`: what the judge was shown between the marks. A last line that may be quoted from it is no vote, but for a
    reply that is that line alone where nothing else was possible (our own server in mode `score`) or wanted (a re-ask).
    A remote reply in mode `expected` must end in a readable line as well, and its probabilities must be that line's: an
    endpoint gives them for every token of the reply, whatever it says before.
    """
    answer = outcome.answer
    if answer is None:
        return Vote(None, "missing", reason=outcome.reason, answered=False)
    if mode == "expected" and local:
        score = expected_score(answer.logprobs)
        return Vote(score, "logprobs") if score is not None else Vote(None, "missing", reason="no rating is probable")
    text = (answer.text or "").strip()
    rating = parse_score(answer.text or "")  # of the whole: strip() takes separators away that are no line feed
    line_alone = LAST_LINE.fullmatch(text) is not None and (reasked or (local and mode == "score"))
    reason = None
    if answer.finish_reason == "length":  # a line that was cut may have gone on
        reason = "cut at max_tokens"
    elif rating is None:
        reason = "no readable last line"
    elif not line_alone and may_quote(rating, material):
        reason = "last line may be quoted"
    if rating is None or reason:
        return Vote(None, "missing", text, reason, again=not reasked)
    reason_given = "\n".join(text.split("\n")[:-1]).strip()
    if mode != "expected":
        return Vote(float(rating), "reask" if reasked else "constrained" if local else "strict", reason_given)
    mass = _mass(answer.logprobs)
    score = expected_score(answer.logprobs)
    if score is None or mass[str(rating)] < max(mass.values()):
        reason = "no probabilities of the rating" if score is None else "probabilities of another rating"
        return Vote(None, "missing", text, reason)
    return Vote(score, "reask" if reasked else "logprobs", reason_given)


def check_parse_rate(judge: str, mode: Mode, votes: Sequence[Vote], least: float) -> None:
    """Raise `UserError` (QUALITY) where less than `least` of a judge's replies hold a score; not for under PARSE_FLOOR.

    Requests that failed are no replies: they are the failure budget's business.
    """
    replies = [vote for vote in votes if vote.answered]
    missing = [str(vote.reason) for vote in replies if vote.score is None]
    rate = 1 - len(missing) / max(1, len(replies))
    if len(replies) < PARSE_FLOOR or rate >= least:
        return
    why, _ = Counter(missing).most_common(1)[0]
    raise UserError(
        f"judge {judge}: {rate:.0%} of {len(replies)} replies hold a score, less than judging.min_parse_rate "
        f"({least:.0%}); most often: {why}; {ADVICE[mode].format(judge)}; "
        f"the replies are in data/judgments/{judge}.parquet, and no answered call is lost",
        QUALITY,
    )


def judgment(response_id: str, judge: str, vote: Vote, tokens: int) -> dict[str, Any]:
    """A row of `records.JUDGMENTS`."""
    return {"response_id": response_id, "judge": judge, "justification": vote.justification, **_scored(vote, tokens)}


def control(pair: Mapping[str, Any], judge: str, told: tuple[Vote, int] | None) -> dict[str, Any]:
    """A row of `records.CONTROLS`: a row of `controls.plant`, and vote and tokens where the judge was asked."""
    return {**pair, "judge": judge, **(_scored(*told) if told else {"score": None, "parse": None, "tokens": 0})}


def _scored(vote: Vote, tokens: int) -> dict[str, Any]:
    return {
        "score": vote.score,
        "parse": vote.parse,
        "tokens": tokens,
        "status": "ok" if vote.score is not None else "failed",
        "reason": vote.reason,
    }
