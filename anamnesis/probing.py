"""From raw continuations to instructions: every sample gets a status and a reason, and a canary looks at the first
ones.

A sample passes when it is one finished user turn in an expected script: not empty, not cut off, not a repetition of
itself or of an earlier sample, and without pieces of the chat template.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from anamnesis.errors import QUALITY, UserError
from anamnesis.records import digest, seed_of
from anamnesis.sections import Probe
from anamnesis.template import TEMPLATE_PIECES, PreQuery
from anamnesis.wire import Call, Outcome

SCRIPT_SHARE = 0.9  # of a text's letters that must be of the expected scripts
UNIQUE_SHARE = 0.35  # of distinct words below which a text of REPETITION_WORDS or more is a loop
REPETITION_WORDS = 20
ADVICE = {
    "unfinished": "raise probe.max_tokens, or give the model the system block it was trained with (probe.system)",
    "empty": "the prefix may end the turn at once: see probe.prefix and the model's chat template",
    "duplicate": "raise probe.temperature or probe.top_p",
    "wrong script": "lower probe.temperature, or add the script to probe.scripts",
    "template piece": "the prefix does not fit the model: see probe.prefix and the model's chat template",
    "repetition": "lower probe.temperature, or give the model the system block it was trained with (probe.system)",
    "too short": "lower probe.min_words, or give the model the system block it was trained with (probe.system)",
}


@dataclass(frozen=True)
class Sample:
    """One probed sample as a row of `records.INSTRUCTIONS`."""

    instruction_id: str
    sample_index: int
    text: str
    status: str
    reason: str | None
    finish_reason: str | None
    tokens: int


def probe_call(prefix: PreQuery, probe: Probe, seed: int, index: int) -> Call:
    """The request for sample `index`: continue the prefix's token ids; its seed depends on the index alone."""
    extra: dict[str, Any] = {"stop_token_ids": prefix.stop_ids, "skip_special_tokens": False}
    request: dict[str, Any] = {
        "prompt": prefix.ids,
        "max_tokens": probe.max_tokens,
        "temperature": probe.temperature,
        "top_p": probe.top_p,
        "seed": seed_of(seed, "probe", index),
        "extra_body": extra,
    }
    if prefix.stop_strings:
        request["stop"] = prefix.stop_strings
    return Call("completion", request, index)


def _script_share(text: str, scripts: Sequence[str]) -> float:
    """Share of the letters whose Unicode name starts with one of the scripts (LATIN, CYRILLIC, CJK …)."""
    letters = [character for character in text if character.isalpha()]
    wanted = tuple(scripts)
    return sum(unicodedata.name(letter, "").startswith(wanted) for letter in letters) / len(letters) if letters else 1.0


def fault_of(text: str, finish_reason: str | None, probe: Probe) -> str | None:
    """Why a text is no instruction, or None. Duplicates are judged elsewhere: they depend on other samples."""
    words = text.split()
    if not words:
        return "empty"
    if finish_reason != "stop":
        return "unfinished"
    if TEMPLATE_PIECES.search(text):
        return "template piece"
    if _script_share(text, probe.scripts) < SCRIPT_SHARE:
        return "wrong script"
    if len(words) < probe.min_words:
        return "too short"
    if len(words) >= REPETITION_WORDS and len({word.lower() for word in words}) < UNIQUE_SHARE * len(words):
        return "repetition"
    return None


def normal_form(text: str) -> str:
    """What two texts share when they are the same instruction: letters and digits, case folded, single spaces."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"[^\w\s]", " ", folded).split())


def classify(outcomes: Sequence[Outcome], probe: Probe) -> list[Sample]:
    """Give every outcome, in sample order, its status and reason; good ones beyond `probe.instructions` are surplus."""
    samples: list[Sample] = []
    seen: set[str] = set()
    good = 0
    for index, outcome in enumerate(outcomes):
        text = ((outcome.answer.text or "") if outcome.answer else "").strip()
        status, reason = "ok", None
        if outcome.answer is None:
            status, reason = "failed", outcome.reason
        elif fault := fault_of(text, outcome.answer.finish_reason, probe):
            status, reason = ("truncated" if fault == "unfinished" else "filtered"), fault
        elif normal_form(text) in seen:
            status, reason = "filtered", "duplicate"
        elif good >= probe.instructions:
            status, reason = "filtered", "surplus"
        else:
            seen.add(normal_form(text))
            good += 1
        finish = outcome.answer.finish_reason if outcome.answer else None
        tokens = outcome.answer.completion_tokens if outcome.answer else 0
        samples.append(Sample(digest("instruction", text), index, text, status, reason, finish, tokens))
    return samples


def pass_share(samples: Sequence[Sample]) -> float:
    """Share of the answered samples that pass the filters; surplus ones pass, failed requests don't count."""
    answered = [sample for sample in samples if sample.status != "failed"]
    return sum(sample.status == "ok" or sample.reason == "surplus" for sample in answered) / max(len(answered), 1)


def check_canary(samples: Sequence[Sample], probe: Probe, shown: int = 3) -> None:
    """Raise `UserError` (QUALITY) with the share of each fault, advice and a few samples where too few pass."""
    share = pass_share(samples)
    if share >= probe.canary.min_pass:
        return
    faults = Counter(sample.reason for sample in samples if sample.reason not in (None, "surplus"))
    told = ", ".join(f"{fault} {count / len(samples):.0%}" for fault, count in faults.most_common())
    worst = faults.most_common(1)[0][0] or ""
    examples = " | ".join(repr(sample.text[:60]) for sample in samples if sample.reason)[: 70 * shown]
    raise UserError(
        f"probe canary: {share:.0%} of the first {len(samples)} samples pass, probe.canary.min_pass is "
        f"{probe.canary.min_pass:.0%} ({told}); {ADVICE.get(worst, 'see the server log')}; e.g. {examples}",
        QUALITY,
    )


def next_wave(samples: Sequence[Sample], probe: Probe) -> int:
    """How many samples to ask for next: the missing ones at the pass share so far, within `probe.max_requests`."""
    if not samples:
        return min(probe.canary.size, probe.max_requests)
    missing = probe.instructions - sum(sample.status == "ok" for sample in samples)
    if missing <= 0:
        return 0
    wanted = max(4, round(missing / max(pass_share(samples), 0.1) * 1.05))
    return min(wanted, probe.max_requests - len(samples))
