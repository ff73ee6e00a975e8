"""Stage converse against a server: calls, picks, ends, a kill, and the plan; what stays single stays as it was."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from asking import ROOT, kill, made_response, served_cards, served_params
from fault_server import FaultServer, fault_server

from anamnesis import judging, records, selection, sql
from anamnesis import params as settings
from anamnesis.errors import MODEL_UNAVAILABLE, UserError
from anamnesis.ledger import Ledger
from anamnesis.params import Params
from anamnesis.planning import Line
from anamnesis.responding import respond_call
from anamnesis.sections import Judge
from anamnesis.turns import TurnClient
from stages import converse, judge, plan, respond, select

SAMPLES = 2
INSTRUCTIONS = 12


@pytest.fixture
def served_folder(
    default_params: dict[str, Any],
    project: Callable[..., Path],
    smollm2_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Path]:
    """A project with INSTRUCTIONS good instructions whose target and second member are asked at the fault server."""

    def make(server: FaultServer, share: float = 0.5, **changes: Any) -> Path:
        params = served_params(default_params, server, SAMPLES)
        params["probe"] |= {"instructions": INSTRUCTIONS - 1, "max_requests": 20}  # one of the rows is a duplicate
        params["converse"] = {"share": share, "turns": {"min": 2, "max": 4}} | changes.pop("converse", {})
        params["requests"] |= {"concurrency": 4, "retries": 1}
        folder = project(params | changes)
        monkeypatch.chdir(folder)
        monkeypatch.setenv("ANAMNESIS_LEDGER", str(folder / "ledger.sqlite"))
        served_cards(folder, server)
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
    answers = [made_response(row["instruction_id"], "fake") for row in conversations.to_pylist()]
    judged = judge.judged_of(params, "fake", conversations, [], answers)
    assert len(judged) == 8  # 3 of 11 are held out
    (call, *_) = judge.calls_of(params, TurnClient("models/pretrained/fake", params, Ledger("l")).card, judged)
    prompt = judging.load_prompt(ROOT / "prompts/judge.txt")
    plain = judging.judge_messages(prompt, judged[0]["instruction"], judged[0]["text"], params.seed)
    assert call.request == judging.justify_call(plain, Judge(mode="justify"), params.seed, constrained=False).request


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
        process = subprocess.Popen(
            [sys.executable, "-m", "stages.converse"], cwd=folder, start_new_session=True, stderr=subprocess.DEVNULL
        )
        kill(process, server, 60)
        assert not grown_rows()  # the empty table that the folder began with
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
