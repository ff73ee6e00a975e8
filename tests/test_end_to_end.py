"""The whole pipeline at its smallest size, on the real model: what ran, what did not run again, and what came out."""

import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from fault_server import FaultServer, fault_server

from anamnesis import records

ROOT = Path(__file__).resolve().parent.parent
RAN = re.compile(r"^Running stage '([^']+)'", re.M)
SECTIONS_AT_ONCE = {
    "probe": {"instructions": 10, "max_requests": 30, "max_tokens": 64, "canary": {"size": 10, "min_pass": 0.5}},
    "mix": {"domain_fraction": 0.34, "total": 6},
    "train": {"epochs": 1, "global_batch": 2, "sequence_length": 160, "checkpoint_minutes": 0},
    "evaluate": {
        "domain_choice": 4,
        "domain_exact": 2,
        "instructions_followed": 2,
        "arithmetic": 4,
        "text_items": 3,
        "max_tokens": 12,
    },
    "report": {"bootstrap": 200},
    "select": {"heldout": 0.2},
    "domain": {"train": 30, "test": 4},
}
SHORT = {"samples": 2, "temperature": 1.0, "top_p": 0.9, "max_tokens": 96, "system": "Answer in one short sentence."}
EVERYTHING = {
    "models@smollm2", "models@twin", "domain", "probe", "converse", "rehearse", "distribution", "respond@smollm2",
    "respond@twin", "judge@smollm2", "judge@twin", "select", "agree", "suite", "clean", "mix", "train@domain-only",
    "train@committee", "train-continued@second", "evaluate-base", "evaluate@domain-only", "evaluate@committee",
    "evaluate-continued@second", "report",
}  # fmt: skip
AFTER_A_MEMBER = {
    "converse", "respond@twin", "judge@smollm2", "judge@twin", "select", "agree", "clean", "mix", "train@committee",
    "evaluate@committee", "report",
}  # fmt: skip
AFTER_THE_MIX = {"mix", "train@committee", "evaluate@committee", "report"}


