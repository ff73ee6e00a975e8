"""What one change of params.yaml costs in calls, to the call: never more than what is new."""

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import QUICK, card
from fault_server import FaultServer, fault_server, reply_to

from anamnesis import controls, records
from anamnesis.errors import QUALITY, UserError
from stages import agree, clean, converse, judge, mix, rehearse, respond, select

INSTRUCTIONS, MEMBERS, JUDGES, SAMPLES = 10, 3, 2, 3
RESPONSES = INSTRUCTIONS * MEMBERS * SAMPLES


class Pipeline:
    """A project at a made-up server: stages respond, judge and select run in this process, with other params each time.

    Models are named m0, m1 … at one server; m0 is the target, the judges are the last ones.
    """

    def __init__(self, params: dict[str, Any], server: FaultServer, folder: Path, patch: pytest.MonkeyPatch):
        self.params, self.server, self.folder, self._patch = params, server, folder, patch
        weights = params["models"]["smollm2"]["uri"]
        params |= {"target": "m0", "models": {}, "committee": {}, "judges": {}, "variants": {}}
        params["requests"] |= QUICK | {"timeout_s": 60}  # nothing hangs here, and a busy machine is slow
        params["select"] = {"heldout": 0.0, "min_votes": 1}
        for i in range(MEMBERS):
            self.add_model(f"m{i}")
            params["committee"][f"m{i}"] = {"sampling": {"samples": SAMPLES, "max_tokens": 32}}
        for i in range(JUDGES):
            params["judges"][f"m{MEMBERS - 1 - i}"] = {"mode": ["justify", "expected"][i % 2]}
        params["models"]["m0"]["uri"] = weights
        self.add_variant("committee", "mean")
        self.write_instructions(INSTRUCTIONS)

    def add_model(self, name: str) -> None:
        self.params["models"][name] = {"base_url": self.server.base_url, "model": name}
        folder = self.folder / "models/pretrained" / name
        card(folder, self.server, name=name, model=name, identity=f"endpoint:{self.server.base_url}#{name}")

    def add_variant(self, name: str, rule: str) -> None:
        members, judges = list(self.params["committee"]), list(self.params["judges"])
        self.params["variants"][name] = {
            "rehearsal": "reconstructed", "members": members, "judges": judges, "rule": rule,
        }  # fmt: skip

    def write_instructions(self, count: int) -> None:
        rows = [
            {"instruction_id": records.digest("made", i), "sample_index": i, "text": f"Tell me fact number {i}.",
             "status": "ok", "reason": None, "finish_reason": "stop", "tokens": 6}
            for i in range(count)
        ]  # fmt: skip
        records.write(self.folder / "data/instructions.parquet", rows, records.INSTRUCTIONS, ["sample_index"])

    def borrow(self, count: int, members: list[str], judges: list[str], samples: int) -> None:
        """A variant whose `count` instructions come from a file, answered by `members` and scored by `judges`."""
        file = self.folder / "mine.jsonl"
        rows = [{"instruction": f"Borrowed question {i}?", "response": "unused"} for i in range(50)]
        file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        self.params["rehearsal"] |= {"instructions": count, "sources": {"mine": {"source": f"path:{file}"}}}
        self.params["mix"]["total"] = 3
        self.params["variants"]["borrowing"] = {
            "rehearsal": "reconstructed", "instructions": "mine", "members": members, "judges": judges,
            "samples": samples, "rule": "mean",
        }  # fmt: skip

    def run(self) -> tuple[int, int]:
        """Run all four stages; how many calls the server got from respond and from judge."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params), encoding="utf-8")
        rehearse.main()
        before = self.server.tried.total()
        converse.main()
        assert self.server.tried.total() == before  # single turns by default
        asked = []
        for stage, names in ((respond, self.params["committee"]), (judge, self.params["judges"])):
            before = self.server.tried.total()
            for name in names:
                self._patch.setattr(sys, "argv", [stage.__name__, name])
                stage.main()
            asked.append(self.server.tried.total() - before)
        select.main()
        assert self.server.tried.total() == before + asked[1]  # selecting asks nobody
        assert set(self.server.tried.values()) == {1}
        return asked[0], asked[1]


@pytest.fixture
def pipeline(
    default_params: dict[str, Any], project: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Pipeline]:
    """A pipeline that has run once."""
    folder = project(default_params)
    monkeypatch.chdir(folder)
    with fault_server(FaultServer(cut=0.1)) as server:
        yield Pipeline(default_params, server, folder, monkeypatch)


def complete(pipeline: Pipeline) -> dict[str, tuple[str, str]]:
    """Instruction and text of every complete response by its id; some replies are cut in every run here."""
    rows: list[dict[str, Any]] = []
    for name in pipeline.params["committee"]:
        rows += records.read(pipeline.folder / f"data/responses/{name}.parquet", records.RESPONSES)
    assert {row["status"] for row in rows} == {"ok", "truncated"}
    return {row["response_id"]: (row["instruction_id"], row["text"]) for row in rows if row["status"] == "ok"}


def votes_of(pipeline: Pipeline, everyone: bool = True) -> set[tuple[str, str, str, bool]]:
    """What each judge was asked, by judge, instruction, response, and whether it was the second question.

    Genuine responses that are complete (all of them, where `everyone` judges all), and planted ones; some replies are
    cut in every run here, and asked for again.
    """
    asked, text_of = set(), complete(pipeline)
    for name in pipeline.params["judges"]:
        genuine = records.read(pipeline.folder / f"data/judgments/{name}.parquet", records.JUDGMENTS)
        judged = {row["response_id"] for row in genuine}
        assert judged == set(text_of) if everyone else judged <= set(text_of)
        planted = records.read(pipeline.folder / f"data/controls/{name}.parquet", records.CONTROLS)
        rows = [(text_of[row["response_id"]], row["parse"]) for row in genuine]
        rows += [((row["instruction_id"], row["text"]), row["parse"]) for row in planted if row["text"] is not None]
        asked |= {(name, *said, False) for said, _ in rows}
        asked |= {(name, *said, True) for said, parse in rows if parse in ("reask", "missing")}
    assert any(again for *_, again in asked)
    return asked


def test_the_first_run_asks_for_everything_and_the_second_for_nothing(pipeline: Pipeline) -> None:
    asked, votes = pipeline.run()
    assert (asked, votes) == (RESPONSES, len(votes_of(pipeline)))
    assert pipeline.run() == (0, 0)


def test_half_of_the_instructions_get_planted_pairs(pipeline: Pipeline) -> None:
    pipeline.params["judging"]["control"] = 0.0
    pipeline.run()
    without = votes_of(pipeline)
    pipeline.params["judging"]["control"] = 0.5
    asked, votes = pipeline.run()
    assert (asked, votes) == (0, len(votes_of(pipeline) - without))
    for name in pipeline.params["judges"]:
        rows = records.read(pipeline.folder / f"data/controls/{name}.parquet", records.CONTROLS)
        assert Counter(row["kind"] for row in rows) == dict.fromkeys(controls.KINDS, INSTRUCTIONS // 2)
        assert {row["reason"] for row in rows if row["kind"] == "wrong_number"} == {"no number"}
        assert all((row["parse"] is None) == (row["status"] == "filtered") for row in rows)


def test_no_planted_text_and_no_pair_id_is_ever_selected_or_mixed(
    pipeline: Pipeline, smollm2_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline.params["judging"]["control"] = 1.0
    pipeline.params["clean"] |= {"near_duplicates": None, "evaluation_sets": {}}
    pipeline.params["mix"]["total"] = 7
    pipeline.run()
    turns = [{"role": "user", "content": "Where is the moss?"}, {"role": "assistant", "content": "On page 7."}]
    row = {"row_id": "d1", "messages": turns, "source": "own", "licence": "MIT"}
    records.write("data/domain/train.parquet", [row], records.DOMAIN_TRAIN, ["row_id"])
    row = {"row_id": "t1", "kind": "text", "messages": [{"role": "user", "content": "And the fern?"}, turns[1]]}
    records.write("data/domain/test.parquet", [row], records.DOMAIN_TEST, ["row_id"])
    clean.main()
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *_, **__: smollm2_tokenizer)
    mix.main()

    genuine = {text for _, text in complete(pipeline).values()}  # the answer to another instruction is one of these
    names = pipeline.params["judges"]
    planted = [row for name in names for row in records.read(f"data/controls/{name}.parquet", records.CONTROLS)]
    texts = {row["text"] for row in planted} - genuine - {None}
    assert len(texts) > INSTRUCTIONS
    selected = records.read("data/selected/committee.parquet", records.SELECTED)
    mixed = records.read("data/mixed/committee.parquet", records.MIXED)
    answers = {row["response"] for row in selected if row["status"] == "ok"}
    learnt = {turn["content"] for row in mixed for turn in row["messages"]}
    assert len(answers & learnt) == 6
    assert not texts & (answers | learnt)
    everything = json.dumps([selected, mixed])
    assert not any(row["pair_id"] in everything for row in planted)


def test_one_more_instruction(pipeline: Pipeline) -> None:
    pipeline.run()
    before = votes_of(pipeline)
    pipeline.write_instructions(INSTRUCTIONS + 1)
    asked, votes = pipeline.run()
    assert (asked, votes) == (MEMBERS * SAMPLES, len(votes_of(pipeline) - before))
    first = [one for one in votes_of(pipeline) - before if not one[-1]]
    assert len(first) <= JUDGES * (MEMBERS * SAMPLES + len(controls.KINDS) + 1)  # and its neighbour's planted pair


def test_one_instruction_less(pipeline: Pipeline) -> None:
    pipeline.run()
    before = votes_of(pipeline)
    pipeline.write_instructions(INSTRUCTIONS - 1)
    asked, votes = pipeline.run()
    assert (asked, votes) == (0, len(votes_of(pipeline) - before))
    first = [one for one in votes_of(pipeline) - before if not one[-1]]
    assert len(first) <= JUDGES * (len(controls.KINDS) + 1)  # another one's planted pairs in the place of its own


def test_one_more_member(pipeline: Pipeline) -> None:
    pipeline.run()
    before = votes_of(pipeline)
    pipeline.add_model("new")
    pipeline.params["committee"]["new"] = pipeline.params["committee"]["m0"]
    assert pipeline.run() == (INSTRUCTIONS * SAMPLES, len(votes_of(pipeline) - before))


def test_one_more_judge(pipeline: Pipeline) -> None:
    pipeline.run()
    before = votes_of(pipeline)
    pipeline.add_model("new")
    pipeline.params["judges"]["new"] = {"mode": "justify"}
    asked, votes = pipeline.run()
    new = votes_of(pipeline) - before
    assert (asked, votes) == (0, len(new))
    assert {name for name, *_ in new} == {"new"}


def test_another_mode_of_a_judge(pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.params["judges"]["m2"] = {"mode": "score"}
    asked, votes = pipeline.run()
    assert (asked, votes) == (0, sum(name == "m2" for name, *_ in votes_of(pipeline)))


def test_five_samples_in_place_of_three(pipeline: Pipeline) -> None:
    pipeline.run()
    before = votes_of(pipeline)
    for member in pipeline.params["committee"].values():
        member["sampling"] = member["sampling"] | {"samples": 5}
    new = INSTRUCTIONS * MEMBERS * 2
    assert pipeline.run() == (new, len(votes_of(pipeline) - before))
    for member in pipeline.params["committee"].values():
        member["sampling"] = member["sampling"] | {"samples": 3}
    assert pipeline.run() == (0, 0)


def test_another_temperature_of_one_member(pipeline: Pipeline) -> None:
    pipeline.run()
    before = votes_of(pipeline)
    member = pipeline.params["committee"]["m1"]
    member["sampling"] = member["sampling"] | {"temperature": 0.5}
    assert pipeline.run() == (INSTRUCTIONS * SAMPLES, len(votes_of(pipeline) - before))


@pytest.mark.parametrize("rule", ["first", "random", "mean", "median", "leave-own-judge-out"])
def test_a_new_rule_of_selection(rule: str, pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.add_variant("another", rule)
    assert pipeline.run() == (0, 0)
    assert (pipeline.folder / "data/selected/another.parquet").exists()


def test_a_judge_that_can_not_be_read_fails_with_advice_and_loses_nothing(pipeline: Pipeline) -> None:
    def chatty(body: dict[str, Any], tries: int) -> tuple[int, dict[str, str], bytes] | None:
        if not any("Score: <rating>" in message["content"] for message in body["messages"]):
            return None
        reply = reply_to(body, "/v1/chat/completions")
        reply["choices"][0]["message"]["content"] = "What a nice answer! I would give it a 5."
        return 200, {}, json.dumps(reply).encode()

    pipeline.server.fault = chatty
    for again in (False, True):
        before = pipeline.server.tried.total()
        with pytest.raises(
            UserError, match=r"judge m2: 0% of \d+ replies hold a score.*set judges.m2.mode to"
        ) as error:
            pipeline.run()
        assert error.value.code == QUALITY
        assert (pipeline.server.tried.total() == before) == again  # a rerun asks nobody
        rows = records.read(pipeline.folder / "data/judgments/m2.parquet", records.JUDGMENTS)
        assert {(row["score"], row["status"], row["reason"]) for row in rows} == {
            (None, "failed", "no readable last line")
        }
        assert {row["justification"] for row in rows} == {"What a nice answer! I would give it a 5."}
    pipeline.server.fault = lambda body, tries: None
    pipeline.params["judges"]["m2"] = {"mode": "score"}  # as the advice says: only these votes are asked
    pipeline.params["judges"]["m1"] = {"mode": "score"}
    asked, votes = pipeline.run()
    assert (asked, votes) == (0, len(votes_of(pipeline)))


def test_borrowed_instructions(pipeline: Pipeline) -> None:
    """Only the variant's members answer, with its samples; only its judges read that; nobody else asks anything."""
    pipeline.params["judging"]["control"] = 0.0  # planted pairs would move with the instructions
    pipeline.run()
    before, probed_ones = votes_of(pipeline), set(complete(pipeline))
    pipeline.borrow(6, ["m1", "m2"], ["m2"], samples=2)
    asked, votes = pipeline.run()
    new = {said for key, said in complete(pipeline).items() if key not in probed_ones}

    def asked_now() -> set[tuple[str, str, str, bool]]:
        return {question for question in votes_of(pipeline, everyone=False) if question not in before}

    assert (asked, votes) == (6 * 2 * 2, len(asked_now()))
    assert {tuple(said) for name, *said, again in asked_now() if not again} == new
    assert {name for name, *_ in asked_now()} == {"m2"}
    picked = records.read(pipeline.folder / "data/selected/borrowing.parquet", records.SELECTED)
    assert len(picked) == 6
    assert all(row["instruction"].startswith("Borrowed question") and row["reason"] != "held out" for row in picked)
    assert {row["member"] for row in picked if row["status"] == "ok"} <= {"m1", "m2"}
    probed = records.read(pipeline.folder / "data/selected/committee.parquet", records.SELECTED)
    assert not {row["instruction_id"] for row in probed} & {row["instruction_id"] for row in picked}

    pipeline.borrow(8, ["m1", "m2"], ["m2"], samples=2)  # two more
    known = len(asked_now())
    asked, votes = pipeline.run()
    assert (asked, votes) == (2 * 2 * 2, len(asked_now()) - known)
    pipeline.params["variants"]["borrowing"]["rule"] = "first"
    assert pipeline.run() == (0, 0)
    pipeline.params["variants"]["borrowing"]["judges"] = ["m2", "m1"]
    known = len(asked_now())
    asked, votes = pipeline.run()
    assert asked == 0
    everything = votes_of(pipeline)  # now both judges read all
    assert votes == len(everything - before) - known
    assert {name for name, *_ in everything - before} == {"m1", "m2"}


def test_pairs_planted_beside_borrowed_instructions_are_part_of_the_agreement(pipeline: Pipeline) -> None:
    pipeline.params["judging"]["control"] = 1.0
    pipeline.params["report"]["bootstrap"] = 100
    pipeline.borrow(6, ["m1", "m2"], ["m2"], samples=2)
    pipeline.run()
    borrowed = {row["instruction_id"] for row in records.read("data/borrowed.parquet", records.BORROWED)}
    planted = records.read("data/controls/m2.parquet", records.CONTROLS)
    scores = {row["response_id"]: row["score"] for row in records.read("data/judgments/m2.parquet", records.JUDGMENTS)}
    evasive = [row for row in planted if row["kind"] == "evasive"]
    both = [row for row in evasive if row["score"] is not None and scores[row["response_id"]] is not None]
    assert borrowed & {row["instruction_id"] for row in both}
    agree.main()
    figures = records.read("data/agreement.parquet", records.AGREEMENT)
    (auc,) = [row for row in figures if (row["subject"], row["other"], row["figure"]) == ("m2", "evasive", "auc")]
    assert auc["n"] == len(both)
