"""What `make plan` says is what the stages then ask; what it can't know it does not say."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from asking import served_cards, served_params
from fault_server import FaultServer, fault_server

from anamnesis import controls, records
from anamnesis.ledger import Answer
from anamnesis.planning import Range, Terms, forecast, mean_range, total
from anamnesis.sections import Price, RateLimit
from anamnesis.wire import Call

GOAL, SAMPLES = 12, 2


def call(text: str) -> Call:
    return Call("chat", {"messages": [{"role": "user", "content": text}], "max_tokens": 50})


def answered(count: int, prompt: int = 100, completion: int = 20, latency: float | None = 3.6) -> list[Any]:
    return [(Answer("x", "stop", prompt, completion), latency)] * count


TERMS = Terms(Price(input=2.0, output=10.0), RateLimit(), places=4)


def test_a_forecast_is_the_mean_times_the_calls_to_come() -> None:
    line = forecast("respond", "m", answered(6), [call("a")] * 10, Range(0, 0), 500, 50, TERMS)
    assert (line.in_ledger, line.to_ask) == (6, Range(10, 10))
    assert (line.tokens_in, line.tokens_out) == (Range(1000, 1000), Range(200, 200))
    assert line.hours == Range(pytest.approx(10 * 3.6 / 4 / 3600), pytest.approx(10 * 3.6 / 4 / 3600))
    assert line.usd == Range(pytest.approx(0.004), pytest.approx(0.004))


def test_without_enough_answers_it_is_a_bound() -> None:
    ids = Call("completion", {"prompt": [1] * 100, "max_tokens": 1})
    line = forecast("judge", "m", answered(4), [ids] * 10, Range(0, 5), 500, 50, TERMS)
    assert line.to_ask == Range(10, 15)
    assert line.tokens_in == Range(1000, 1000 + 5 * 500)
    assert line.tokens_out == Range(0, 15 * 50)
    assert line.hours is None


def test_limits_and_samples_a_request_are_in_the_hours() -> None:
    def hours(**changes: Any) -> float:
        terms = Terms(**{"price": None, "limit": RateLimit(), "places": 4} | changes)
        found = forecast("respond", "m", answered(6), [call("a")] * 600, Range(0, 0), 500, 50, terms).hours
        assert found
        return found.high

    assert hours() == pytest.approx(0.15)
    assert hours(samples=3) == pytest.approx(0.05)
    assert hours(limit=RateLimit(requests_per_minute=10)) == pytest.approx(1.0)
    assert hours(limit=RateLimit(requests_per_minute=10), samples=3) == pytest.approx(1 / 3)
    assert hours(limit=RateLimit(tokens_per_minute=600)) == pytest.approx(600 * (100 + 50) / 600 / 60)


def test_the_interval_of_a_mean_is_students() -> None:
    from scipy import stats

    values = [3.0, 5.0, 4.0, 8.0, 6.0]
    low, high = stats.t.interval(0.95, 4, loc=5.2, scale=stats.sem(values))
    assert mean_range(values) == Range(pytest.approx(low), pytest.approx(high))


def test_a_total_with_an_unknown_part_is_unknown() -> None:
    priced = forecast("respond", "m", answered(6), [call("a")], Range(0, 0), 5, 5, TERMS)
    free = forecast("judge", "m", answered(6), [call("a")], Range(0, 0), 5, 5, Terms(None, RateLimit(), 4))
    done = forecast("judge", "m", answered(6), [], Range(0, 0), 5, 5, Terms(None, RateLimit(), 4))
    assert free.usd is None
    assert total([priced, free]).usd is None
    assert total([priced, done]).usd == priced.usd


@pytest.fixture
def served_project(
    default_params: dict[str, Any], project: Callable[..., Path], smollm2_dir: Path, tmp_path: Path
) -> Any:
    """A project whose target and second member are both asked at the fault server."""

    def make(server: FaultServer, **changes: Any) -> Path:
        params = served_params(default_params, server, SAMPLES)
        params["judges"] = {"fake": {"mode": "justify"}}
        params["probe"] |= {"instructions": GOAL, "canary": {"size": 6, "min_pass": 0.1}}
        folder = project(params | changes, smollm2=smollm2_dir)
        served_cards(folder, server)
        return folder

    return make


def run(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=folder, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plan(folder: Path, *arguments: str) -> dict[str, Any]:
    told = json.loads(run(folder, "stages.plan", "--json", *arguments))
    return {f"{line['stage']} {line['model']}".strip(): line for line in told["lines"]} | {"budget": told["budget"]}


def test_the_plan_is_what_the_stages_ask(served_project: Callable[..., Path]) -> None:
    prices = {"fake": {"input": 1.0, "output": 2.0}}
    with fault_server(FaultServer()) as server:
        folder = served_project(server, prices=prices, budget={"usd": None, "requests": 60, "tokens": None})
        first = plan(folder)
        assert first["respond smollm2"]["to_ask"] == {"low": GOAL * SAMPLES, "high": GOAL * SAMPLES}
        assert first["respond fake"]["to_ask"] == {"low": 9 * SAMPLES, "high": 9 * SAMPLES}  # 3 of 12 are held out
        assert first["respond smollm2"]["usd"] is None
        assert first["respond fake"]["usd"]["high"] > 0
        assert first["budget"] == ["budget.requests: 0 of 60 spent; the plan may go over it, up to 154 too much"]
        assert not server.tried

        piloted = plan(folder, "--pilot", "6")
        asked_by_pilot = sum(server.served.values())
        assert 0 < asked_by_pilot <= 6 * 4 + 6
        assert piloted["probe smollm2"]["in_ledger"] == 6
        assert piloted["probe smollm2"]["hours"] is not None

        text = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(text.replace("requests: 60", "requests: null"))
        run(folder, "stages.probe")
        run(folder, "stages.converse")
        for member in ("smollm2", "fake"):
            run(folder, "stages.respond", member)
        run(folder, "stages.judge", "fake")
        assert set(server.served.values()) == {1}  # the pilot's calls were those of the run
        done = plan(folder)
        assert done["all"]["to_ask"] == {"low": 0, "high": 0}
        assert done["respond smollm2"]["in_ledger"] == GOAL * SAMPLES
        pairs = records.read(folder / "data/controls/fake.parquet", records.CONTROLS)
        planted = sum(row["text"] is not None for row in pairs)
        assert planted == 5 * (
            len(controls.KINDS) - 2
        )  # half of 9 instructions; no number and no verb in made-up words
        assert done["judge fake"]["in_ledger"] == (GOAL * SAMPLES * 3 // 4) + 9 * SAMPLES + planted
        assert sum(server.served.values()) - done["all"]["in_ledger"] in range(0, 6 * 4)  # of the pilot, now held out


def test_the_plan_has_the_borrowed_instructions(served_project: Callable[..., Path]) -> None:
    """Five of a source, two samples of one member, read by one judge: to the call; before the draw, what to do."""
    with fault_server(FaultServer()) as server:
        folder = served_project(server)
        params = yaml.safe_load((folder / "params.yaml").read_text())
        lines = [json.dumps({"instruction": f"Borrowed {i}?", "response": "unused"}) for i in range(20)]
        (folder / "mine.jsonl").write_text("\n".join(lines))
        params["rehearsal"] |= {"instructions": 5, "sources": {"mine": {"source": "path:mine.jsonl"}}}
        params["judging"]["control"] = 0.0  # planted pairs are counted above
        params["variants"]["borrowing"] = {
            "rehearsal": "reconstructed", "instructions": "mine", "members": ["fake"], "judges": ["fake"],
        }  # fmt: skip
        (folder / "params.yaml").write_text(yaml.safe_dump(params))
        command = [sys.executable, "-m", "stages.plan"]
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert told.returncode == 2
        assert told.stderr.endswith("not what params.yaml borrows; run `dvc repro rehearse`\n")
        run(folder, "stages.rehearse")
        first = plan(folder)
        assert first["respond smollm2"]["to_ask"] == {"low": GOAL * SAMPLES, "high": GOAL * SAMPLES}
        assert first["respond fake"]["to_ask"] == {"low": (9 + 5) * SAMPLES, "high": (9 + 5) * SAMPLES}
        run(folder, "stages.probe")
        run(folder, "stages.converse")
        for member in ("smollm2", "fake"):
            run(folder, "stages.respond", member)
        between = plan(folder)
        judged = (GOAL * SAMPLES * 3 // 4) + (9 + 5) * SAMPLES
        assert between["judge fake"]["to_ask"] == {"low": judged, "high": judged}
        run(folder, "stages.judge", "fake")
        done = plan(folder)
        assert done["all"]["to_ask"] == {"low": 0, "high": 0}
        assert done["judge fake"]["in_ledger"] == judged
        assert done["respond fake"]["in_ledger"] == (9 + 5) * SAMPLES


def test_a_pilot_of_a_batch_model_is_refused(served_project: Callable[..., Path]) -> None:
    with fault_server(FaultServer()) as server:
        folder = served_project(server)
        text = (folder / "params.yaml").read_text()
        (folder / "params.yaml").write_text(text.replace("model: smollm2", "model: smollm2\n    mode: batch"))
        command = [sys.executable, "-m", "stages.plan", "--pilot", "3"]
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert told.returncode == 2
        assert told.stderr == "error: --pilot: models.smollm2 answers in batches, within a day; plan without a pilot\n"
        assert not server.tried


def test_a_server_needs_no_stage_models_and_weights_are_asked_for_in_one_line(
    served_project: Callable[..., Path],
) -> None:
    with fault_server(FaultServer()) as server:
        folder = served_project(server)
        shutil.rmtree(folder / "models/pretrained/fake")
        assert plan(folder)["respond fake"]["to_ask"]["low"] > 0
        shutil.rmtree(folder / "models/pretrained/smollm2")
        command = [sys.executable, "-m", "stages.plan"]
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert told.returncode == 3
    assert told.stderr == "error: models/pretrained/smollm2/model.json: not found; run `dvc repro models`\n"
