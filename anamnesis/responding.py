"""From an instruction to responses: the request to a member, and the status that its answer ends with."""

from collections.abc import Mapping
from typing import Any

from anamnesis.records import digest, seed_of
from anamnesis.sections import Sampling
from anamnesis.wire import Call, Outcome


def context_of(row: Mapping[str, Any], system: str | None) -> list[dict[str, str]]:
    """What stands before the last user's turn of a row of `records.CONVERSATIONS`: system message and earlier turns.

    A system message that the row drew takes the place of the member's own, `system`.
    """
    drawn = row.get("system")
    shown = system if drawn is None else drawn
    return [*([] if shown is None else [{"role": "system", "content": shown}]), *(row.get("history") or [])]


def respond_call(row: dict[str, Any], sampling: Sampling, seed: int, index: int) -> Call:
    """The request for response `index` to an instruction; its seed depends on the instruction and the index alone."""
    request = {
        "messages": [*context_of(row, sampling.system), {"role": "user", "content": row["text"]}],
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": seed_of(seed, "respond", row["instruction_id"], index),
    }
    return Call("chat", request, index)


def status_of(outcome: Outcome) -> tuple[str, str | None]:
    """Status and reason of a response: only a complete one is `ok`, and only `ok` ones are judged and selected."""
    answer = outcome.answer
    if answer is None:
        return "failed", outcome.reason
    if answer.refusal or answer.finish_reason == "content_filter":
        return "refused", "content filter" if answer.finish_reason == "content_filter" else "the endpoint refused"
    if answer.finish_reason == "length":
        return "truncated", "max_tokens reached"
    if not (answer.text or "").strip():
        return "filtered", "empty"
    return "ok", None


def response_row(instruction_id: str, member: str, index: int, outcome: Outcome) -> dict[str, Any]:
    """A row of `records.RESPONSES`."""
    status, reason = status_of(outcome)
    answer = outcome.answer
    return {
        "response_id": digest("response", instruction_id, member, index),
        "instruction_id": instruction_id,
        "member": member,
        "sample_index": index,
        "text": ((answer.text or "") if answer else "").strip(),
        "finish_reason": answer.finish_reason if answer else None,
        "tokens": answer.completion_tokens if answer else 0,
        "status": status,
        "reason": reason,
    }
