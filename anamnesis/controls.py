"""Does a judge's score mean anything? Planted pairs whose response is known to be worse, and how well a judge sees it.

In: judged responses (`records.RESPONSES` with their `instruction` and `context`), and later their scores. Out: for a
share of the instructions one genuine response with planted ones beside it (`records.CONTROLS`), and for each judge and
kind the AUC of genuine against planted. Planted responses have a file of their own and no way into selection or
training.

Everything is seeded by ids: an instruction's rank, its genuine response and its faults stay as they are when others
come or go, but for its neighbour in that ranking, which lends it its answer.
"""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from anamnesis.records import digest, seed_of
from anamnesis.shares import share

CUT = 20  # characters that a cut response keeps
LEAST_WORDS = 4  # in a response whose order can be spoilt
# In how many of so few pairs a judge is right says nothing: all of five has a two-sided sign-test p of 0.06.
MIN_PAIRS = 6
PLAIN = 20  # from so many pairs on a judge that isn't shown to tell is said not to
ALPHA = 0.05

EVASIONS = (
    "I don't know.",
    "I am not sure about that.",
    "Sorry, I can't say anything about this.",
    "That is hard to say, it depends.",
    "I would rather leave this one to somebody else.",
)
NUMBER = re.compile(r"(?<![\w.,])\d+(?:[.,]\d+)*(?!\w)")
LIST_MARKER = re.compile(r"^[ \t]*(\d+)[.)](?=\s)", re.MULTILINE)
VERB = re.compile(r"\b(is|are|was|were|can|could|will|would|should|must)\b(?!['’])( not\b)?")
WORD = re.compile(r"\w{4,}")  # shorter ones are mostly grammar

Row = Mapping[str, Any]
Planted = tuple[str | None, str | None]  # the text, or the reason why there is none


def other_instruction(row: Row, neighbour: Row | None, seed: int) -> Planted:
    """The answer to another instruction."""
    if neighbour is None:
        return None, "no other instruction"
    if neighbour["text"] == row["text"]:
        return None, "the other instruction has the same answer"
    return neighbour["text"], None


def cut(row: Row, neighbour: Row | None, seed: int) -> Planted:
    """The first CUT characters."""
    text = row["text"][:CUT].rstrip()
    return (text, None) if len(row["text"]) > CUT else (None, f"no longer than {CUT} characters")


def evasive(row: Row, neighbour: Row | None, seed: int) -> Planted:
    """An answer that says nothing."""
    return EVASIONS[seed_of("evasive", seed, row["instruction_id"]) % len(EVASIONS)], None


def shuffled(row: Row, neighbour: Row | None, seed: int) -> Planted:
    """The same words in another order: white space stays, so length and vocabulary do."""
    parts = re.split(r"(\s+)", row["text"])
    words = parts[::2]
    if len(words) < LEAST_WORDS or len(set(words)) < 2:
        return None, f"fewer than {LEAST_WORDS} words"
    draw = random.Random(seed_of("shuffled", seed, row["response_id"]))
    while parts[::2] == words:
        parts[::2] = draw.sample(words, len(words))
    return "".join(parts), None


def wrong_number(row: Row, neighbour: Row | None, seed: int) -> Planted:
    """One number is another one of the same length, wherever it stands; the numbers of a list's items stay."""
    text = row["text"]
    markers = {match.start(1) for match in LIST_MARKER.finditer(text)}
    found = {match.group() for match in NUMBER.finditer(text) if match.start() not in markers}
    if not found:
        return None, "no number"
    old = min(found, key=lambda number: digest("wrong_number", seed, row["response_id"], number))
    first = [digit for digit in "123456789" if digit != old[0]]
    new = first[seed_of("first digit", seed, row["response_id"], old) % len(first)] + old[1:]

    def replaced(match: re.Match[str]) -> str:
        return new if match.group() == old and match.start() not in markers else match.group()

    return NUMBER.sub(replaced, text), None


def negated(row: Row, neighbour: Row | None, seed: int) -> Planted:
    """`not` put behind the first is, are, can …, or taken away there (English)."""
    match = VERB.search(row["text"])
    if not match:
        return None, "no verb to negate"
    verb, negation = match.groups()
    said = verb if negation else "cannot" if verb == "can" else f"{verb} not"
    return row["text"][: match.start()] + said + row["text"][match.end() :], None


