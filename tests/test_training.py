"""Training: what is trained on, the loss whatever the split, ZeRO stages that agree, runs that survive kill -9."""

import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import ValidationError
from trainings import deterministic, finished, rows_of, run_steps, same_weights, signalled

from anamnesis import chat, export, packing, ranks, training, trainset
from anamnesis.checkpoints import KEPT
from anamnesis.errors import UserError
from anamnesis.sections import Train

ROOT = Path(__file__).resolve().parent.parent

# --- what is trained on ---


def test_audit(smollm2_tokenizer: Any) -> None:
    rows = rows_of(6)
    examples, audit = trainset.encode_rows(smollm2_tokenizer, rows, 60)
    whole = [chat.encode(smollm2_tokenizer, row["messages"]) for row in rows]
    assert [len(example.ids) for example in examples] == [min(60, len(one.ids)) for one in whole]
    assert audit["rows"] == 6
    assert audit["truncated_rows"] == sum(len(one.ids) > 60 for one in whole) > 0
    assert audit["truncated_share"] == round(audit["truncated_rows"] / 6, 6)
    assert audit["tokens"] == sum(min(60, len(one.ids)) for one in whole)
    assert audit["supervised_tokens"] == sum(sum(one.supervised[:60]) for one in whole)
    assert {name: source["rows"] for name, source in audit["sources"].items()} == {"domain": 2, "reconstructed": 4}
    for key in ("tokens", "supervised_tokens"):
        assert sum(source[key] for source in audit["sources"].values()) == audit[key]
    assert [sample["row_id"] for sample in audit["samples"]] == ["row-000", "row-001", "row-002"]
    answer = rows[0]["messages"][1]["content"]
    assert f"<|im_start|>assistant\n⟦{answer}<|im_end|>⟧" in audit["samples"][0]["text"]


def test_every_source_is_shown(smollm2_tokenizer: Any) -> None:
    rows = sorted(rows_of(9), key=lambda row: row["source"])
    _, audit = trainset.encode_rows(smollm2_tokenizer, rows, 200)
    sources = {row["row_id"]: row["source"] for row in rows}
    assert {sources[sample["row_id"]] for sample in audit["samples"]} == {"domain", "reconstructed"}


def test_rows_that_can_not_be_trained_on(smollm2_tokenizer: Any) -> None:
    rows = rows_of(3)
    rows[1]["messages"][0]["content"] = "again and again " * 40
    with pytest.raises(
        UserError, match=r"row 'again and again .* …': .* in the first 100 tokens; raise train\.sequence_length"
    ):
        trainset.encode_rows(smollm2_tokenizer, rows, 100)
    rows[2]["messages"] = rows[2]["messages"][:1]
    with pytest.raises(UserError, match=f"row '{rows[2]['messages'][0]['content'][:20]}.*: no assistant turn"):
        trainset.encode_rows(smollm2_tokenizer, rows, 1000)
    with pytest.raises(UserError, match="no rows"):
        trainset.encode_rows(smollm2_tokenizer, [], 100)


def test_a_row_whose_answer_starts_at_the_cut(smollm2_tokenizer: Any) -> None:
    row = rows_of(1)[0]
    first = chat.encode(smollm2_tokenizer, row["messages"]).supervised.index(True)
    _, audit = trainset.encode_rows(smollm2_tokenizer, [row], first + 1)
    assert audit["supervised_tokens"] == 1
    with pytest.raises(UserError, match=f"row '{row['messages'][0]['content'][:20]}"):
        trainset.encode_rows(smollm2_tokenizer, [row], first)


# --- steps ---


@pytest.mark.parametrize(("count", "epochs", "steps"), [(8, 1, 2), (9, 1, 3), (9, 2, 6), (1, 3, 3)])
def test_every_sequence_is_seen_once_an_epoch(count: int, epochs: int, steps: int) -> None:
    settings = Train(learning_rate=1e-4, epochs=epochs, global_batch=4)
    batches = trainset.batches_of(count, settings, seed=5)
    assert len(batches) == steps
    an_epoch = steps // epochs
    orders = [
        [index for batch in batches[epoch * an_epoch : (epoch + 1) * an_epoch] for index in batch]
        for epoch in range(epochs)
    ]
    assert all(sorted(order) == list(range(count)) for order in orders)
    assert batches == trainset.batches_of(count, settings, seed=5)
    if count > 1:
        assert batches != trainset.batches_of(count, settings, seed=6)
        assert len({tuple(order) for order in orders}) == epochs


