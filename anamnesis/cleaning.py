"""What is taken out before the mix: one reason a row, one function for every source.

In: candidate rows (`records.CLEANED` without status and reason) from a variant's picks, a public set or the domain.
Out: the same rows with status and reason. Checks run in this order and the first that fails names the row: overlap with
an evaluation set, truncated, refused, language, personal data; near-duplicates are looked for among what is left.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from anamnesis.decontamination import Overlap, words
from anamnesis.foresight import personal_data_library
from anamnesis.records import CLEANED, digest, licence_of_all
from anamnesis.refusals import refuses
from anamnesis.responding import context_of

SHINGLE = 3  # words in a row that near-duplicates are compared by
PERMUTATIONS = 128
SURE = 0.9  # the probability of another language from which a row is dropped
CUT_FROM = 50  # words of a response that may count as cut off for want of a full stop
KINDS = ("overlap", "truncated", "refused", "language", "personal data", "near-duplicate")

Message = Mapping[str, str]
Check = Callable[[Sequence[Message]], tuple[str, str] | None]

_CANDIDATE = pa.schema([field for field in CLEANED if field.name not in ("status", "reason")])


# -------------------------------------------------------------------------------------------------------- candidates


@dataclass(frozen=True)
class Writer:
    """A member of the committee as the author of rows: its model's licence and the system message it answered under."""

    licence: str
    system: str | None = None


def picked(
    selected: pa.Table,
    writers: Mapping[str, Writer],
    conversations: pa.Table,
    target: str,
    borrowed: Mapping[str, str | None],
) -> pa.Table:
    """Candidates from a variant's picks (`records.SELECTED`); those that are not ok have their reason there.

    A row is the whole conversation as its last writer had it: `conversations` (`records.CONVERSATIONS`) has the system
    message that was drawn and the turns before. Its licence is that of everyone who wrote a turn in it; of a borrowed
    instruction, whose licence is in `borrowed` by its id, the `target` wrote none.
    """
    begun = {row["instruction_id"]: row for row in _ok(conversations) if row["history"] or row["system"] is not None}
    rows = []
    for row in _ok(selected):
        writer, before = writers[row["member"]], begun.get(row["instruction_id"], {})
        said = [("user", row["instruction"]), ("assistant", row["response"])]
        earlier = [writers[turn["writer"]].licence for turn in before.get("written", ())]
        asked = borrowed.get(row["instruction_id"], writers[target].licence)
        rows.append(
            {
                "row_id": row["response_id"],
                "order_id": row["instruction_id"],
                "messages": [
                    *context_of(before, writer.system),
                    *({"role": role, "content": text} for role, text in said),
                ],
                "source": "reconstructed",
                "member": row["member"],
                "licence": licence_of_all(writer.licence, asked, *earlier),
            }
        )
    return pa.Table.from_pylist(rows, _CANDIDATE)


def rehearsed(rehearsal: pa.Table) -> pa.Table:
    """Candidates from a rehearsal source (`records.REHEARSAL`)."""
    rows = [{**row, "order_id": row["row_id"], "member": None} for row in _ok(rehearsal)]
    return pa.Table.from_pylist(rows, _CANDIDATE)


def learnt(domain: pa.Table, source: str) -> pa.Table:
    """Candidates from a domain's training rows (`records.DOMAIN_TRAIN`) under the name that the mix knows them by."""
    rows = [{**row, "order_id": row["row_id"], "member": None, "source": source} for row in domain.to_pylist()]
    return pa.Table.from_pylist(rows, _CANDIDATE)


def _ok(table: pa.Table) -> Iterator[dict[str, Any]]:
    for batch in table.to_batches(4096):
        yield from (row for row in batch.to_pylist() if row["status"] == "ok")


# ------------------------------------------------------------------------------------------------- checks of one row

