"""The result of a training run: a Hugging Face directory with fp32 weights and a card, and how far they moved."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from anamnesis import modelcard
from anamnesis.cards import Card
from anamnesis.errors import QUALITY, UserError
from anamnesis.hubcard import Rows

REPORT = "training.json"


def master_weights(engine: Any, rank: int) -> dict[str, Any]:
    """The trained weights in fp32 on the CPU, by name; on ranks but 0 an empty dict. Every rank calls it.

    With them go the buffers that a model saves, such as the biases of some mixtures' routers: they are not trained.
    """
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    weights, stage = {}, engine.zero_optimization_stage()
    for name, parameter in engine.module.named_parameters():
        frozen = not parameter.requires_grad  # the optimiser has no master of it
        with deepspeed.zero.GatheredParameters([parameter], enabled=frozen and stage == 3):
            whole = parameter.detach() if frozen or stage == 0 else safe_get_full_fp32_param(parameter)
            if rank == 0:
                weights[name] = whole.float().cpu().clone().contiguous()
    if rank == 0:
        saved = engine.module.state_dict().keys()
        weights |= {name: part.cpu().clone() for name, part in engine.module.named_buffers() if name in saved}
    return weights


def change(before: Path, after: Path) -> dict[str, Any]:
    """Compare the weights in two Hugging Face directories, tensor by tensor.

    `max_abs_change` is max|w - w0|; `changed_share` the share of weights that differ; `bf16_share` the share of those
    whose change would be left if the trained weights were rounded to bf16.
    """
    import torch
    from safetensors import safe_open

    old: dict[str, Path] = {}
    for file in sorted(before.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            old |= dict.fromkeys(tensors.keys(), file)
    largest, total, changed, left = 0.0, 0, 0, 0
    for file in sorted(after.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no mapping)
                if name not in old:  # a tied matrix that one of the two spells out
                    continue
                new = tensors.get_tensor(name).float()
                with safe_open(old[name], "pt") as source:
                    was = source.get_tensor(name).float()
                differs = new != was
                largest = max(largest, float((new - was).abs().max()))
                total += new.numel()
                changed += int(differs.sum())
                left += int((differs & (new.to(torch.bfloat16) != was.to(torch.bfloat16))).sum())
    if not total:
        raise RuntimeError(f"{after} and {before} have no weight in common")
    return {
        "max_abs_change": float(f"{largest:.6e}"),
        "changed_share": round(changed / total, 6),
        "bf16_share": round(left / changed, 6) if changed else 0.0,
    }


def write(
    model: Any,
    weights: dict[str, Any],
    tokenizer: Any,
    base_dir: Path,
    tuned_dir: Path,
    report: dict[str, Any],
    base: Card,
    rows: Rows,
) -> dict[str, Any]:
    """Write the Hugging Face directory, `training.json` and the model card, in one move; what fails leaves nothing.

    `base` and `rows` are for the card: whose weights these were, and what they were trained on. Returns what `change`
    measured to `base_dir`.
    Raises `UserError` (exit code 5) where no weight has changed.
    """
    partial = tuned_dir.with_name(tuned_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        measured = _write(model, weights, tokenizer, base_dir, partial, report, base, rows)
        shutil.rmtree(tuned_dir, ignore_errors=True)
        os.replace(partial, tuned_dir)
    except Exception:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return measured


def _write(
    model: Any,
    weights: dict[str, Any],
    tokenizer: Any,
    base_dir: Path,
    partial: Path,
    report: dict[str, Any],
    base: Card,
    rows: Rows,
) -> dict[str, Any]:
    import torch

    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict=weights)
    model.config.dtype = torch.float32  # what the file holds: transformers loads a model in the dtype its config names
    model.config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    measured = change(base_dir, partial)
    if not measured["max_abs_change"]:
        raise UserError(
            f"train {report['variant']}: training changed no weight; raise train.learning_rate "
            f"({report['settings']['learning_rate']:g}) or the number of steps ({report['steps']})",
            QUALITY,
        )
    report = report | {"change": measured}
    (partial / REPORT).write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    for file in partial.glob("*.safetensors"):  # written for their owner alone, the others as the machine has it
        file.chmod((partial / REPORT).stat().st_mode)
    before = base_dir / modelcard.FILE  # a variant has one: a pretrained model none
    init = (base_dir.name, before.read_text(encoding="utf-8")) if before.is_file() else None
    (partial / modelcard.FILE).write_text(modelcard.text(report, base, rows, init), encoding="utf-8")
    return measured