RATES = [  # (schedule, warm-up, steps) -> rates of a peak of 1
    ("constant", 0.0, 3, [1, 1, 1]),
    ("constant", 0.5, 4, [0.5, 1, 1, 1]),
    ("cosine", 0.0, 4, [1, 0.5 + math.sqrt(2) / 4, 0.5, 0.5 - math.sqrt(2) / 4]),
    ("cosine", 0.3, 4, [0.5, 1, 1, 0.5]),  # ceil(1.2) = 2 steps of warm-up
    ("cosine", 1.0, 2, [0.5, 1]),
    ("cosine", 0.1, 1, [1]),
]


@pytest.mark.parametrize(("schedule", "warmup", "steps", "rates"), RATES)
def test_learning_rate(schedule: str, warmup: float, steps: int, rates: list[float]) -> None:
    settings = Train(learning_rate=1.0, schedule=schedule, warmup_fraction=warmup)
    assert [trainset.learning_rate(step, steps, settings) for step in range(steps)] == pytest.approx(rates)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_settings_in_files(stage: int) -> None:
    conf = json.loads((ROOT / f"conf/deepspeed/zero{stage}.json").read_text(encoding="utf-8"))
    assert conf["zero_optimization"]["stage"] == stage
    run = run_of(conf, zero=stage, global_batch=8, micro_batch=2, precision="bf16", max_grad_norm=0.5)
    config = training.engine_config(run, world=2)
    assert config["train_micro_batch_size_per_gpu"] == 2
    assert config["gradient_accumulation_steps"] == 2
    assert config["gradient_clipping"] == 0.5
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert conf["zero_optimization"]["stage"] == stage  # the file's own dict is left alone


def run_of(conf: dict[str, Any], **settings: Any) -> training.Run:
    return training.Run(
        variant="x",
        settings=Train(**({"learning_rate": 1e-3} | settings)),
        seed=1,
        rows=rows_of(4),
        model_dir=Path("models/pretrained/smollm2"),
        identity="w",
        trust_remote_code=False,
        deepspeed=conf,
        tuned_dir=Path("models/tuned/x"),
        curve=Path("metrics/train/x.csv"),
        checkpoints=Path("checkpoints/x"),
    )


def test_what_a_checkpoint_must_agree_with(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    alone = ranks.Ranks(0, 1, "cpu")
    key = training.fingerprint(run_of({}), alone)
    assert key == training.fingerprint(run_of({}, checkpoint_minutes=77), alone)
    assert key == training.fingerprint(run_of({}), ranks.Ranks(0, 2, "cpu")), "another number of processes goes on"
    others = [
        training.fingerprint(run_of({}, learning_rate=2e-3), alone),
        training.fingerprint(run_of({"zero_optimization": {"stage": 1}}), alone),
    ]
    changed = run_of({})
    changed.rows[0]["messages"][1]["content"] += "!"
    others.append(training.fingerprint(changed, alone))
    assert len({key, *others}) == 4


def test_impossible_batches() -> None:
    with pytest.raises(ValidationError, match="global_batch"):
        Train(learning_rate=1e-4, global_batch=6, micro_batch=2, processes=2)


# --- a model of two layers with SmolLM2's tokenizer ---


def test_isolation_is_checked_on_the_model_itself(small_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32, attn_implementation="sdpa")
    assert training.leak(model, "cpu") == 0.0

    class Masked(torch.nn.Module):
        """What a model would do that takes every example of a row for one text."""

        def forward(self, input_ids: Any, **inputs: Any) -> Any:
            inputs["position_ids"] = torch.arange(input_ids.shape[1])[None]
            return model(input_ids=input_ids, **inputs)

    with torch.no_grad():  # random weights are small; a trained model's logits move by whole units
        for weight in model.parameters():
            weight.mul_(8)
    assert training.leak(Masked(), "cpu") > training.LEAK_TOLERANCE


def test_the_loss_is_that_of_all_logits(small_model: Path, smollm2_tokenizer: Any) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32, attn_implementation="sdpa")
    examples, _ = trainset.encode_rows(smollm2_tokenizer, rows_of(4), 200)
    batch = packing.lay_out([examples[:2], examples[2:]], pad_id=2)
    expected = 0.0
    for example in examples:
        logits = model(input_ids=torch.tensor([list(example.ids)])).logits[0].detach().log_softmax(-1)
        for j in range(1, len(example.ids)):
            if example.supervised[j]:
                expected -= float(logits[j - 1, example.ids[j]])
    assert training.summed_loss(model, batch, "cpu").item() == pytest.approx(expected, rel=1e-5)

    class Plain(torch.nn.Module):
        """A model that can't choose positions."""

        def forward(self, input_ids: Any, position_ids: Any, use_cache: bool) -> Any:
            return model(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)

    assert training.summed_loss(Plain(), batch, "cpu").item() == pytest.approx(expected, rel=1e-5)
    nothing = training.summed_loss(model, packing.lay_out([], pad_id=2), "cpu")
    nothing.backward()
    assert nothing.item() == 0
    assert all(float(weight.grad.abs().max()) == 0 for weight in model.parameters())


