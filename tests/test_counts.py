"""What one change of params.yaml costs in calls, to the call: never more than what is new."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import QUICK, card
from fault_server import FaultServer, fault_server

from anamnesis import records
from stages import judge, respond, select

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
        params["requests"] |= QUICK
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

    def run(self) -> tuple[int, int]:
        """Run all three stages; how many calls the server got from respond and from judge."""
        (self.folder / "params.yaml").write_text(yaml.safe_dump(self.params), encoding="utf-8")
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


def complete(pipeline: Pipeline) -> int:
    """How many responses are complete, so that judges read them; some are cut in every run here."""
    status: Counter[str] = Counter()
    for name in pipeline.params["committee"]:
        rows = records.read(pipeline.folder / f"data/responses/{name}.parquet", records.RESPONSES)
        status.update(row["status"] for row in rows)
    assert status["truncated"]
    assert set(status) == {"ok", "truncated"}
    return status["ok"]


def test_the_first_run_asks_for_everything_and_the_second_for_nothing(pipeline: Pipeline) -> None:
    assert pipeline.run() == (RESPONSES, JUDGES * complete(pipeline))
    assert pipeline.run() == (0, 0)


def test_one_more_instruction(pipeline: Pipeline) -> None:
    pipeline.run()
    before = complete(pipeline)
    pipeline.write_instructions(INSTRUCTIONS + 1)
    assert pipeline.run() == (MEMBERS * SAMPLES, JUDGES * (complete(pipeline) - before))


def test_one_instruction_less(pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.write_instructions(INSTRUCTIONS - 1)
    assert pipeline.run() == (0, 0)


def test_one_more_member(pipeline: Pipeline) -> None:
    pipeline.run()
    before = complete(pipeline)
    pipeline.add_model("new")
    pipeline.params["committee"]["new"] = pipeline.params["committee"]["m0"]
    assert pipeline.run() == (INSTRUCTIONS * SAMPLES, JUDGES * (complete(pipeline) - before))


def test_one_more_judge(pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.add_model("new")
    pipeline.params["judges"]["new"] = {"mode": "justify"}
    assert pipeline.run() == (0, complete(pipeline))


def test_five_samples_in_place_of_three(pipeline: Pipeline) -> None:
    pipeline.run()
    before = complete(pipeline)
    for member in pipeline.params["committee"].values():
        member["sampling"] = member["sampling"] | {"samples": 5}
    new = INSTRUCTIONS * MEMBERS * 2
    assert pipeline.run() == (new, JUDGES * (complete(pipeline) - before))
    for member in pipeline.params["committee"].values():
        member["sampling"] = member["sampling"] | {"samples": 3}
    assert pipeline.run() == (0, 0)


def test_another_temperature_of_one_member(pipeline: Pipeline) -> None:
    pipeline.run()
    member = pipeline.params["committee"]["m1"]
    member["sampling"] = member["sampling"] | {"temperature": 0.5}
    asked, votes = pipeline.run()
    rows = records.read(pipeline.folder / "data/responses/m1.parquet", records.RESPONSES)
    assert (asked, votes) == (INSTRUCTIONS * SAMPLES, JUDGES * sum(row["status"] == "ok" for row in rows))


@pytest.mark.parametrize("rule", ["first", "random", "mean", "median", "leave-own-judge-out"])
def test_a_new_rule_of_selection(rule: str, pipeline: Pipeline) -> None:
    pipeline.run()
    pipeline.add_variant("another", rule)
    assert pipeline.run() == (0, 0)
    assert (pipeline.folder / "data/selected/another.parquet").exists()
