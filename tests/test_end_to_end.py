"""The whole pipeline at its smallest size, on the real model: what ran, what did not run again, and what came out."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from anamnesis import records

ROOT = Path(__file__).resolve().parent.parent
RAN = re.compile(r"^Running stage '([^']+)'", re.M)
SECTIONS_AT_ONCE = {
    "probe": {"instructions": 10, "max_requests": 30, "max_tokens": 64, "canary": {"size": 10, "min_pass": 0.5}},
    "mix": {"domain_fraction": 0.34, "total": 6},
    "train": {"epochs": 1, "global_batch": 2, "sequence_length": 160, "checkpoint_steps": 2},
    "evaluate": {
        "domain_choice": 4,
        "domain_exact": 2,
        "instructions_followed": 2,
        "arithmetic": 4,
        "text_items": 3,
        "max_tokens": 12,
        "bootstrap": 200,
    },
    "domain": {"train": 30, "test": 4},
}
SHORT = {"samples": 2, "temperature": 1.0, "top_p": 0.9, "max_tokens": 96, "system": "Answer in one short sentence."}
EVERYTHING = {
    "models@smollm2", "models@twin", "domain", "probe", "respond@smollm2", "respond@twin", "judge@smollm2",
    "judge@twin", "select", "mix", "train@domain-only", "train@committee", "evaluate-base", "evaluate@domain-only",
    "evaluate@committee", "report",
}  # fmt: skip
AFTER_A_MEMBER = {
    "respond@twin", "judge@smollm2", "judge@twin", "select", "mix", "train@committee", "evaluate@committee", "report",
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

    def dvc(self, *arguments: str) -> str:
        env = {name: value for name, value in os.environ.items() if name != "ANAMNESIS_LEDGER"}
        env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"dvc {arguments}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
        return done.stdout

    def repro(self) -> list[str]:
        """The stages that ran, in order."""
        return RAN.findall(self.dvc("repro"))

    def calls(self) -> int:
        with sqlite3.connect(self.folder / ".ledger/ledger.sqlite") as ledger:
            return int(ledger.execute("SELECT COUNT(*) FROM answers").fetchone()[0])

    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "metrics/summary.json").read_text(encoding="utf-8"))


def _smallest(params: dict[str, Any], model: Path) -> None:
    """Two members and judges on one set of weights, two variants, a handful of everything."""
    for section, values in SECTIONS_AT_ONCE.items():
        params[section].update(values)
    params["models"] = {name: {"uri": f"path:{model}", "licence": "Apache-2.0"} for name in ("smollm2", "twin")}
    params["committee"] = {"smollm2": {"sampling": dict(SHORT)}, "twin": {"sampling": dict(SHORT, temperature=0.9)}}
    params["judges"] = {"smollm2": {"mode": "expected"}, "twin": {"mode": "expected"}}
    params["variants"] = {
        "domain-only": {"rehearsal": "none"},
        "committee": {"rehearsal": "reconstructed", "members": ["smollm2", "twin"], "judges": ["smollm2", "twin"]},
    }


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
    assert "committee" in page
    assert "committee" in table
    summary = checkout.summary()
    for variant in ("domain-only", "committee"):
        assert summary[f"{variant}.domain_text"] > 0
        rows = records.read(checkout.folder / f"data/mixed/{variant}.parquet", records.MIXED)
        assert len(rows) == 6
        assert sum(row["source"] == "domain" for row in rows) == (6 if variant == "domain-only" else 2)
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
    assert len(responses) == 16  # two of ten instructions are held out: only the target answers those
    assert checkout.calls() - before <= len(responses) + judged  # one set of weights: the judges share their answers
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