def test_change_of_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    for name in ("before", "after"):
        (tmp_path / name).mkdir()
    before = torch.tensor([1.0, 2.0, -0.5, 0.0], dtype=torch.bfloat16)
    save_file({"a": before, "b": before.clone()}, tmp_path / "before" / "model.safetensors")
    after = before.float() + torch.tensor([1e-4, 0.5, 0.0, 0.0])  # the first is lost in bf16, the second is not
    save_file({"a": after, "tied": after.clone()}, tmp_path / "after" / "model.safetensors")
    assert export.change(tmp_path / "before", tmp_path / "after") == {
        "max_abs_change": 0.5,
        "changed_share": 0.5,
        "bf16_share": 0.5,
    }


def test_what_a_model_saves_beside_its_weights_is_exported(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers such as the biases of a mixture's router: without them transformers would take zeros, without a word."""
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    import torch

    module = torch.nn.Linear(2, 1)
    module.register_buffer("bias_of_experts", torch.tensor([5.0, -5.0]))
    module.register_buffer("positions", torch.arange(2), persistent=False)
    engine = SimpleNamespace(module=module, zero_optimization_stage=lambda: 0)
    weights = export.master_weights(engine, 0)
    assert sorted(weights) == ["bias", "bias_of_experts", "weight"]
    assert weights["bias_of_experts"].tolist() == [5, -5]


# --- whole engines, in processes of their own ---


def same_curve(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert len(one["curve"]) == len(other["curve"]) > 1
    for a, b in zip(one["curve"], other["curve"], strict=True):
        assert a["supervised_tokens"] == b["supervised_tokens"]
        assert a["loss"] == pytest.approx(b["loss"], abs=tolerance)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=100 * tolerance)
    same_weights(one, other, tolerance)


@pytest.mark.slow
def test_the_loss_depends_on_no_stage_and_no_split(small_model: Path) -> None:
    """Sequences don't divide into global batches of 4, nor the last batch among micro-batches or ranks."""
    fp32 = {"global_batch": 4, "precision": "fp32", "epochs": 6, "weight_decay": 0.1}
    variations = [{}, {"micro_batch": 4}, {"zero": 1}, {"zero": 2, "micro_batch": 2}, {"zero": 3}]
    variations += [{"zero": zero, "offload": "optimizer"} for zero in (1, 2, 3)] + [{"zero": 3, "offload": "all"}]
    results = run_steps(small_model, [fp32 | variation for variation in variations], "full")
    two = run_steps(small_model, [fp32 | {"zero": zero} for zero in (0, 1, 2, 3)], "full", launched=True)
    for other in [*results[1:], *two]:
        same_curve(results[0], other, 1e-5)
    wholes = run_steps(small_model, [fp32 | {"packing": False, "micro_batch": 4}, fp32 | {"packing": False}], "full")
    same_curve(wholes[0], wholes[1], 1e-5)


@pytest.mark.slow
def test_the_loss_of_smollm2_depends_on_no_stage_and_no_split(smollm2_dir: Path) -> None:
    """The same on the real model, at a rate that leaves rounding small."""
    fp32 = {"global_batch": 2, "precision": "fp32", "learning_rate": 1e-5, "epochs": 2, "weight_decay": 0.1}
    ways = [fp32 | {"zero": zero} for zero in (0, 1, 2, 3)]
    results = [one for launched in (False, True) for one in run_steps(smollm2_dir, ways, "full", launched, 7)]
    for other in results[1:]:
        same_curve(results[0], other, 1e-5)


@pytest.mark.slow
def test_bf16_depends_on_no_stage(small_model: Path) -> None:
    bf16 = {"global_batch": 4, "precision": "bf16"}
    results = run_steps(small_model, [bf16 | {"zero": stage} for stage in (0, 1, 2, 3)], "full")
    for other in results[1:]:
        same_curve(results[0], other, 2e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings", [{"precision": "fp32"}, {"precision": "bf16"}, {"precision": "fp32", "zero": 3, "processes": 2}]
)
def test_kill_and_resume(settings: dict[str, Any], training_project: Callable[..., Path]) -> None:
    """Killed at a random step, then run again: the bytes of a run that was never killed."""
    folder = training_project(checkpoint_minutes=0, global_batch=2, **settings)
    tuned, curve = folder / "models/tuned/committee", folder / "metrics/train/committee.csv"
    err = finished(folder)
    assert not (folder / "checkpoints/committee").exists()
    wanted = {file.name: file.read_bytes() for file in tuned.iterdir()}
    wanted_curve = deterministic(curve)
    steps = len(wanted_curve) - 1
    assert f"{steps}/{steps} steps" in err

    stop = random.randint(3, steps - 1)
    code, _ = signalled(folder, stop, signal.SIGKILL)
    assert code == -signal.SIGKILL
    left = sorted(path.name for path in (folder / "checkpoints/committee").glob("step-*"))
    assert left, f"killed at step {stop} of {steps}"
    assert len(left) <= KEPT + 1, "and one that was being written"
    for file in tuned.iterdir():
        file.unlink()
    tuned.rmdir()

    err = finished(folder)
    assert "resumed" in err
    assert {file.name: file.read_bytes() for file in tuned.iterdir()} == wanted, f"killed at step {stop}"
    assert deterministic(curve) == wanted_curve
    assert not (folder / "checkpoints/committee").exists()


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_not_resumed(training_project: Callable[..., Path]) -> None:
    folder = training_project(precision="fp32", checkpoint_minutes=0, global_batch=4)
    stale = folder / "checkpoints/committee"
    (stale / "step-000002").mkdir(parents=True)
    other = {"fingerprint": "?", "checkpoints": {"step-000002": {"world": 1, "files": {}}}, "curve": []}
    (stale / "latest.json").write_text(json.dumps(other))
    err = finished(folder)
    assert "checkpoints/committee: of other data, settings, model or libraries; starting anew" in err
    assert "resumed" not in err
    assert not stale.exists()


@pytest.mark.slow
def test_a_checkpoint_that_says_nothing_is_left_alone(training_project: Callable[..., Path]) -> None:
    """As after a power cut: hours of work may be in it."""
    folder = training_project(precision="fp32", checkpoint_minutes=0, global_batch=2)
    signalled(folder, 4, signal.SIGKILL)
    latest = folder / "checkpoints/committee/latest.json"
    latest.write_text("")
    left = sorted(latest.parent.glob("step-*"))
    err = finished(folder, code=2)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "latest.json: can't be read; delete checkpoints/committee and run again" in errors[0]
    assert sorted(latest.parent.glob("step-*")) == left


@pytest.mark.slow
def test_two_processes_are_one_run(training_project: Callable[..., Path]) -> None:
    folder = training_project(precision="fp32", global_batch=4, processes=2)
    err = finished(folder)
    assert err.count("rows truncated") == 1, "only rank 0 speaks"
    report = json.loads((folder / "models/tuned/committee/training.json").read_text(encoding="utf-8"))
    assert report["steps"] == len(deterministic(folder / "metrics/train/committee.csv")) - 1
    assert report["change"]["max_abs_change"] > 0
    assert report["audit"]["rows"] == 24


@pytest.mark.slow
def test_a_mistake_in_two_processes_has_its_exit_code_and_one_line(training_project: Callable[..., Path]) -> None:
    folder = training_project(precision="fp32", global_batch=4, processes=2, sequence_length=32)
    err = finished(folder, code=2)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "raise train.sequence_length" in errors[0]
    assert "Traceback" not in err


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_small_steps_survive_in_the_export(zero: int, training_project: Callable[..., Path]) -> None:
    """At 1e-6 hardly a weight would change in bf16: the export has the fp32 masters, and says so."""
    folder = training_project(precision="bf16", zero=zero, learning_rate=1e-6, epochs=1, global_batch=4)
    finished(folder)
    tuned = folder / "models/tuned/committee"
    report = json.loads((tuned / "training.json").read_text(encoding="utf-8"))
    assert 0 < report["change"]["max_abs_change"] < 1e-4
    assert report["change"]["changed_share"] > 0.9
    assert report["change"]["bf16_share"] < 0.5
    config = json.loads((tuned / "config.json").read_text(encoding="utf-8"))
    assert config["dtype"] == "float32"
    assert len({file.stat().st_mode for file in tuned.iterdir()}) == 1, "who may read one may read all"
    assert config["use_cache"] is True
    before = json.loads((folder / "models/pretrained/smollm2/generation_config.json").read_text(encoding="utf-8"))
    after = json.loads((tuned / "generation_config.json").read_text(encoding="utf-8"))
    assert after == before


@pytest.mark.slow
def test_a_run_that_changes_nothing_fails(training_project: Callable[..., Path]) -> None:
    folder = training_project(precision="fp32", learning_rate=1e-60, epochs=1, global_batch=4)
    err = finished(folder, code=5)
    assert "training changed no weight; raise train.learning_rate (1e-60)" in err
    assert not (folder / "models/tuned/committee").exists()


def test_unknown_variant(project: Callable[..., Path], default_params: dict[str, Any]) -> None:
    folder = project(default_params)
    env = os.environ | {"PYTHONPATH": str(folder)}
    command = [sys.executable, "-m", "stages.train", "nobody"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: usage: python -m stages.train <name> [seed]; names: domain-only, ")
