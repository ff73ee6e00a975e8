"""Where a user's turn starts and how it ends, read off the tokenizer's own chat template: a first turn or a later one.

A sentinel is rendered as the user's message; what stands before it is the pre-query prefix that the model continues,
what stands behind it tells how a turn ends. Nothing here knows a model by name.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anamnesis.chat import needs_offsets, render
from anamnesis.errors import UserError

SENTINEL = "qxsentinelzv"  # letters only: a template may trim white space
# What templates of any family put around turns; in a text they would be read as the end of it.
TEMPLATE_PIECES = re.compile(r"<\|[^|>]*\|>|<(start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?s>")


@dataclass(frozen=True)
class PreQuery:
    """The start of a user's turn.

    `ids`: token ids to continue, with the BOS token once where the template has one; `text` is the same as text.
    `stop_ids`: token ids that end the turn; `stop_strings`: texts that do, where the template has no token for it.
    """

    text: str
    ids: list[int]
    stop_ids: list[int]
    stop_strings: list[str]


def _ids_before(tokenizer: Any, text: str, end: int) -> list[int]:
    """Token ids of `text[:end]`, as they are when the whole text is tokenised.

    A token that reaches over `end` is dropped: where a template puts a space before the user's text, that space belongs
    to the first word's token and the model has to write it.
    """
    needs_offsets(tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids: list[int] = []
    for token, (_, stop) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
        if stop > end:
            break
        ids.append(token)
    return ids


def _turn_end(tokenizer: Any, messages: list[dict[str, str]], text: str) -> str:
    """What the template puts behind a user's turn, up to the assistant's header."""
    whole = render(tokenizer, messages, generate=True)
    tail = whole[whole.index(SENTINEL) + len(SENTINEL) :]
    short = text[text.index(SENTINEL) + len(SENTINEL) :]
    return short or tail


def pre_query(
    tokenizer: Any, system: str | None = None, prefix: str | None = None, history: Sequence[dict[str, str]] = ()
) -> PreQuery:
    """Derive the pre-query prefix and the stop ids of any chat model.

    `system`: a system message to render before the turn; None leaves what the template does by itself. `prefix`: text
    that replaces the derived prefix. `history`: whole turns, user and assistant, that stand before this one; the
    template renders them with it, for some write earlier turns otherwise than the last. Raises `UserError` where there
    is no chat template, where it loses or repeats the message, or where it refuses a system message.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise UserError(
            f"{tokenizer.name_or_path}: no chat template, so there is no user's turn to continue; use a chat model"
        )
    messages = [*history, {"role": "user", "content": SENTINEL}]
    if system is not None:
        messages.insert(0, {"role": "system", "content": system})
    text = render(tokenizer, messages)
    if text.count(SENTINEL) != 1:
        raise UserError(
            f"chat template of {tokenizer.name_or_path}: shows the user's message {text.count(SENTINEL)} times"
        )
    if prefix is None:
        start = text.index(SENTINEL)
        ids = _ids_before(tokenizer, text, start)
        prefix_text = text[:start]
    else:
        ids, prefix_text = tokenizer(prefix, add_special_tokens=False)["input_ids"], prefix
    bos = tokenizer.bos_token_id
    while bos is not None and ids[:2] == [bos, bos]:
        ids = ids[1:]  # a template that writes BOS, tokenised by one that adds it
    if not ids:
        raise UserError(
            f"chat template of {tokenizer.name_or_path}: nothing stands before the user's message to continue"
        )
    special = set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values())
    end = _turn_end(tokenizer, messages, text)
    stop_ids = {tokenizer.eos_token_id} - {None}
    end_specials = [token for token in tokenizer(end, add_special_tokens=False)["input_ids"] if token in special]
    stop_ids.update(end_specials[:1])
    stop_strings = [] if end_specials or not end.strip() else [end.strip().splitlines()[0]]
    return PreQuery(prefix_text, list(ids), sorted(int(i) for i in stop_ids), stop_strings)
