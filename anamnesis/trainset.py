"""From conversations to the batches of a training run: tokens, what is trained on, packing, order, learning rate.

In: rows with `row_id`, `messages` and `source`, and the `train` section of params.yaml. Everything is decided before
the first step and depends on rows, settings and seed only.
"""

import math
import random
import textwrap
from array import array
from collections.abc import Sequence
from typing import Any

from anamnesis import chat, packing
from anamnesis.errors import UserError
from anamnesis.records import seed_of
from anamnesis.sections import Train

AUDITED_ROWS = 3
SHOWN_CHARACTERS = 600  # of an audited row, at each end


def encode_rows(
    tokenizer: Any, rows: Sequence[dict[str, Any]], sequence_length: int
) -> tuple[list[chat.Encoded], dict[str, Any]]:
    """Tokenize rows, cut them to `sequence_length`, and count what happened: `(examples, audit)`.

    Raises `UserError` where a row has no token left to train on.
    """
    examples: list[chat.Encoded] = []
    sources: dict[str, dict[str, int]] = {}
    truncated = 0
    empty: list[dict[str, Any]] = []
    without_answer: list[dict[str, Any]] = []
    for row in rows:
        whole = chat.encode(tokenizer, row["messages"])
        example = chat.Encoded(
            array("i", whole.ids[:sequence_length]),  # a twentieth of the memory of lists
            bytes(whole.supervised[:sequence_length]),
        )
        truncated += len(whole.ids) > sequence_length
        if not any(example.supervised[1:]):
            (empty if any(whole.supervised) else without_answer).append(row)
        source = sources.setdefault(row["source"], {"rows": 0, "tokens": 0, "supervised_tokens": 0})
        source["rows"] += 1
        source["tokens"] += len(example.ids)
        source["supervised_tokens"] += sum(example.supervised[1:])
        examples.append(example)
    if without_answer:
        raise UserError(f"{_some(without_answer)}: no assistant turn to train on; correct the rows' messages")
    if empty:
        raise UserError(
            f"{_some(empty)}: no assistant token is left in the first {sequence_length} tokens; "
            "raise train.sequence_length or shorten the prompts"
        )
    if not examples:
        raise UserError("the training set has no rows; look at mix.total and the stage mix")
    firsts = {row["source"]: index for index, row in reversed(list(enumerate(rows)))}
    shown = list(dict.fromkeys([*sorted(firsts.values()), *range(len(rows))]))[:AUDITED_ROWS]
    audit = {
        "rows": len(examples),
        "tokens": sum(len(example.ids) for example in examples),
        "supervised_tokens": sum(source["supervised_tokens"] for source in sources.values()),
        "truncated_rows": truncated,
        "truncated_share": round(truncated / len(examples), 6),
        "rows_without_supervised_tokens": 0,  # it would have been an error
        "sources": dict(sorted(sources.items())),
        "samples": [{"row_id": rows[index]["row_id"], "text": marked(tokenizer, examples[index])} for index in shown],
    }
    return examples, audit


def _some(rows: list[dict[str, Any]]) -> str:
    """Rows by the beginning of what their user says: a row id is in no file of the user's."""
    says = [next((m["content"] for m in row["messages"] if m["role"] == "user"), "") for row in rows[:3]]
    shown = ", ".join(repr(textwrap.shorten(text, 60, placeholder=" …")) for text in says)
    return f"row {shown}" if len(rows) == 1 else f"{len(rows)} rows ({shown}{', …' if len(rows) > 3 else ''})"


def marked(tokenizer: Any, example: chat.Encoded) -> str:
    """An example as text, what is trained on between ⟦ and ⟧; the middle of a long one is left out."""
    parts: list[str] = []
    start = 0
    while start < len(example.ids):
        end = start
        while end < len(example.ids) and bool(example.supervised[end]) == bool(example.supervised[start]):
            end += 1
        text = tokenizer.decode(list(example.ids[start:end]), skip_special_tokens=False)
        parts.append(f"⟦{text}⟧" if example.supervised[start] else text)
        start = end
    text = "".join(parts)
    if len(text) > 2 * SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} […] {text[-SHOWN_CHARACTERS:]}"
    return text


def sequences_of(examples: Sequence[chat.Encoded], settings: Train) -> list[list[int]]:
    """Indices of examples, a list a sequence: packed, or one example each."""
    if settings.packing:
        return packing.pack([len(example.ids) for example in examples], settings.sequence_length)
    return [[index] for index in range(len(examples))]


def batches_of(count: int, settings: Train, seed: int) -> list[list[int]]:
    """The global batch of every optimiser step: indices of sequences, each exactly once an epoch.

    The order is drawn anew for each epoch from its own seed. An epoch's last batch is smaller where the numbers don't
    divide; no batch mixes two epochs.
    """
    batches = []
    for epoch in range(settings.epochs):
        order = list(range(count))
        random.Random(seed_of(seed, "epoch", epoch)).shuffle(order)
        batches += [order[start : start + settings.global_batch] for start in range(0, count, settings.global_batch)]
    return batches


def learning_rate(step: int, steps: int, settings: Train) -> float:
    """The learning rate of optimiser step `step`, counted from 0, of `steps`.

    A linear warm-up over W = ceil(warmup_fraction * steps) steps, peak * (step + 1) / W; then the peak, or its half
    cosine peak / 2 * (1 + cos(pi * (step - W) / (steps - W))).
    """
    warmup = math.ceil(settings.warmup_fraction * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
