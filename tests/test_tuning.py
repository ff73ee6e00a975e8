"""Tuning methods against known answers: adapters, the pull to the start, KL to base; under ZeRO, after kill -9."""

import json
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from trainings import deterministic, finished, rows_of, run_steps, same_weights, signalled

from anamnesis import packing, training, trainset, tuning
from anamnesis.errors import UserError
from anamnesis.variants import FULL, KL, L2SP, Full, Lora, Variant

ROOT = Path(__file__).resolve().parent.parent


def load(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa")


# --- how it is written ---

WRITTEN = [
    ("full", Full()),
    ("lora", Lora()),
    ({"method": "lora", "rank": 4, "alpha": 8, "targets": ["q_proj"], "learning_rate": 1e-3}, None),
    ({"method": "l2-sp", "strength": 0.5}, L2SP(strength=0.5)),
    ("kl", KL(strength=1.0)),
]


@pytest.mark.parametrize(("written", "read"), WRITTEN)
def test_a_method_or_a_mapping(written: Any, read: Any) -> None:
    found = Variant.model_validate({"rehearsal": "none", "tuning": written}).tuning
    assert found == (read or Lora(rank=4, alpha=8, targets=["q_proj"], learning_rate=1e-3))
    assert Variant.model_validate({"rehearsal": "none"}).tuning == FULL


@pytest.mark.parametrize(
    "written", ["qlora", {"rank": 4}, {"method": "kl", "rank": 4}, {"method": "l2-sp", "strength": 0}]
)
def test_what_is_no_method(written: Any) -> None:
    with pytest.raises(ValidationError, match="tuning"):
        Variant.model_validate({"rehearsal": "none", "tuning": written})


# --- LoRA ---


def test_adapters_start_as_nothing_and_train_alone(small_model: Path) -> None:
    import torch

    ids = torch.arange(20)[None]
    model = load(small_model)
    before = model(input_ids=ids).logits
    tuning.adapt(model, Lora(rank=4), seed=1)
    assert torch.equal(model(input_ids=ids).logits, before)
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert trained
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)
    assert not any("lm_head" in name or "embed" in name for name in trained)
    layers = {name.split(".lora_")[0].rpartition(".")[2] for name in trained}
    assert layers == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def test_the_draw_is_the_seed_s(small_model: Path) -> None:
    import torch

    drawn = []
    for seed in (1, 1, 2):
        model = load(small_model)
        tuning.adapt(model, Lora(rank=4, targets=["q_proj"]), seed)
        drawn.append(next(weight.detach() for name, weight in model.named_parameters() if ".lora_A." in name))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_the_export_is_the_adapters_model(small_model: Path) -> None:
    import torch

    lora = Lora(rank=4, alpha=12)
    model = load(small_model)
    tuning.adapt(model, lora, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                weight.normal_(std=0.1)
    ids = torch.arange(30)[None]
    expected = model(input_ids=ids).logits.detach()
    weights = tuning.merged(dict(model.named_parameters()), lora)
    plain = load(small_model)
    assert set(weights) == {name for name, _ in plain.named_parameters()}
    base = plain(input_ids=ids).logits.detach()
    plain.load_state_dict(weights, strict=False)
    found = plain(input_ids=ids).logits
    assert float((expected - base).abs().max()) > 1e-3
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    tuning.remove_adapters(model)
    assert {name for name, _ in model.named_parameters()} == set(weights)
    assert torch.equal(model(input_ids=ids).logits, base)


def test_a_layer_that_is_not_there_is_one_line(small_model: Path) -> None:
    with pytest.raises(UserError, match=r"^tuning\.targets: .*nowhere") as caught:
        tuning.adapt(load(small_model), Lora(targets=["nowhere"]), seed=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["q_proj", "lm_head"], "lm_head has one weight with model.embed_tokens; leave it out"),
        (["embed_tokens"], "model.embed_tokens is no linear layer but Embedding; name linear ones, or none for all"),
    ],
)
def test_what_could_not_be_merged_is_told_before_training(targets: list[str], said: str, small_model: Path) -> None:
    """Otherwise a tied head's adapter would be trained and then lost, and an embedding's end the run after it."""
    with pytest.raises(UserError) as caught:
        tuning.adapt(load(small_model), Lora(targets=targets), seed=1)
    assert str(caught.value) == f"tuning.targets: {said}"