# The last three keep length and vocabulary; what each is called in a sentence.
KINDS: dict[str, tuple[Callable[[Row, Row | None, int], Planted], str]] = {
    "other_instruction": (other_instruction, "the answer to another instruction"),
    "cut": (cut, f"the answer cut after {CUT} characters"),
    "evasive": (evasive, "an evasive answer"),
    "shuffled": (shuffled, "the answer with its words shuffled"),
    "wrong_number": (wrong_number, "the answer with a wrong number"),
    "negated": (negated, "the answer with a statement negated"),
}


def plant(judged: Sequence[Row], fraction: float, seed: int) -> list[dict[str, Any]]:
    """The planted pairs for `fraction` of the instructions of `judged`, one of each kind beside one genuine response.

    A row has pair_id, instruction_id, response_id (of the genuine response), instruction, context (the turns before),
    kind, text, status and reason: `filtered` with a reason where the response offers no such fault, or has it already.
    The genuine one is a first sample, so more samples change nothing; the first instructions by hash are taken, each
    lending its response to the one before it.
    """
    genuine: dict[str, Row] = {}
    for row in judged:
        best = genuine.setdefault(row["instruction_id"], row)
        if _precedence(row, seed) < _precedence(best, seed):
            genuine[row["instruction_id"]] = row
    order = sorted(genuine, key=lambda name: digest("control", seed, name))[: share(len(genuine), fraction)]
    rows = []
    for place, name in enumerate(order):
        row = genuine[name]
        neighbour = genuine[order[(place + 1) % len(order)]] if len(order) > 1 else None
        for kind, (make, _) in KINDS.items():
            text, reason = make(row, neighbour, seed)
            if text is not None and text.split() == row["text"].split():  # the genuine answer has the fault itself
                text, reason = None, "the same as the genuine answer"
            rows.append(
                {
                    "pair_id": digest("control", row["response_id"], kind),
                    "instruction_id": name,
                    "response_id": row["response_id"],
                    "instruction": row["instruction"],
                    "context": row["context"],
                    "kind": kind,
                    "text": text,
                    "status": "filtered" if reason else "ok",
                    "reason": reason,
                }
            )
    return rows


def _precedence(row: Row, seed: int) -> tuple[int, str]:
    return row["sample_index"], digest("control", seed, row["response_id"])


def auc(genuine: np.ndarray, planted: np.ndarray) -> float:
    """P(a genuine score is above a planted one) + P(equal) / 2, over all pairs of the two (Mann & Whitney 1947).

    It is the area under the ROC curve (Hanley & McNeil 1982).
    """
    ordered = np.sort(planted)
    below = np.searchsorted(ordered, genuine, "left") + np.searchsorted(ordered, genuine, "right")
    return float(below.mean() / 2 / len(ordered))


def room(count: int) -> float:
    """The share of cases that may be otherwise where `count` of them are alike, at 95 % (Clopper & Pearson 1934)."""
    return float(1 - (ALPHA / 2) ** (1 / count))


