"""A conversation as tokens, and which of them the model is trained on.

In: a tokenizer with a chat template and messages `[{"role": ..., "content": ...}, ...]`. Out: token ids and a mask that
is true on every assistant turn's content and on the token that ends the turn, and on nothing else. The mask is found by
rendering prefixes of the conversation, so it needs no markers in the template; it never looks at the pad id, which in
SmolLM2 is the end-of-turn token itself. A token that joins the template's last line break to an answer's leading white
space is the answer's.
"""

import datetime
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anamnesis.errors import UserError

Message = dict[str, str]

# Some templates print today's date: a fixed one keeps a training set the same tomorrow.
TODAY = datetime.datetime(2025, 1, 1)


@dataclass(frozen=True)
class Encoded:
    """One conversation: `ids` and `supervised` have equal length; `supervised[j]` says that token j is a target."""

    ids: Sequence[int]
    supervised: Sequence[int]  # of truth values


def tokenizer_of(model_dir: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer in a model directory. Takes seconds the first time, for transformers."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model_dir, trust_remote_code=trust_remote_code)


def render(tokenizer: Any, messages: Sequence[Message], generate: bool = False) -> str:
    """The conversation as the template writes it; with `generate`, up to where the next answer would begin.

    Raises `UserError` where there is no template or it refuses these messages.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(f"{tokenizer.name_or_path}: the tokenizer has no chat template; take a chat model")
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generate, strftime_now=TODAY.strftime
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise UserError(f"{tokenizer.name_or_path}: its chat template refuses the turns {roles}: {error}") from None


def needs_offsets(tokenizer: Any) -> None:
    """Raise `UserError` where the tokenizer can't say which characters a token stands for."""
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{tokenizer.name_or_path}: needs a fast tokenizer (tokenizer.json), for character offsets")


def encode(tokenizer: Any, messages: Sequence[Message]) -> Encoded:
    """Tokenize a conversation and mark what the model is trained on (see the module's docstring).

    Raises `UserError` where the template is not prefix-stable: the first turns must render to a prefix of the whole.
    """
    text = render(tokenizer, messages)
    spans = assistant_spans(tokenizer, messages, text)
    needs_offsets(tokenizer)
    tokens = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)  # the template wrote the BOS
    supervised = [
        any(max(start, first) < min(end, last) for first, last in spans) for start, end in tokens["offset_mapping"]
    ]
    return Encoded(list(tokens["input_ids"]), supervised)


def assistant_spans(tokenizer: Any, messages: Sequence[Message], text: str) -> list[tuple[int, int]]:
    """Character spans `[first, last)` of `text`, the rendered conversation, that are trained on: one a turn."""
    spans = []
    for turn, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        if turn == 0:
            raise UserError("a conversation begins with an assistant turn; put the user's turn before it")
        before = render(tokenizer, messages[:turn], generate=True)
        through = render(tokenizer, messages[: turn + 1])
        if not (text.startswith(through) and through.startswith(before)):
            raise UserError(
                f"{tokenizer.name_or_path}: its chat template is not prefix-stable: turns 1 to {turn + 1} render "
                "differently alone than in a longer conversation, so the assistant's tokens can't be found; "
                "set another chat_template"
            )
        answer = through[len(before) :]
        spans.append((len(before), len(before) + _end_of_turn(tokenizer, answer, message["content"])))
    return spans


def _end_of_turn(tokenizer: Any, answer: str, content: str) -> int:
    """How much of `answer` (content and whatever the template puts after it) is the content and its end-of-turn token.

    The end of turn is the first added token after the content; without one, what is there up to trailing white space.
    """
    found = answer.find(content.strip())  # templates may trim the content
    if found < 0:  # or rewrite it
        return len(answer.rstrip())
    start = found + len(content.strip())
    tail = answer[start:]
    ends = [(tail.find(token), -len(token)) for token in tokenizer.get_added_vocab() if token in tail]
    if ends:
        at, negative_length = min(ends)
        return start + at - negative_length
    return start + len(tail.rstrip() or tail)