_ENDS = re.compile(r"[.!?…:;。！？।؟»”’\"'`)\]}>*_~|$%]\s*$|[\U0001F300-\U0001FAFF\u2600-\u27BF\uFE0F]\s*$")
_CANT_END = re.compile(
    r"(?:,|\b(?:and|or|but|the|an?|of|to|in|on|at|for|with|from|by|that|which|is|are|was|were|your|their|its|as|than))\s*$",
    re.IGNORECASE,
)
_SIGNED = re.compile(r"\b(?:sincerely|regards|yours|love|truly|signed|wishes),?\b", re.IGNORECASE)
_LIST_OR_TABLE = re.compile(r"^\s*(?:[-*+•#>|]|\d+[.)]|[A-Za-z][.)]\s)")


def is_cut(response: str) -> bool:
    """Does a response stop before its end, by its text alone?

    An open code block; a last word after which no sentence ends; or, at the end of `CUT_FROM` words of full sentences,
    five words and more of another one without its full stop. A list item, a heading, a table row, a line of code and a
    signature may end as they like.
    """
    text = response.rstrip()
    if text.count("```") % 2:
        return True
    if not text or text.endswith("```"):
        return False
    last = text.splitlines()[-1]
    if len(last.split()) >= 3 and _CANT_END.search(last):
        return True
    if _LIST_OR_TABLE.match(last) or last.startswith(("    ", "\t")) or _SIGNED.search(last) or _ENDS.search(last):
        return False
    rest = re.split(r"[.!?]\s+", last)[-1]
    return len(rest.split()) >= 5 and len(text.split()) >= CUT_FROM and len(re.findall(r"[.!?]\s", text)) >= 2


def _fault_of(messages: Sequence[Message], status: str, has_it: Callable[[str], bool]) -> tuple[str, str] | None:
    """Status and reason where a response of the conversation has a fault; one before the last is named by its number.

    Every response is looked at, because every one is trained on.
    """
    responses = [turn["content"] for turn in messages if turn["role"] == "assistant"]
    number = next((number for number, response in enumerate(responses, 1) if has_it(response)), None)
    if number is None:
        return None
    return status, status if number == len(responses) else f"{status} in answer {number}"


def _spoken(messages: Iterable[Message]) -> str:
    return "\n".join(turn["content"] for turn in messages if turn["role"] != "system")


def overlap_check(overlap: Overlap, kin: str = "", ours: Collection[str] = ()) -> Check:
    """`kin`: the set that was split off from the rows' own source; `ours`: our system messages (`Overlap.find`)."""

    def check(messages: Sequence[Message]) -> tuple[str, str] | None:
        name = overlap.find(messages, kin, ours)
        return ("filtered", f"overlap with {name}") if name else None

    return check


def truncated_check(messages: Sequence[Message]) -> tuple[str, str] | None:
    return _fault_of(messages, "truncated", is_cut)


def refused_check(messages: Sequence[Message]) -> tuple[str, str] | None:
    return _fault_of(messages, "refused", refuses)