def auc_interval(
    genuine: np.ndarray, planted: np.ndarray, groups: np.ndarray, resamples: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """The 95 % percentile bootstrap interval of `auc`; whole groups (instructions) are drawn, both sides together.

    `genuine`, `planted` and `groups` have one entry a pair. The bootstrap draws only faults that were seen, so that it
    knows nothing of the next pair where all are alike, and little where nearly all are: the interval always leaves
    `room` for pairs that are all wrong, and for pairs that are all right. (None, None) with fewer than two groups.
    """
    _, member_of = np.unique(groups, return_inverse=True)
    count = int(member_of.max(initial=-1)) + 1
    if count < 2:
        return None, None
    rng, pairs = np.random.default_rng(seed), np.arange(len(genuine))
    drawn = np.empty(resamples)
    for i in range(resamples):
        times = np.bincount(rng.integers(count, size=count), minlength=count)
        chosen = np.repeat(pairs, times[member_of])
        drawn[i] = auc(genuine[chosen], planted[chosen])
    low, high = np.quantile(drawn, [ALPHA / 2, 1 - ALPHA / 2])
    value, unseen = auc(genuine, planted), room(count)
    return min(float(low), value * (1 - unseen)), max(float(high), value + unseen * (1 - value))


def overlap(instruction: str, response: str) -> float:
    """The share of the instruction's words of four letters and more that the response has too."""
    asked = set(WORD.findall(instruction.casefold()))
    return len(asked & set(WORD.findall(response.casefold()))) / len(asked) if asked else 0.0


def auc_rows(
    judgments: pa.Table, controls: pa.Table, responses: pa.Table, instructions: pa.Table, resamples: int, seed: int
) -> list[dict[str, Any]]:
    """One row for each judge and kind that was planted, in the order of judges' names and of KINDS.

    Tables as in `anamnesis/records.py`, those of all judges and members together. Keys of a row: judge, kind, n (pairs
    with both scores), auc, low, high (None where n is too small), `length_auc` and `overlap_auc` (what the number of
    characters, and `overlap`, would have told on the same pairs), tells: the interval lies above 0.5.
    """
    asked = controls.filter(pc.field("status") != "filtered").to_pylist()
    wanted = pa.array({row["response_id"] for row in asked}, pa.string())
    kept = judgments.filter(pc.is_in(judgments["response_id"], wanted))
    score = {(row["judge"], row["response_id"]): row["score"] for row in kept.to_pylist()}
    text = _texts(responses, "response_id", wanted)
    question = _texts(instructions, "instruction_id", pa.array({row["instruction_id"] for row in asked}, pa.string()))
    rows = []
    for judge in sorted({row["judge"] for row in asked}):
        for kind in KINDS:
            ours = [row for row in asked if row["judge"] == judge and row["kind"] == kind]
            if not ours:
                continue
            pairs = [
                (row, score[judge, row["response_id"]])
                for row in sorted(ours, key=lambda row: str(row["pair_id"]))
                if row["score"] is not None and score.get((judge, row["response_id"])) is not None
            ]
            found: dict[str, Any] = dict.fromkeys(("auc", "low", "high", "length_auc", "overlap_auc"))
            if pairs:
                genuine, planted = np.array([one for _, one in pairs]), np.array([row["score"] for row, _ in pairs])
                groups = np.array([row["instruction_id"] for row, _ in pairs])
                both = [
                    (question[row["instruction_id"]], text[row["response_id"]], row["text"] or "") for row, _ in pairs
                ]
                low, high = auc_interval(genuine, planted, groups, resamples, seed_of("control", seed, judge, kind))
                lengths = np.array([(len(one), len(other)) for _, one, other in both], float)
                shared = np.array([(overlap(q, one), overlap(q, other)) for q, one, other in both])
                found = {"auc": auc(genuine, planted), "low": low, "high": high}
                found |= {"length_auc": auc(*lengths.T), "overlap_auc": auc(*shared.T)}
            rounded = {name: None if value is None else round(value, 6) for name, value in found.items()}
            tells = len(pairs) >= MIN_PAIRS and (rounded["low"] or 0.0) > 0.5
            rows.append({"judge": judge, "kind": kind, "n": len(pairs), **rounded, "tells": tells})
    return rows


def _texts(table: pa.Table, key: str, wanted: pa.Array) -> dict[str, str]:
    """`text` by `key`, of the wanted rows."""
    kept = table.filter(pc.is_in(table[key], wanted)).select([key, "text"])
    return dict(zip(kept[key].to_pylist(), kept["text"].to_pylist(), strict=True))


def sentence(row: Mapping[str, Any]) -> str:
    """What a row of `auc_rows` says, in words."""
    judge, name, n = row["judge"], KINDS[row["kind"]][1], row["n"]
    if n < MIN_PAIRS or row["low"] is None:
        pairs = "1 pair" if n == 1 else f"{n} pairs"
        return f"{pairs} can't say whether judge {judge} tells a genuine answer from {name}; {MIN_PAIRS} are needed."
    figures = f"AUC {row['auc']:.2f} [{row['low']:.2f}, {row['high']:.2f}], n = {n}"
    if not row["tells"]:
        prefers = "; it prefers the planted one" if row["high"] < 0.5 else ""
        found = "isn't shown to tell" if n < PLAIN and not prefers else "can't tell"
        return f"Judge {judge} {found} a genuine answer from {name} ({figures}){prefers}."
    better = [
        f"{what} ({row[key]:.2f})"
        for key, what in (("length_auc", "length alone"), ("overlap_auc", "word overlap with the instruction"))
        if row[key] >= row["auc"]
    ]
    without = f"; so does {' and so does '.join(better)}, without reading" if better else ""
    return f"Judge {judge} can tell a genuine answer from {name} ({figures}){without}."