class Checkout:
    """A clone of this checkout with its own git history, params at the smallest size, and a count of model calls."""

    def __init__(self, folder: Path, model: Path):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for name in listed:
            if (ROOT / name).is_file() and name != "dvc.lock" and not name.startswith("metrics/"):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        self.set(lambda params: _smallest(params, model))
        self.git("init", "-q")
        self.commit("smallest size")

    def git(self, *arguments: str) -> None:
        identity = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=self.folder, check=True, capture_output=True)

    def commit(self, message: str) -> None:
        self.git("add", "-A")
        self.git("commit", "-qm", message)

    def set(self, change: Any) -> None:
        """Change params.yaml."""
        file = self.folder / "params.yaml"
        params = yaml.safe_load(file.read_text(encoding="utf-8"))
        change(params)
        file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")

    def start(self, *arguments: str, ledger: Path | None = None) -> subprocess.Popen[str]:
        """A dvc command in a process group of its own."""
        env = {name: value for name, value in os.environ.items() if name != "ANAMNESIS_LEDGER"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        if ledger:
            env["ANAMNESIS_LEDGER"] = str(ledger)
        return subprocess.Popen(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.folder,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def dvc(self, *arguments: str, ledger: Path | None = None) -> str:
        """What a dvc command prints."""
        process = self.start(*arguments, ledger=ledger)
        out, err = process.communicate()
        assert process.returncode == 0, f"dvc {arguments}\n{out[-3000:]}\n{err[-6000:]}"
        return out

    def kill(self, *arguments: str, when: Callable[[], bool]) -> None:
        """Start a dvc command and kill -9 it with the stage it runs, as soon as `when` is true."""
        process = self.start(*arguments)
        deadline = time.monotonic() + 300
        while not when():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    def repro(self) -> list[str]:
        """The stages that ran, in order."""
        return RAN.findall(self.dvc("repro"))

    def calls(self) -> int:
        with sqlite3.connect(self.folder / ".ledger/ledger.sqlite") as ledger:
            return int(ledger.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics/summary.json").read_text(encoding="utf-8"))


def _smallest(params: dict[str, Any], model: Path) -> None:
    """Two members and judges on one set of weights, two variants and one more after them, a handful of everything."""
    for section, values in SECTIONS_AT_ONCE.items():
        params[section].update(values)
    params["models"] = {name: {"uri": f"path:{model}", "licence": "Apache-2.0"} for name in ("smollm2", "twin")}
    params["committee"] = {"smollm2": {"sampling": dict(SHORT)}, "twin": {"sampling": dict(SHORT, temperature=0.9)}}
    params["judges"] = {"smollm2": {"mode": "expected"}, "twin": {"mode": "justify", "max_tokens": 128}}
    params["variants"] = {
        "domain-only": {"rehearsal": "none"},
        "committee": {"rehearsal": "reconstructed", "members": ["smollm2", "twin"], "judges": ["smollm2", "twin"]},
    }
    params["continued"] = {"second": {"init": "domain-only", "rehearsal": "none"}}


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory, smollm2_dir: Path) -> Checkout:
    made = Checkout(tmp_path_factory.mktemp("clone of anamnesis"), smollm2_dir)  # the path has spaces
    made.first = made.repro()  # type: ignore[attr-defined]
    made.commit("first run")
    return made


@pytest.mark.slow
def test_everything_runs_once_and_the_reports_agree(checkout: Checkout) -> None:
    assert set(checkout.first) == EVERYTHING  # type: ignore[attr-defined]
    page = (checkout.folder / "report.html").read_text(encoding="utf-8")
    table = (checkout.folder / "report.md").read_text(encoding="utf-8")
    summary = checkout.summary()
    for variant in ("domain-only", "committee"):
        shown = re.findall(rf"^\|[^|]*\| {variant} +\| +([\d.]+) \|", table, re.M)
        assert all(value in page for value in shown)
        domain_text = shown[2]  # choice, exact, text: the order of MEASURES
        assert float(domain_text) == pytest.approx(summary[f"{variant}.domain_text"], abs=6e-4)
        rows = records.read(checkout.folder / f"data/mixed/{variant}.parquet", records.MIXED)
        assert len(rows) == 6
        assert sum(row["source"] == "domain" for row in rows) == (6 if variant == "domain-only" else 2)
    assert summary["second.domain_text.against.domain-only.diff"] != 0  # one more epoch of the same rows
    votes = records.read(checkout.folder / "data/judgments/twin.parquet", records.JUDGMENTS)
    assert {row["parse"] for row in votes} <= {"constrained", "reask", "missing"}
    assert sum(row["parse"] == "constrained" for row in votes) >= 0.8 * len(votes) > 0  # the real server obeys
    base = {row["item_id"] for row in records.read(checkout.folder / "data/samples/base.parquet", records.SAMPLES)}
    tuned = {
        row["item_id"] for row in records.read(checkout.folder / "data/samples/committee.parquet", records.SAMPLES)
    }
    assert base == tuned


@pytest.mark.slow
def test_a_second_run_runs_nothing(checkout: Checkout) -> None:
    assert checkout.repro() == []


@pytest.mark.slow
def test_one_changed_line_reruns_what_depends_on_it(checkout: Checkout) -> None:
    before = checkout.calls()
    summary = checkout.summary()

    def temperature(value: float) -> Any:
        return lambda params: params["committee"]["twin"]["sampling"].update(temperature=value)

    checkout.set(temperature(0.8))
    assert set(checkout.repro()) == AFTER_A_MEMBER
    responses = records.read(checkout.folder / "data/responses/twin.parquet", records.RESPONSES)
    judged = sum(row["status"] == "ok" for row in responses)
    pairs = records.read(checkout.folder / "data/controls/twin.parquet", records.CONTROLS)
    judged += sum(row["text"] is not None for row in pairs)
    assert len(responses) == 16  # two of ten instructions are held out: only the target answers those
    assert checkout.calls() - before <= len(responses) + 3 * judged  # two judges, of which one may ask once more
    assert checkout.calls() - before >= len(responses)

    checkout.set(temperature(0.9))
    assert checkout.repro() == []  # every stage comes from the run cache
    assert checkout.summary() == summary

    calls = checkout.calls()
    checkout.set(lambda params: params["mix"].update(domain_fraction=0.17))
    assert set(checkout.repro()) == AFTER_THE_MIX
    assert checkout.calls() == calls
    rows = records.read(checkout.folder / "data/mixed/committee.parquet", records.MIXED)
    assert sum(row["source"] == "domain" for row in rows) == 1
    changed = checkout.dvc("metrics", "diff", "--json")
    assert "committee.domain_text" in changed

    checkout.set(lambda params: params["mix"].update(domain_fraction=0.34))
    assert checkout.repro() == []


@pytest.mark.slow
def test_plots_and_metrics_are_readable(checkout: Checkout) -> None:
    shown = json.loads(checkout.dvc("metrics", "show", "--json"))
    assert "metrics/summary.json" in str(shown)
    checkout.dvc("plots", "show", "-o", "plots")
    assert (checkout.folder / "plots/index.html").exists()


def _bytes_of(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


@pytest.mark.slow
def test_kill_9_in_the_middle_of_training(checkout: Checkout) -> None:
    checkout.set(lambda params: params["train"].update(epochs=5))
    tuned, curve = checkout.folder / "models/tuned/committee", checkout.folder / "metrics/train/committee.csv"
    checkpoint = checkout.folder / "checkpoints/committee/latest.json"
    checkout.kill("repro", "train@committee", when=checkpoint.exists)
    done = json.loads(checkpoint.read_text(encoding="utf-8"))["curve"]
    checkout.dvc("repro", "train@committee")
    with_kill = _bytes_of(tuned)
    first_steps = curve.read_text(encoding="utf-8").splitlines()[1 : len(done) + 1]
    assert [line.split(",")[-1] for line in first_steps] == [str(row["tokens_per_s"]) for row in done]  # not repeated
    checkout.dvc("repro", "--force", "--single-item", "train@committee")
    assert _bytes_of(tuned) == with_kill
    checkout.set(lambda params: params["train"].update(epochs=1))


@pytest.mark.slow
def test_kill_9_in_the_middle_of_asking(checkout: Checkout, tmp_path: Path) -> None:
    """A third member and judge behind an endpoint that counts; kills in respond and in judge."""
    in_flight, samples = 2, 6
    far = {"sampling": {"samples": samples, "max_tokens": 50}}
    outputs = [checkout.folder / f"data/{folder}/far.parquet" for folder in ("responses", "judgments", "controls")]
    with fault_server(FaultServer(delay_s=0.05)) as server:

        def add(params: dict[str, Any]) -> None:
            params["models"]["far"] = {"base_url": server.base_url, "model": "far"}
            params["committee"]["far"], params["judges"]["far"] = far, {"mode": "justify"}
            params["requests"]["concurrency"] = in_flight

        def served() -> int:
            return sum(server.served.values())

        checkout.set(add)
        checkout.dvc("repro", "models@far")
        for stage in ("respond@far", "judge@far"):
            start = served()
            checkout.kill("repro", stage, when=lambda start=start: served() >= start + 10)
            server.settle()
            checkout.dvc("repro", stage)
        responses = [
            row
            for member in ("smollm2", "twin", "far")
            for row in records.read(checkout.folder / f"data/responses/{member}.parquet", records.RESPONSES)
        ]
        votes = {row["response_id"] for row in records.read(outputs[1], records.JUDGMENTS)}
        judged = {(row["instruction_id"], row["text"]) for row in responses if row["response_id"] in votes}
        pairs = records.read(outputs[2], records.CONTROLS)
        judged |= {(row["instruction_id"], row["text"]) for row in pairs if row["text"] is not None}
        asked = sum(row["member"] == "far" for row in responses) + len(judged)  # equal responses are judged once
        assert asked > 8 * samples
        assert len(server.served) == asked
        assert served() <= asked + 2 * in_flight  # only what was in flight at a kill is asked again

        with_kills = [file.read_bytes() for file in outputs]
        for stage in ("respond@far", "judge@far"):
            checkout.dvc("repro", "--force", "--single-item", stage, ledger=tmp_path / "empty.sqlite")
        assert [file.read_bytes() for file in outputs] == with_kills
        assert served() >= 2 * asked


@pytest.mark.slow
def test_the_canary_catches_a_prefix_without_its_system_block(checkout: Checkout) -> None:
    """SmolLM2 writes junk where its own default system block is left out of the prefix."""
    checkout.set(lambda params: params["probe"].update(prefix="<|im_start|>user\n"))
    process = checkout.start("repro", "probe")
    _, err = process.communicate()
    assert process.returncode != 0
    assert "probe canary: " in err
    checkout.set(lambda params: params["probe"].update(prefix=None))
