"""Training beside TRL's SFTTrainer: the same rows, mask, packing, order and rates give the same losses.

What both sides do is bench/train.py's ways `ours` and `trl`, each in a process of its own: all but data, labels and
learning rates is TRL's own there, so that an agreement speaks for our loss, clipping, optimiser and packing.
"""

import shutil
from pathlib import Path
from typing import Any

import pytest
from trainings import rows_of

from anamnesis.sections import Train
from bench import train

pytestmark = pytest.mark.skipif(not train.has_trl(), reason="trl is not installed: run `make setup`")


def both(model: Path, tokenizer: Any, steps: int, settings: Train, folder: Path) -> dict[str, list[dict[str, float]]]:
    """The steps of both sides, one after the other: at the same time each would take ten times as long."""
    rows = train.rows_for(steps, rows_of(50), tokenizer, settings)
    task = {"model": str(model), "rows": rows, "settings": settings.model_dump(), "seed": 5}
    found = {way: train.result(way, train.start(way, task, folder / way)) for way in ("ours", "trl")}
    assert [len(rows) for rows in found.values()] == [steps, steps]
    return found


def same(found: dict[str, list[dict[str, float]]]) -> None:
    for mine, theirs in zip(found["ours"], found["trl"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-3)
        assert mine["learning_rate"] == pytest.approx(theirs["learning_rate"], rel=1e-5)
        assert mine["grad_norm"] == pytest.approx(theirs["grad_norm"], rel=5e-3)  # theirs is summed up in fp32


@pytest.fixture
def sharp_model(small_model: Path, tmp_path: Path) -> Path:
    """The small model with larger weights: in its own the tokens hardly see each other, and a leak would not show."""
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "sharp"
    shutil.copytree(small_model, folder)
    model = AutoModelForCausalLM.from_pretrained(small_model, dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and "embed" not in name:
                weight.mul_(8)
    model.save_pretrained(folder)
    return folder


def test_a_few_steps_of_a_small_model(sharp_model: Path, smollm2_tokenizer: Any, tmp_path: Path) -> None:
    """With a rate at which a loss that is off shows within a step, and gradients that are clipped."""
    settings = Train(
        learning_rate=1e-2,
        sequence_length=160,
        global_batch=2,
        weight_decay=0.1,
        max_grad_norm=0.5,
        precision="fp32",
        checkpoint_minutes=1e6,
    )
    found = both(sharp_model, smollm2_tokenizer, 4, settings, tmp_path)
    same(found)
    assert all(row["grad_norm"] > settings.max_grad_norm for row in found["ours"])
    assert found["ours"][-1]["loss"] < found["ours"][0]["loss"] - 0.5


@pytest.mark.slow
def test_fifty_steps_of_smollm2(smollm2_dir: Path, smollm2_tokenizer: Any, tmp_path: Path) -> None:
    settings = Train(learning_rate=1e-4, sequence_length=128, global_batch=2, precision="fp32", checkpoint_minutes=1e6)
    found = both(smollm2_dir, smollm2_tokenizer, 50, settings, tmp_path)
    same(found)
    assert found["ours"][-1]["loss"] < found["ours"][0]["loss"] - 0.5
