"""When is a model measured again? With other weights or items always, with the same never: DVC decides, for real."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from anamnesis import records

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.slow


def tiny(folder: Path, tokenizer: Any, seed: int) -> None:
    """Write a model of two small layers with random weights, at the same path as the last one."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=512,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        initializer_range=0.5,
    )
    shutil.rmtree(folder, ignore_errors=True)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


@pytest.fixture
def checkout(tmp_path: Path, default_params: dict[str, Any], smollm2_tokenizer: Any) -> Path:
    """A repository with the real stages suite and evaluate-base, a tiny model, and files for suite local."""
    for name in ("anamnesis", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    kept = {name: stages[name] for name in ("suite", "evaluate-base")}
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump({"stages": kept}), encoding="utf-8")
    rows = [
        {"id": f"m{i}", "question": f"Which number is {i}?", "options": [str(i + n) for n in range(4)], "answer": "A"}
        for i in range(12)
    ]
    for name in ("medqa", "arc_challenge"):
        path = tmp_path / "data/own/bench" / name / "test.jsonl"
        path.parent.mkdir(parents=True)
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    default_params["evaluate"] |= {"suite": "local", "data_dir": "data/own/bench", "tasks": ["medqa", "arc_challenge"]}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(default_params, sort_keys=False), encoding="utf-8")
    records.write(tmp_path / "data/domain/test.parquet", [], records.DOMAIN_TEST, ["row_id"])
    records.write(tmp_path / "data/heldout.parquet", [], records.HELDOUT, ["instruction_id"])
    tiny(tmp_path / "models/pretrained" / default_params["target"], smollm2_tokenizer, 1)
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    return tmp_path


def repro(folder: Path) -> list[str]:
    """`dvc repro`: the stages that ran, or came from the run cache."""
    done = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"DVC_NO_ANALYTICS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr + done.stdout
    ran = [line for line in done.stdout.splitlines() if line.startswith("Running stage")]
    cached = [line for line in done.stdout.splitlines() if "is cached - skipping run" in line]
    return [line.split("'")[1] for line in ran] + [f"{line.split(chr(39))[1]} from the cache" for line in cached]


def test_new_weights_or_items_are_measured_and_nothing_else_is(checkout: Path, smollm2_tokenizer: Any) -> None:
    samples, metrics = checkout / "data/samples/base.parquet", checkout / "metrics/eval/base.json"
    model = next((checkout / "models/pretrained").iterdir())
    assert repro(checkout) == ["suite", "evaluate-base"]
    first = (samples.read_bytes(), metrics.read_bytes())
    assert repro(checkout) == []

    tiny(model, smollm2_tokenizer, 2)  # other weights at the same path
    assert repro(checkout) == ["evaluate-base"]
    second = (samples.read_bytes(), metrics.read_bytes())
    assert second[0] != first[0]
    outputs = [row["output"] for row in records.read(samples, records.SAMPLES)]
    assert len(outputs) == 24

    tiny(model, smollm2_tokenizer, 1)  # the first ones again: no run, and their own scores
    assert repro(checkout) == ["evaluate-base from the cache"]
    assert (samples.read_bytes(), metrics.read_bytes()) == first

    (checkout / "data/own/other.jsonl").write_text("{}\n")  # a file that no suite names
    assert "evaluate-base" not in repro(checkout)

    path = checkout / "data/own/bench/medqa/test.jsonl"
    path.write_text(path.read_text().replace("Which number is 3?", "Which number is three?"))
    assert "evaluate-base" in repro(checkout)
    changed = json.loads(metrics.read_text())
    before = json.loads(first[1])
    assert changed["sha256.medqa"] != before["sha256.medqa"]
    assert changed["sha256.arc_challenge"] == before["sha256.arc_challenge"]
    assert "Which number is three?" in {row["question"] for row in records.read(samples, records.SAMPLES)}
