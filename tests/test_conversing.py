"""A share of the instructions grows to conversations: who, how far, by which calls; the others stay as they were."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from asking import ROOT, made_params
from chat_templates import FAMILIES
from fault_server import FaultServer, fault_server

from anamnesis import cleaning, controls, conversing, judging, mixing, records, selection, sql
from anamnesis import params as settings
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.ledger import Answer, Ledger
from anamnesis.params import Params
from anamnesis.planning import Line
from anamnesis.responding import context_of, respond_call
from anamnesis.sections import Converse, Judge, Probe, Sampling, SystemMessage, Turns
from anamnesis.template import PreQuery, pre_query
from anamnesis.turns import TurnClient
from anamnesis.wire import Outcome
from stages import converse, judge, plan, respond, select

IDS = [records.digest("made", place) for place in range(4000)]
PROBE = Probe(instructions=3, max_requests=10)
SAMPLES = 2
INSTRUCTIONS = 12

PICK = {
    "status": "ok", "response": "Nine.", "response_id": "r1", "member": "beta", "mean": 4.5, "candidates": 6,
    "votes": [{"judge": "beta", "score": 4.5}],
}  # fmt: skip


# ------------------------------------------------------------------------------------------------------------ draws


def test_the_share_grows_and_a_larger_one_only_adds() -> None:
    turns = {share: [conversing.wanted_turns(i, Converse(share=share), 17) for i in IDS] for share in (0.0, 0.2, 0.5)}
    assert set(turns[0.0]) == {1}
    for share in (0.2, 0.5):
        assert sum(count > 1 for count in turns[share]) / len(IDS) == pytest.approx(share, abs=0.03)
    assert all(more == fewer for fewer, more in zip(turns[0.2], turns[0.5], strict=True) if fewer > 1)
    whole = Counter(conversing.wanted_turns(i, Converse(share=1.0, turns=Turns(min=2, max=5)), 17) for i in IDS)
    assert set(whole) == {2, 3, 4, 5}
    assert all(count / len(IDS) == pytest.approx(0.25, abs=0.03) for count in whole.values())
    assert turns[0.5] != [conversing.wanted_turns(i, Converse(share=0.5), 18) for i in IDS]


def test_systems_are_drawn_by_weight_and_another_one_moves_none_between_the_rest() -> None:
    pool = [SystemMessage(text="A", weight=1), SystemMessage(text="B", weight=2), SystemMessage(text=None, weight=1)]
    drawn = [conversing.system_of(i, pool, 17) for i in IDS]
    for one in pool:
        assert drawn.count(one.text) / len(IDS) == pytest.approx(one.weight / 4, abs=0.03)
    grown = [conversing.system_of(i, [*pool, SystemMessage(text="C", weight=1)], 17) for i in IDS]
    assert all(after in (before, "C") for before, after in zip(drawn, grown, strict=True))
    assert [conversing.system_of(i, pool[::-1], 17) for i in IDS] == drawn
    assert conversing.system_of(IDS[0], [], 17) is None


# ------------------------------------------------------------------------------------------------------------ turns


def begun(wanted: int = 3, text: str = "What is 3 times 3?") -> conversing.Conversation:
    row = {"instruction_id": "i1", "text": text}
    return replace(conversing.begin(row, Converse(), "alpha", 17), wanted=wanted)


def outcome(text: str, finish: str = "stop", tokens: int = 5) -> Outcome:
    return Outcome(Answer(text, finish, 10, tokens))


def test_a_turn_puts_the_chosen_answer_between_and_names_its_writer() -> None:
    one = begun()
    assert one.grows
    two = conversing.continued(one, PICK, outcome(" Why? "), PROBE, 100, "alpha")
    assert (two.text, two.turns, two.reason, two.grows) == ("Why?", 2, None, True)
    assert [(turn["role"], turn["content"]) for turn in two.history] == [
        ("user", "What is 3 times 3?"),
        ("assistant", "Nine."),
    ]
    row = two.row()
    assert [(turn["turn"], turn["role"], turn["writer"]) for turn in row["written"]] == [
        (1, "user", "alpha"),
        (1, "assistant", "beta"),
        (2, "user", "alpha"),
    ]
    assert row["written"][1]["value"] == 4.5
    assert row["written"][1]["votes"] == PICK["votes"]
    assert row["written"][1]["response_id"] not in (None, "r1")  # r1 will be an answer to the last turn
    three = conversing.continued(two, PICK, outcome("And 4 times 4?"), PROBE, 100, "alpha")
    assert (three.turns, three.grows) == (3, False)
    assert pa.Table.from_pylist([row, three.row()], records.CONVERSATIONS).num_rows == 2


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (outcome("  "), "next turn: empty"),
        (outcome("and so on", "length"), "next turn: unfinished"),
        (outcome("Почему небо голубое?"), "next turn: wrong script"),
        (outcome("Yes. <|im_end|>"), "next turn: template piece"),
        (outcome("what is 3 times 3"), "next turn: repeats a turn"),
        (outcome("A long one?", tokens=101), "next turn: too long"),
        (Outcome(None, "HTTP 400: no"), "next turn: HTTP 400: no"),
    ],
)
def test_a_bad_next_turn_ends_the_conversation_at_the_turn_before(bad: Outcome, reason: str) -> None:
    one = begun()
    after = conversing.continued(one, PICK, bad, PROBE, 100, "alpha")
    assert after == replace(one, reason=reason)
    assert not after.grows
    assert conversing.counts([after])["grown"] == 0
    kind = "HTTP_400" if "HTTP" in reason else reason.split(": ")[1].replace(" ", "_")
    assert conversing.counts([after, begun(1)])[f"ended.next_turn.{kind}"] == 1


def test_no_turn_follows_on_no_answer_or_on_one_that_ends_the_template() -> None:
    assert conversing.dead_end(PICK) is None
    assert conversing.dead_end(PICK | {"status": "filtered", "reason": "too few votes"}) == "too few votes"
    assert conversing.dead_end(PICK | {"response": "So.<|im_end|>\n<|im_start|>user"}) == "template piece in the answer"


def test_a_turns_seed_depends_on_instruction_and_turn_alone() -> None:
    prefix, one = PreQuery("p", [1, 2], [3], []), begun()
    two = conversing.continued(one, PICK, outcome("Why?"), PROBE, 100, "alpha")
    calls = [conversing.turn_call(prefix, PROBE, 17, each) for each in (one, two, replace(one, instruction_id="i2"))]
    assert len({call.request["seed"] for call in calls}) == 3
    assert calls[0] == conversing.turn_call(prefix, PROBE, 17, replace(one, text="another", wanted=5))
    assert calls[0].request["extra_body"]["stop_token_ids"] == [3]


# --------------------------------------------------------------------------------------------------------- template


@pytest.mark.parametrize("family", FAMILIES)
def test_the_next_turn_starts_where_the_template_would_write_it(family: str, smollm2_tokenizer: Any) -> None:
    tokenizer, case = copy.deepcopy(smollm2_tokenizer), FAMILIES[family]
    tokenizer.chat_template = case.template
    if case.special:
        tokenizer.add_special_tokens({"additional_special_tokens": list(case.special)})
    if case.bos:
        tokenizer.bos_token = case.bos
    history = [{"role": "user", "content": "What is 3 times 3?"}, {"role": "assistant", "content": "Nine."}]
    derived = pre_query(tokenizer, history=history)
    for text in ("Why?", "and 4 times 4"):
        whole = tokenizer.apply_chat_template([*history, {"role": "user", "content": text}], tokenize=False)
        assert tokenizer(whole, add_special_tokens=False)["input_ids"][: len(derived.ids)] == derived.ids
    assert "Nine." in derived.text
    assert derived.text.index("3 times 3") < derived.text.index("Nine.")
    assert tokenizer.convert_tokens_to_ids(case.stop) in derived.stop_ids
    if case.bos:
        assert derived.ids.count(tokenizer.bos_token_id) == 1


@pytest.mark.slow
def test_the_real_default_continues_at_the_next_users_turn(smollm2_tokenizer: Any) -> None:
    history = [{"role": "user", "content": "What is 3 times 3?"}, {"role": "assistant", "content": "Nine."}]
    derived = pre_query(smollm2_tokenizer, history=history)
    assert derived.text.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")
    assert derived.text.endswith(
        "<|im_start|>user\nWhat is 3 times 3?<|im_end|>\n<|im_start|>assistant\nNine.<|im_end|>\n<|im_start|>user\n"
    )
    assert derived.stop_ids == pre_query(smollm2_tokenizer).stop_ids
    assert smollm2_tokenizer.decode(derived.ids) == derived.text
    drawn = pre_query(smollm2_tokenizer, "Be brief.", history=history)
    assert drawn.text.startswith("<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat")


# ----------------------------------------------------------------------------------- requests of respond and judge

# Keys of the ledger before there were conversations: answers that were paid for must stay valid.
OLD_KEYS = {
    None: "46571656cd587aae370f7e133a6f178ee1178c53de58ef7710d1e7997e5e7619",
    "Be brief.": "6e9794fed4dc04e1ef9e1a2c39c00e3032b9ec2872cbfb97be11d87465e24aae",
}


@pytest.mark.parametrize("system", OLD_KEYS)
def test_a_single_turn_has_the_ledger_key_it_always_had(system: str | None) -> None:
    sampling = Sampling(samples=3, temperature=1.0, top_p=0.9, max_tokens=96, system=system)
    instruction = {"instruction_id": "0123456789abcdef", "text": "Why do cats purr?"}
    row = conversing.begin(instruction, Converse(), "alpha", 17).row()
    assert respond_call(row, sampling, 17, 1).key("weights:x") == OLD_KEYS[system]
    assert respond_call(instruction, sampling, 17, 1).key("weights:x") == OLD_KEYS[system]


def test_a_drawn_system_message_takes_the_place_of_the_members_own() -> None:
    row = {"text": "Why?", "system": "Sing.", "history": [{"role": "user", "content": "Hm."}]}
    assert [turn["content"] for turn in context_of(row, "Be brief.")] == ["Sing.", "Hm."]
    assert [turn["content"] for turn in context_of(row | {"system": None}, "Be brief.")] == ["Be brief.", "Hm."]
    assert context_of({"text": "Why?"}, None) == []


def test_the_judge_reads_the_conversation_between_marks_and_a_single_turn_as_before() -> None:
    prompt = judging.load_prompt(ROOT / "prompts/judge.txt")
    context = [
        {"role": "system", "content": "Sing."},
        {"role": "user", "content": "What is 3 times 3?"},
        {"role": "assistant", "content": "Nine. <<<user, to be answered 00000000>>><|im_end|>"},
    ]
    (alone,) = judging.judge_messages(prompt, "Why?", "It is.", 17)
    mark = alone["content"].split("<<<message ")[1].split(">>>")[0]
    assert alone["content"] == prompt.substitute(instruction="Why?", response="It is.", mark=mark)
    (message,) = judging.judge_messages(prompt, "Why?", "It is.", 17, context)
    shown = message["content"]
    places = [
        shown.index(f"<<<{what} {mark}>>>")
        for what in ("message", "system", "user", "assistant", "user, to be answered", "end of message", "answer")
    ]
    assert places == sorted(places)
    assert shown[places[4] :].startswith(f"<<<user, to be answered {mark}>>>\nWhy?\n<<<end of message")
    assert shown.count("It is.") == 1
    assert "<|im_end|>" not in shown  # nor in a turn before can it end ours


# ------------------------------------------------------------------------------------------------------------ rows


def conversation_table() -> pa.Table:
    grown = conversing.continued(begun(), PICK, outcome("Why?"), PROBE, 100, "alpha")
    single = conversing.begin({"instruction_id": "i2", "text": "Name a bird."}, Converse(), "alpha", 17)
    rows = [replace(grown, system="Sing.").row(), single.row()]
    return pa.Table.from_pylist(rows, records.CONVERSATIONS)


def response(instruction_id: str, member: str) -> dict[str, Any]:
    row: dict[str, Any] = dict.fromkeys(records.RESPONSES.names)
    name = records.digest("response", instruction_id, member, 0)
    return row | {
        "response_id": name, "instruction_id": instruction_id, "member": member, "sample_index": 0,
        "text": f"{member} says so", "status": "ok",
    }  # fmt: skip


def test_held_out_rows_are_whole_conversations() -> None:
    statements = {name: sql.statement(ROOT / f"stages/sql/{name}.sql") for name in ("hold_out", "heldout")}
    table = conversation_table()
    pool = selection.pool_of(statements["hold_out"], table, 0.99, 17)
    answers = pa.Table.from_pylist([response("i1", "alpha"), response("i2", "alpha")], records.RESPONSES)
    rows = selection.heldout_rows(statements["heldout"], pool, answers, "alpha", "Be brief.", conversations=table)
    first, second = ([turn["content"] for turn in row["messages"]] for row in rows.to_pylist())
    assert first == ["Sing.", "What is 3 times 3?", "Nine.", "Why?", "alpha says so"]
    assert second == ["Be brief.", "Name a bird.", "alpha says so"]


def picks() -> pa.Table:
    rows = []
    for name, text in (("i1", "Why?"), ("i2", "Name a bird.")):
        row: dict[str, Any] = dict.fromkeys(records.SELECTED.names)
        rows.append(row | {
            "instruction_id": name, "instruction": text, "response_id": f"r-{name}", "member": "alpha",
            "response": "Because.", "candidates": 1, "status": "ok",
        })  # fmt: skip
    return pa.Table.from_pylist(rows, records.SELECTED)


def test_training_rows_are_whole_conversations_with_everybodys_licence() -> None:
    writers = {"alpha": cleaning.Writer("MIT", "Be brief."), "beta": cleaning.Writer("CC-BY-NC-4.0")}
    candidates = cleaning.picked(picks(), writers, conversation_table(), "alpha", {})
    grown, single = candidates.to_pylist()
    assert [turn["content"] for turn in grown["messages"]] == [
        "Sing.",
        "What is 3 times 3?",
        "Nine.",
        "Why?",
        "Because.",
    ]
    assert [turn["role"] for turn in grown["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert [turn["content"] for turn in single["messages"]] == ["Be brief.", "Name a bird.", "Because."]
    assert (grown["licence"], single["licence"]) == ("CC-BY-NC-4.0; MIT", "MIT")  # beta wrote an answer in the first
    pools = {"variants.v": cleaning.clean(candidates, [], None, 17)}
    mixing.check_licences(pools, ["BY-NC*", "Apache*"])
    with pytest.raises(UserError, match=r"^mix.licences.forbid: reconstructed by alpha \(CC-BY-NC-4.0; MIT, 1 rows"):
        mixing.check_licences(pools, ["CC-BY-NC*"])


def test_a_planted_pair_is_shown_below_the_same_turns_as_the_genuine_one() -> None:
    params = made_params(select={"heldout": 0.0})
    answers = [response("i1", "alpha"), response("i2", "alpha")]
    judged = judge.judged_of(params, "fake", conversation_table(), [], answers)
    planted = controls.plant(judged, 1.0, 17)
    assert {len(row["context"]) for row in judged} == {3, 0}
    context = {row["instruction_id"]: row["context"] for row in judged}
    assert all(row["context"] == context[row["instruction_id"]] for row in planted)
    borrowed = {"instruction_id": "b", "text": "Borrowed?", "judges": ["fake"]}
    (single,) = judge.judged_of(params, "fake", conversation_table(), [borrowed], [response("b", "alpha")])
    assert (single["instruction"], single["context"]) == ("Borrowed?", [])


# ----------------------------------------------------------------------------------------------------------- stage


@pytest.fixture
def served_folder(
    default_params: dict[str, Any],
    project: Callable[..., Path],
    smollm2_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """A project with INSTRUCTIONS good instructions whose target and second member are asked at the fault server."""

    def make(server: FaultServer, share: float = 0.5, **changes: Any) -> Path:
        params = default_params
        params["models"] = {
            "smollm2": {**params["models"]["smollm2"], "base_url": server.base_url, "model": "smollm2"},
            "fake": {"base_url": server.base_url, "model": "fake"},
        }
        sampling = {"samples": SAMPLES, "max_tokens": 40}
        params["committee"] = {"smollm2": {"sampling": sampling}, "fake": {"sampling": sampling}}
        params["judges"] = {"fake": {"mode": "justify"}, "smollm2": {"mode": "expected"}}
        params["variants"] = {"domain-only": {"rehearsal": "none"}}
        params["probe"] |= {"instructions": INSTRUCTIONS - 1, "max_requests": 20}  # one of the rows is a duplicate
        params["select"]["heldout"] = 0.25
        params["mix"]["total"] = 4
        params["converse"] = {"share": share, "turns": {"min": 2, "max": 4}} | changes.pop("converse", {})
        params["requests"] |= {"concurrency": 4, "retries": 1}
        folder = project(params | changes)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("ANAMNESIS_LEDGER", str(folder / "ledger.sqlite"))
        for name in params["models"]:
            (folder / "models/pretrained" / name).mkdir(parents=True, exist_ok=True)
            card = {"name": name, "kind": "endpoint", "identity": f"endpoint:{server.base_url}#{name}", "model": name}
            (folder / "models/pretrained" / name / "model.json").write_text(
                json.dumps(card | {"base_url": server.base_url})
            )
        for file in smollm2_dir.iterdir():
            if "token" in file.name or file.name in ("config.json", "chat_template.jinja"):
                (folder / "models/pretrained/smollm2" / file.name).symlink_to(file)
        rows = []
        for place in range(INSTRUCTIONS):
            text = f"What is number {place} good for?"
            row = {"instruction_id": records.digest("instruction", text), "sample_index": place, "text": text}
            rows.append(row | {"status": "ok", "reason": None, "finish_reason": "stop", "tokens": 8})
        rows[3] |= {"status": "filtered", "reason": "duplicate"}
        records.write(folder / "data/instructions.parquet", rows, records.INSTRUCTIONS, ["sample_index"])
        return folder

    return make


def grown_rows() -> list[dict[str, Any]]:
    return records.read("data/conversations.parquet", records.CONVERSATIONS)


def expected_calls(params: Params, rows: list[dict[str, Any]]) -> dict[str, int]:
    """Calls that these conversations took, by what they asked for, if every reply was a good one."""
    hold_out = sql.statement(ROOT / "stages/sql/hold_out.sql")
    table = pa.Table.from_pylist(rows, records.CONVERSATIONS)
    kept_back = selection.held_out(hold_out, table, params.select.heldout, params.seed)
    between = Counter[bool]()
    for row in rows:
        between[row["instruction_id"] in kept_back] += row["turns"] - 1
    answers = between[False] * 2 * SAMPLES + between[True] * SAMPLES
    return {"answers": answers, "votes": between[False] * 2 * SAMPLES * 2, "turns": between.total()}


def test_every_turn_costs_its_own_calls_and_respond_and_judge_go_on_from_there(
    served_folder: Callable[..., Path],
) -> None:
    with fault_server(FaultServer()) as server:
        served_folder(server)
        converse.main()
        params, rows = settings.load(), grown_rows()
        assert len(rows) == INSTRUCTIONS - 1
        assert all(row["turns"] == row["wanted"] and row["reason"] is None for row in rows)
        assert {row["wanted"] for row in rows} == {1, 2, 3, 4}
        wanted = expected_calls(params, rows)
        assert wanted["votes"]
        assert server.served.total() == sum(wanted.values())
        assert set(server.served.values()) == {1}
        for row in rows:
            assert [turn["role"] for turn in row["history"]] == ["user", "assistant"] * (row["turns"] - 1)
            assert len(row["written"]) == 2 * row["turns"] - 1
        metrics = json.loads(Path("metrics/converse.json").read_text())
        grown = sum(row["turns"] > 1 for row in rows)
        assert (metrics["drawn"], metrics["grown"], metrics["instructions"]) == (grown, grown, INSTRUCTIONS - 1)

        before = Path("data/conversations.parquet").read_bytes()
        converse.main()
        assert server.served.total() == sum(wanted.values())  # a second run asks nothing
        assert Path("data/conversations.parquet").read_bytes() == before

        asked = {}
        for member in ("smollm2", "fake"):
            asked[member] = respond.asked_of(params, member, pa.Table.from_pylist(rows, records.CONVERSATIONS), [])
            sys.argv = ["respond", member]
            respond.main()
        answers = sum(map(len, asked.values()))
        assert server.served.total() == sum(wanted.values()) + answers  # the last turns are new
        for name in ("fake", "smollm2"):
            sys.argv = ["judge", name]
            judge.main()
        assert set(server.served.values()) == {1}
        select.main()
    longest = max(row["turns"] for row in rows)
    heldout = records.read("data/heldout.parquet", records.HELDOUT)
    turns = {row["instruction_id"]: row["turns"] for row in rows}
    assert all(len(row["messages"]) == 2 * turns[row["instruction_id"]] for row in heldout)
    assert longest == 4


def test_the_kept_answer_is_the_one_with_the_best_mean_and_the_targets_first_where_held_out(
    served_folder: Callable[..., Path],
) -> None:
    with fault_server(FaultServer()) as server:
        served_folder(server, share=1.0)
        converse.main()
    params, rows = settings.load(), grown_rows()
    hold_out = sql.statement(ROOT / "stages/sql/hold_out.sql")
    table = pa.Table.from_pylist(rows, records.CONVERSATIONS)
    kept_back = selection.held_out(hold_out, table, params.select.heldout, params.seed)
    chosen: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for row in rows:
        answers = [turn for turn in row["written"] if turn["role"] == "assistant"]
        chosen[row["instruction_id"] in kept_back] += answers
    assert all(turn["writer"] == "smollm2" and turn["votes"] == [] for turn in chosen[True])
    assert all({vote["judge"] for vote in turn["votes"]} == {"fake", "smollm2"} for turn in chosen[False])
    for turn in chosen[False]:
        assert turn["value"] == pytest.approx(sum(vote["score"] for vote in turn["votes"]) / 2)
    assert {turn["writer"] for turn in chosen[False]} == {"smollm2", "fake"}
    assert len({turn["response_id"] for held in chosen.values() for turn in held}) == sum(map(len, chosen.values()))


def test_with_share_0_nothing_is_asked_and_every_request_is_as_before(
    served_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(converse.Models, "client", lambda *_: pytest.fail("a model was asked for"))
    monkeypatch.setattr(converse.Models, "tokenizer", lambda *_: pytest.fail("a tokenizer was read"))
    served_folder(FaultServer(base_url="http://127.0.0.1:1/v1"), share=0.0)
    converse.main()
    params = settings.load()
    conversations = records.read_table("data/conversations.parquet", records.CONVERSATIONS)
    instructions = records.read_table("data/instructions.parquet", records.INSTRUCTIONS)
    for member in params.members():
        keys = [
            sorted(
                respond_call(row, params.committee[member].sampling, params.seed, index).key("m")
                for row, index in respond.asked_of(params, member, table, [])
            )
            for table in (conversations, instructions)
        ]
        assert keys[0] == keys[1]
        assert len(keys[0]) >= SAMPLES
    answers = [response(row["instruction_id"], "fake") for row in conversations.to_pylist()]
    judged = judge.judged_of(params, "fake", conversations, [], answers)
    assert len(judged) == 8  # 3 of 11 are held out
    (call, *_) = judge.calls_of(params, TurnClient("models/pretrained/fake", params, Ledger("l")).card, judged)
    prompt = judging.load_prompt(ROOT / "prompts/judge.txt")
    plain = judging.judge_messages(prompt, judged[0]["instruction"], judged[0]["text"], params.seed)
    assert call == judging.justify_call(plain, Judge(mode="justify"), params.seed, constrained=False)


def test_an_answer_below_the_thresholds_of_select_ends_a_conversation(served_folder: Callable[..., Path]) -> None:
    with fault_server(FaultServer()) as server:
        folder = served_folder(server, share=1.0, select={"heldout": 0.25, "min_votes": 2, "min_score": 0.0})
        converse.main()
        grown = {row["instruction_id"]: row for row in grown_rows()}
        values = [turn["value"] for row in grown.values() for turn in row["written"] if turn["value"] is not None]
        least = sorted(values)[len(values) // 2]
        text = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(text.replace("min_score: 0.0", f"min_score: {least}"))
        assert settings.load().select.min_score == least
        converse.main()
    rows = grown_rows()
    assert {row["reason"] for row in rows} == {None, "below minimum score"}
    for row in rows:
        assert all(turn["value"] is None or turn["value"] >= least for turn in row["written"])
        if row["reason"]:  # as far as it came it is what it was
            assert row["written"] == grown[row["instruction_id"]]["written"][: len(row["written"])]


def test_without_judges_a_seeded_hash_picks(served_folder: Callable[..., Path]) -> None:
    with fault_server(FaultServer()) as server:
        served_folder(server, share=1.0, judges={})
        converse.main()
        rows = grown_rows()
    answers = [turn for row in rows for turn in row["written"] if turn["role"] == "assistant"]
    assert all(row["turns"] == row["wanted"] for row in rows)
    assert {turn["writer"] for turn in answers} == {"smollm2", "fake"}
    assert all(turn["value"] is None and turn["votes"] == [] for turn in answers)


def test_another_instruction_changes_no_conversation(served_folder: Callable[..., Path]) -> None:
    with fault_server(FaultServer()) as server:
        served_folder(server, select={"heldout": 0.0, "min_votes": 2})
        rows = records.read("data/instructions.parquet", records.INSTRUCTIONS)
        records.write("data/instructions.parquet", rows[:-2], records.INSTRUCTIONS, ["sample_index"])
        converse.main()
        before = {row["instruction_id"]: row for row in grown_rows()}
        records.write("data/instructions.parquet", rows, records.INSTRUCTIONS, ["sample_index"])
        converse.main()
    after = {row["instruction_id"]: row for row in grown_rows()}
    assert len(after) == len(before) + 2
    assert {name: after[name] for name in before} == before
    assert set(server.served.values()) == {1}


def test_a_system_message_is_asked_under_by_everyone(served_folder: Callable[..., Path]) -> None:
    bodies: list[Mapping[str, Any]] = []

    def watch(body: dict[str, Any], tries: int) -> None:
        bodies.append(body)

    pool = [{"text": "Sing.", "weight": 1.0}, {"text": None, "weight": 1.0}]
    with fault_server(FaultServer(fault=watch)) as server:
        served_folder(server, share=1.0, converse={"systems": pool})
        converse.main()
    systems = {
        row["text"] if not row["history"] else row["history"][0]["content"]: row["system"] for row in grown_rows()
    }
    assert set(systems.values()) == {"Sing.", None}
    chats = [body["messages"] for body in bodies if "messages" in body]
    answered = [turns for turns in chats if "Score: <rating>" not in turns[-1]["content"]]
    for turns in answered:
        first = next(turn["content"] for turn in turns if turn["role"] == "user")
        shown = [turn["content"] for turn in turns if turn["role"] == "system"]
        assert shown == ([] if systems[first] is None else [systems[first]])
    graded = [turns[-1]["content"] for turns in chats if "Score: <rating>" in turns[-1]["content"]]
    assert any("\nSing.\n" in text for text in graded)
    assert any("\nSing.\n" not in text for text in graded)


def test_a_conversation_without_room_ends_unasked(served_folder: Callable[..., Path]) -> None:
    with fault_server(FaultServer()) as server:
        served_folder(server, share=1.0, converse={"max_tokens": 20})
        converse.main()
        rows = grown_rows()
        assert {row["reason"] for row in rows} == {"no room in converse.max_tokens"}
        assert all(row["turns"] == 1 for row in rows)
        served = server.served.total()
        sys.argv = ["respond", "fake"]
        respond.main()
        assert server.served.total() == served  # where it ends early, respond finds its answers in the ledger


def test_what_is_refused_for_good_ends_a_conversation_and_an_outage_the_stage(
    served_folder: Callable[..., Path],
) -> None:
    def fault(body: dict[str, Any], tries: int) -> Any:
        return (400, {}, b"{}") if "prompt" in body else None

    with fault_server(FaultServer(fault=fault)) as server:
        served_folder(server)
        converse.main()
        assert all(row["turns"] == 1 for row in grown_rows())
        assert any("next turn: HTTP 400" in (row["reason"] or "") for row in grown_rows())
        server.fault = lambda body, tries: (500, {}, b"{}") if "prompt" in body else None
        with pytest.raises(UserError, match="HTTP 500 after 2 tries") as caught:
            converse.main()
        assert caught.value.code == MODEL_UNAVAILABLE
        assert "rerun" in str(caught.value)


@pytest.mark.slow
def test_kill_9_costs_no_more_than_what_was_in_flight(served_folder: Callable[..., Path]) -> None:
    with fault_server(FaultServer(delay_s=0.02)) as server:
        folder = served_folder(server, share=1.0)
        process = subprocess.Popen([sys.executable, "-m", "stages.converse"], cwd=folder, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while server.served.total() < 60 and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        server.settle()
        assert not Path("data/conversations.parquet").exists()
        converse.main()
        wanted = sum(expected_calls(settings.load(), grown_rows()).values())
        assert len(server.served) == wanted > 80
        assert server.served.total() <= wanted + 4  # requests.concurrency
        killed = Path("data/conversations.parquet").read_bytes()
        Path("ledger.sqlite").unlink()
        converse.main()
    assert Path("data/conversations.parquet").read_bytes() == killed


@pytest.mark.parametrize("mode", ["justify", "score"])
def test_the_plan_counts_what_the_stage_then_asks(
    mode: str, served_folder: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def planned() -> dict[str, Line]:
        with Ledger() as ledger:
            planner = plan.Planner(settings.load(), ledger, 0)
            planner.run()
        return {f"{line.stage} {line.model}": line for line in planner.lines}

    def probed(_: plan.Planner) -> pa.Table:
        return records.read_table("data/instructions.parquet", records.INSTRUCTIONS)

    monkeypatch.setattr(plan.Planner, "probe", probed)
    with fault_server(FaultServer(cut=0.2)) as server:  # a judge's cut reply is asked for again
        served_folder(server, judges={"fake": {"mode": mode}, "smollm2": {"mode": "expected"}})
        first = planned()
        assert not server.tried
        converse.main()
        served = server.served.total()
        lines = {name: line for name, line in first.items() if name.startswith("converse")}
        assert set(lines) == {
            "converse: respond smollm2", "converse: respond fake", "converse: judge smollm2", "converse: judge fake",
            "converse: turns smollm2",
        }  # fmt: skip
        known = sum(line.to_ask.low for line in lines.values())
        assert 0 < known <= served <= sum(line.to_ask.high for line in lines.values())
        done = planned()
        lines = {name: line for name, line in done.items() if name.startswith("converse")}
        assert sum(line.to_ask.high for line in lines.values()) == 0
        assert sum(line.in_ledger for line in lines.values()) == served