def test_a_model_without_linear_layers_is_told() -> None:
    """GPT-2's are of another class, which holds its matrix the other way round."""
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=16, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0))
    with pytest.raises(UserError, match="finds no linear layer in GPT2LMHeadModel"):
        tuning.adapt(model, Lora(), seed=1)
    with pytest.raises(UserError, match=r"c_proj is no linear layer but Conv1D"):
        tuning.adapt(model, Lora(targets=["c_proj"]), seed=1)


# --- L2-SP ---


def test_the_pull_is_autograd_s_gradient_of_the_penalty() -> None:
    """Steps with it are those of plain AdamW on the loss with the penalty in it."""
    import torch

    strength = 0.3
    torch.manual_seed(0)
    start, data = torch.randn(5, 3), torch.randn(7, 5)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    pulled = tuning.optimizer([{"params": [ours], "weight_decay": 0.0}], L2SP(strength=strength))
    plain = tuning.optimizer([{"params": [theirs], "weight_decay": 0.0}], FULL)
    assert type(plain) is torch.optim.AdamW
    for optimizer in (pulled, plain):
        optimizer.param_groups[0]["lr"] = 0.05
    for step in range(20):
        for weight, optimizer in ((ours, pulled), (theirs, plain)):
            loss = (data @ weight - step).pow(2).mean()
            if optimizer is plain:
                loss = loss + strength / 2 * (weight - start).pow(2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert torch.equal(pulled.state[ours]["start"], start)


def test_without_data_nothing_moves_and_a_moved_weight_is_pulled_back() -> None:
    import torch

    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = tuning.optimizer([{"params": [weight], "weight_decay": 0.0}], L2SP(strength=1.0))
    optimizer.param_groups[0]["lr"] = 0.01
    weight.grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(weight.detach(), torch.ones(4))
    with torch.no_grad():
        weight += 1
    for _ in range(300):
        weight.grad = torch.zeros(4)
        optimizer.step()
    assert float((weight.detach() - 1).abs().max()) < 0.1


# --- KL ---


def test_divergence_of_known_distributions() -> None:
    import torch

    base = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    tuned = torch.tensor([[0.25, 0.75], [0.9, 0.1]]).log()
    expected = 0.5 * torch.log(torch.tensor(2.0)) + 0.5 * torch.log(torch.tensor(2 / 3))
    assert float(tuning.divergence(base, tuned)) == pytest.approx(float(expected), abs=1e-6)
    assert float(tuning.divergence(base + 3.0, tuned - 1.0)) == pytest.approx(float(expected), abs=1e-6)


def test_equal_models_diverge_by_nothing(small_model: Path, smollm2_tokenizer: Any) -> None:
    import torch

    examples, _ = trainset.encode_rows(smollm2_tokenizer, rows_of(4), 200)
    batch = packing.lay_out([examples[:2], examples[2:]], pad_id=2)
    model, reference = load(small_model), load(small_model).requires_grad_(False)
    loss, divergence = training.summed_losses(model, batch, "cpu", reference)
    assert loss.item() == training.summed_loss(model, batch, "cpu").item()
    assert divergence.item() == pytest.approx(0.0, abs=1e-4)
    divergence.backward()
    assert max(float(weight.grad.abs().max()) for weight in model.parameters()) < 1e-6
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.5)
    _, moved = training.summed_losses(model, batch, "cpu", reference)
    assert moved.item() > 1.0

    nothing = training.summed_losses(model, packing.lay_out([], pad_id=2), "cpu", reference)[1]
    nothing.backward()
    assert nothing.item() == 0


# --- whole runs ---