def language_check(languages: Collection[str]) -> Check:
    """Drops what is in none of these (codes of variants.LANGUAGES) with probability `SURE` or more, by py3langid."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)

    def check(messages: Sequence[Message]) -> tuple[str, str] | None:
        language, probability = identifier.classify(_spoken(messages))
        return ("filtered", f"language {language}") if language not in languages and probability >= SURE else None

    return check


def personal_data_check(kinds: Sequence[str]) -> Check:
    """Drops what holds one of these kinds of personal data (EMAIL, PHONE …), by datafog-core.

    Raises `UserError` where the package is not installed or doesn't know a kind.
    """
    library = personal_data_library(kinds)

    def check(messages: Sequence[Message]) -> tuple[str, str] | None:
        found = library.scan(_spoken(messages), config={"entities": list(kinds)})
        return ("filtered", "personal data") if found else None

    return check


# ---------------------------------------------------------------------------------------------------- near-duplicates


class NearDuplicates:
    """Texts so far; a new one is held against those that MinHash finds near it.

    Near: a Jaccard similarity of `threshold` or more between the sets of `SHINGLE` words in a row, computed exactly for
    every candidate. MinHash may miss a pair whose similarity is little above the threshold, and never makes one up.
    """

    def __init__(self, threshold: float):
        from datasketch import MinHash, MinHashLSH

        self._threshold = threshold
        self._index = MinHashLSH(threshold=threshold, num_perm=PERMUTATIONS, weights=(0.1, 0.9))  # few misses
        self._empty = MinHash(num_perm=PERMUTATIONS, hashfunc=lambda shingle: shingle & 0xFFFFFFFF)
        self._shingles: dict[str, Any] = {}

    def first_like(self, row_id: str, text: str) -> str | None:
        """The id of the nearest earlier text, or None, and then this one is remembered."""
        shingles = _shingles(text)
        sketch = self._empty.copy()
        sketch.update_batch(shingles.tolist())
        near = [(_jaccard(shingles, self._shingles[other]), other) for other in self._index.query(sketch)]
        near = [(similarity, other) for similarity, other in near if similarity >= self._threshold]
        if near:
            return min(near, key=lambda one: (-one[0], one[1]))[1]
        self._index.insert(row_id, sketch)
        self._shingles[row_id] = shingles
        return None


def _shingles(text: str) -> "np.ndarray[Any, np.dtype[np.int64]]":
    """The set of word triples as sorted 63-bit hashes; a text of fewer words is one."""
    listed = words(text) or [text]
    joined = {" ".join(listed[i : i + SHINGLE]) for i in range(max(1, len(listed) - SHINGLE + 1))}
    hashes = [int.from_bytes(hashlib.blake2b(one.encode(), digest_size=8).digest()) >> 1 for one in joined]
    return np.unique(np.array(hashes, dtype=np.int64))


def _jaccard(one: Any, other: Any) -> float:
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


# -------------------------------------------------------------------------------------------------------------- all


def clean(candidates: pa.Table, checks: Sequence[Check], near_duplicates: float | None, seed: int) -> pa.Table:
    """Rows of `records.CLEANED`: each candidate with its status, and the reason where it is not ok.

    Of near-duplicate instructions the one is kept that comes first in the order in which stage mix takes rows.
    """
    found: list[tuple[str, str | None]] = []
    asked: dict[int, str] = {}  # by place, what is still ok
    for batch in candidates.select(["messages"]).to_batches(4096):
        for messages in batch["messages"].to_pylist():
            fault = next((fault for check in checks if (fault := check(messages))), None)
            if fault is None:
                asked[len(found)] = "\n".join(turn["content"] for turn in messages if turn["role"] == "user")
            found.append(fault or ("ok", None))
    if near_duplicates is not None:
        ids, order_ids = candidates["row_id"].to_pylist(), candidates["order_id"].to_pylist()
        seen = NearDuplicates(near_duplicates)
        for place in sorted(asked, key=lambda place: (digest(seed, "mix", order_ids[place]), ids[place])):
            if (like := seen.first_like(ids[place], asked[place])) is not None:
                found[place] = "filtered", f"near-duplicate of {like}"
    table = candidates.append_column("status", pa.array([status for status, _ in found], pa.string()))
    return table.append_column("reason", pa.array([reason for _, reason in found], pa.string())).cast(CLEANED)


def kind(reason: str) -> str:
    """A reason without the id, language or answer in it, to be counted by; the set's name stays in."""
    short = next((one for one in KINDS if reason.startswith(one)), reason)
    return reason if short == "overlap" else short


def counts(cleaned: pa.Table) -> dict[str, int]:
    """How many rows came in, how many are left, and how many were dropped for which reason."""
    reasons = Counter(kind(reason) for reason in cleaned["reason"].to_pylist() if reason is not None)
    dropped = {f"dropped.{reason.replace(' ', '_')}": count for reason, count in sorted(reasons.items())}
    return {"rows": cleaned.num_rows, "kept": cleaned.num_rows - sum(reasons.values()), **dropped}
