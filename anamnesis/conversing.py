"""From an instruction to a conversation: who grows, how far, under which system message, and what ends it early.

In: the good instructions and section `converse` of params.yaml. Out: rows of `records.CONVERSATIONS`. A conversation
grows by a turn when the committee's chosen answer is put behind its last user's turn and the target continues its own
template at the next one; these functions say what that turn's request is and what comes of it, stages/converse.py asks.

Every draw is a hash of the seed and the instruction's id: another instruction, or a larger share, changes no other.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from anamnesis.probing import fault_of, normal_form, probe_call
from anamnesis.records import digest, seed_of
from anamnesis.sections import Converse, Probe, SystemMessage
from anamnesis.template import TEMPLATE_PIECES, PreQuery
from anamnesis.wire import Call, Outcome

Message = dict[str, str]
UNASKED = "not asked yet"  # a reason that stage plan gives: it walks through the ledger's answers alone


@dataclass(frozen=True)
class Conversation:
    """A conversation up to the user's turn that waits for its answer; fields as in `records.CONVERSATIONS`."""

    instruction_id: str
    text: str
    system: str | None
    wanted: int
    written: tuple[Mapping[str, Any], ...]
    history: tuple[Message, ...] = ()
    reason: str | None = None

    @property
    def turns(self) -> int:
        return 1 + len(self.history) // 2

    @property
    def grows(self) -> bool:
        return self.reason is None and self.turns < self.wanted

    def row(self) -> dict[str, Any]:
        """A row of `records.CONVERSATIONS`."""
        return {
            "instruction_id": self.instruction_id,
            "text": self.text,
            "system": self.system,
            "history": list(self.history),
            "turns": self.turns,
            "wanted": self.wanted,
            "written": [dict(turn) for turn in self.written],
            "status": "ok",
            "reason": self.reason,
        }


def is_open(conversation: Conversation | Mapping[str, Any]) -> bool:
    """Whether turns are to come that stage plan doesn't know."""
    reason = conversation.reason if isinstance(conversation, Conversation) else conversation.get("reason")
    return str(reason).endswith(UNASKED)


def _draw(*parts: object) -> float:
    """A number in [0, 1), even over all parts."""
    return (int(digest(*parts), 16) >> 11) / 2**53


def wanted_turns(instruction_id: str, converse: Converse, seed: int) -> int:
    """How many user's turns an instruction is to have. A larger share adds conversations to those of a smaller one."""
    if _draw(seed, "converse", instruction_id) >= converse.share:
        return 1
    least, most = converse.turns.min, converse.turns.max
    return least + math.floor(_draw(seed, "turns", instruction_id) * (most - least + 1))


def system_of(instruction_id: str, systems: Sequence[SystemMessage], seed: int) -> str | None:
    """The system message that an instruction draws, each with a probability in proportion to its weight.

    The smallest of exponential variates with the weights as rates (weighted rendezvous hashing): a message that is
    added, or weighed more, takes instructions from the others and moves none between them.
    """
    if not systems:
        return None
    return min(systems, key=lambda one: -math.log1p(-_draw(seed, "system", instruction_id, one.text)) / one.weight).text


def begin(row: Mapping[str, Any], converse: Converse, target: str, seed: int) -> Conversation:
    """An instruction (a row of `records.INSTRUCTIONS`) as the conversation that it begins."""
    name = row["instruction_id"]
    return Conversation(
        instruction_id=name,
        text=row["text"],
        system=system_of(name, converse.systems, seed),
        wanted=wanted_turns(name, converse, seed),
        written=(_turn(1, "user", target),),
    )


def _turn(turn: int, role: str, writer: str, **chosen: Any) -> dict[str, Any]:
    empty = {"response_id": None, "value": None, "votes": None, "candidates": None}
    return {"turn": turn, "role": role, "writer": writer, **empty, **chosen}


def dead_end(pick: Mapping[str, Any]) -> str | None:
    """Why no turn can follow on a pick (a row of `records.SELECTED`), or None."""
    if pick["status"] != "ok":
        return str(pick["reason"])
    if TEMPLATE_PIECES.search(pick["response"]):
        return "template piece in the answer"  # the target would read it as the end of the turn
    return None


def answered(conversation: Conversation, pick: Mapping[str, Any]) -> tuple[Message, ...]:
    """The turns that the target continues: all so far, and the chosen answer."""
    said = ({"role": "user", "content": conversation.text}, {"role": "assistant", "content": pick["response"]})
    return (*conversation.history, *said)


def turn_call(prefix: PreQuery, probe: Probe, seed: int, conversation: Conversation) -> Call:
    """The request for the next user's turn, sampled as a probe is; its seed depends on instruction and turn alone."""
    own_seed = seed_of(seed, "converse", conversation.instruction_id, conversation.turns + 1)
    return Call("completion", probe_call(prefix, probe, seed, 0).request | {"seed": own_seed})


def continued(
    conversation: Conversation, pick: Mapping[str, Any], outcome: Outcome, probe: Probe, room: int, target: str
) -> Conversation:
    """The conversation with the chosen answer and the next user's turn; or as it was, with the reason why it ends.

    `room`: tokens that the turn may have. A later turn may be a single word, so `probe.min_words` does not count.
    """
    answer = outcome.answer
    if answer is None:
        return ended(conversation, f"next turn: {outcome.reason}")
    text = (answer.text or "").strip()
    fault = fault_of(text, answer.finish_reason, probe.model_copy(update={"min_words": 1}))
    said = {normal_form(turn["content"]) for turn in conversation.history if turn["role"] == "user"}
    if fault is None and normal_form(text) in {*said, normal_form(conversation.text)}:
        fault = "repeats a turn"
    if fault is None and answer.completion_tokens > room:
        fault = "too long"
    if fault:
        return ended(conversation, f"next turn: {fault}")
    turn = conversation.turns
    chosen = {
        # No response of stage respond has this id: it answers the last turn, under ids of the instruction alone.
        "response_id": digest("turn", turn, pick["response_id"]),
        "value": pick["mean"],
        "votes": pick["votes"],
        "candidates": pick["candidates"],
    }
    return replace(
        conversation,
        text=text,
        history=answered(conversation, pick),
        written=(
            *conversation.written,
            _turn(turn, "assistant", pick["member"], **chosen),
            _turn(turn + 1, "user", target),
        ),
    )


def ended(conversation: Conversation, reason: str) -> Conversation:
    """The conversation as far as it came; its last user's turn is answered like any other."""
    return replace(conversation, reason=reason)


def counts(conversations: Sequence[Conversation]) -> dict[str, int]:
    """How many instructions there are, were drawn to grow and grew, user's turns in all, and why some ended early."""
    kinds = Counter(": ".join(one.reason.split(": ")[:2]) for one in conversations if one.reason)
    return {
        "instructions": len(conversations),
        "drawn": sum(one.wanted > 1 for one in conversations),
        "grown": sum(one.turns > 1 for one in conversations),
        "turns": sum(one.turns for one in conversations),
        "systems": sum(one.system is not None for one in conversations),
        **{f"ended.{kind.replace(': ', '.').replace(' ', '_')}": kinds[kind] for kind in sorted(kinds)},
    }