METHODS = ["lora", {"method": "l2-sp", "strength": 5.0}, {"method": "kl", "strength": 10.0}]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=["lora", "l2-sp", "kl"])
def test_every_zero_stage_gives_the_same(method: Any, small_model: Path) -> None:
    base = {"global_batch": 4, "precision": "fp32", "epochs": 2}
    changes = [{}, {"zero": 1}, {"zero": 2}, {"zero": 3}, {"activation_checkpointing": True}]
    full, *results = run_steps(small_model, [["full", base], *([method, base | one] for one in changes)])
    two = run_steps(small_model, [[method, base | {"zero": stage}] for stage in (0, 2, 3)], launched=True)
    one = results[0]
    assert one["weights"].keys() == full["weights"].keys()
    assert one["curve"][0]["loss"] == full["curve"][0]["loss"], "before the first step all are the base model"
    assert one["curve"][-1]["loss"] > full["curve"][-1]["loss"], "and later each holds back"
    for other in [*results[1:], *two]:
        assert [row["loss"] for row in other["curve"]] == pytest.approx([row["loss"] for row in one["curve"]], abs=2e-5)
        same_weights(one, other, 1e-5)


@pytest.mark.slow
def test_bf16(small_model: Path) -> None:
    bf16 = {"global_batch": 4, "precision": "bf16"}
    for method in METHODS:
        one, *others = run_steps(small_model, [[method, bf16 | {"zero": stage}] for stage in (0, 2, 3)])
        for two in others:  # stage 3 is what presets/paper.yaml takes
            losses = [row["loss"] for row in two["curve"]]
            assert losses == pytest.approx([row["loss"] for row in one["curve"]], abs=2e-3)
            same_weights(one, two, 5e-3)  # two steps move a tensor by some 0.1 of its norm


@pytest.mark.slow
@pytest.mark.parametrize("zero", [0, 2])
@pytest.mark.parametrize("method", METHODS, ids=["lora", "l2-sp", "kl"])
def test_kill_and_resume(method: Any, zero: int, training_project: Callable[..., Path]) -> None:
    """Killed at a random step, then run again: the bytes of a run that was never killed."""
    folder = training_project(method, checkpoint_minutes=0, global_batch=2, zero=zero)
    tuned, curve = folder / "models/tuned/committee", folder / "metrics/train/committee.csv"
    finished(folder, "committee")
    wanted, wanted_curve = {file.name: file.read_bytes() for file in tuned.iterdir()}, deterministic(curve)

    stop = random.randint(3, len(wanted_curve) - 2)
    code, _ = signalled(folder, stop, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert "resumed" in finished(folder, "committee")
    assert {file.name: file.read_bytes() for file in tuned.iterdir()} == wanted, f"killed at step {stop}"
    assert deterministic(curve) == wanted_curve


@pytest.mark.slow
def test_the_exported_lora_model_is_a_plain_one(training_project: Callable[..., Path], small_model: Path) -> None:
    folder = training_project({"method": "lora", "rank": 4, "learning_rate": 2e-3}, global_batch=4)
    finished(folder, "committee")
    tuned = folder / "models/tuned/committee"
    report = json.loads((tuned / "training.json").read_text(encoding="utf-8"))
    assert report["settings"]["learning_rate"] == 2e-3
    assert report["tuning"]["rank"] == 4
    assert not (tuned / "adapter_config.json").exists()
    plain, trained = load(small_model), load(tuned)
    assert type(plain) is type(trained)
    moved = {
        name
        for (name, was), (_, new) in zip(plain.named_parameters(), trained.named_parameters(), strict=True)
        if not was.equal(new)
    }
    assert moved
    assert all("proj" in name for name in moved), "norms and embeddings are frozen"


@pytest.mark.slow
def test_a_further_seed_changes_the_order_and_not_the_rows(training_project: Callable[..., Path]) -> None:
    folder = training_project("full", global_batch=2, seeds=[5], seeded=["committee"])
    finished(folder, "committee")
    finished(folder, "committee", "5")
    one = json.loads((folder / "models/tuned/committee/training.json").read_text(encoding="utf-8"))
    other = json.loads((folder / "models/reseeded/committee-5/training.json").read_text(encoding="utf-8"))
    assert (one["seed"], other["seed"]) == (17, 5)
    assert one["audit"] == other["audit"]
    assert {"seeds", "seeded"}.isdisjoint(one["settings"])
    curves = [folder / "metrics/train/committee.csv", folder / "metrics/reseeded/train/committee-5.csv"]
    first, second = (deterministic(curve)[1:] for curve in curves)
    assert len(first) == len(second)
    assert first != second
    assert not list((folder / "checkpoints").glob("*"))
    err = finished(folder, "committee", "6", code=2)
    assert "with further seeds: committee 5" in err
