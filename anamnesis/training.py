"""Fine-tuning of a chat model on conversations: our own loop around a DeepSpeed engine, ZeRO 0 to 3.

In: rows with `row_id`, `messages` and `source`, a Hugging Face directory, the `train` section of params.yaml. Out: a
Hugging Face directory with the trained fp32 weights and `training.json`, and one CSV row an optimiser step. Every rank
runs `train`; only rank 0 writes. A run that is killed goes on from its last checkpoint and ends with the weights of one
that was not. docs/training.md has the formulae, the limits and the measured figures.
"""

import contextlib
import csv
import hashlib
import inspect
import io
import json
import math
import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

from anamnesis import cards, chat, export, footprint, memory, packing, records, trainset, tuning
from anamnesis.checkpoints import Checkpoints, Preemption, room_for
from anamnesis.errors import PREEMPTED, QUALITY, UserError
from anamnesis.hardware import multiplies_bf16
from anamnesis.progress import Progress, say
from anamnesis.ranks import Ranks, process_group
from anamnesis.records import seed_of
from anamnesis.sections import Train
from anamnesis.trackers import Trackers
from anamnesis.variants import FULL, KL, L2SP, Lora, Method

AUDITS = Path("logs")
COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "supervised_tokens", "tokens_per_s")
ELSEWHERE = {"seeds", "seeded", "launch", "hostfile", "checkpoint_minutes", "trackers"}  # not of one run
LEAK_TOLERANCE = 0.05  # in logits; what leaks moves them by whole units, what doesn't by nothing


@dataclass(frozen=True)
class Run:
    """One fine-tuning run: what goes in, where the results go, and what a checkpoint must agree with to be resumed."""

    variant: str
    settings: Train
    seed: int
    rows: list[dict[str, Any]]
    model_dir: Path
    identity: str  # of the weights in model_dir
    trust_remote_code: bool
    deepspeed: dict[str, Any]  # conf/deepspeed/zero<n>.json
    tuned_dir: Path
    curve: Path  # the CSV
    checkpoints: Path
    tuning: Method = FULL
    base: cards.Card | None = None  # for the model card; None: what model_dir says of itself


def engine_config(run: Run, world: int, universal: bool = False) -> dict[str, Any]:
    """DeepSpeed's settings: the file for the ZeRO stage, with our batch, clipping, precision and offload filled in.

    bf16 means bf16 weights, fp32 master weights, and gradients summed over micro-batches in fp32. DeepSpeed's stage 0
    would sum them in bf16: there bf16 runs as stage 1.
    """
    settings = run.settings
    config = {
        **run.deepspeed,
        "train_micro_batch_size_per_gpu": settings.micro_batch,
        "gradient_accumulation_steps": settings.global_batch // (settings.micro_batch * world),
        "gradient_clipping": settings.max_grad_norm,
    }
    zero = config["zero_optimization"] | {"stage": footprint.stage_of(settings)}
    if settings.precision == "bf16":
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}}
    if settings.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu"}
        config["zero_force_ds_cpu_optimizer"] = False  # torch's AdamW works there too, and needs no compiler
    if settings.offload == "all":
        zero["offload_param"] = {"device": "cpu"}
    if universal:
        config["checkpoint"] = {"load_universal": True}
    return config | {"zero_optimization": zero}


def attention_of(settings: Train, device: str) -> str:
    """The attention that `train.attention` means here. Raises `UserError` where it can't be had.

    FlashAttention's kernels take examples of different lengths one after another (varlen), where SDPA computes a dense
    mask of blocks.
    """
    flash = footprint.takes_flash(settings, device != "cpu")
    if settings.attention == "flash_attention_2" and not flash:
        raise UserError("train.attention: flash_attention_2 needs a GPU and the package flash-attn; take sdpa or auto")
    return "flash_attention_2" if flash else "sdpa"


def load_model(run: Run, config: dict[str, Any], device: str) -> Any:
    """The model in the dtype of `precision`. Under ZeRO-3 each rank holds only its part of the weights from the start.

    Raises `UserError` where the directory holds none that can be loaded.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    partitioned = HfDeepSpeedConfig(config) if run.settings.zero == 3 else None  # in force while it is referenced
    try:
        model = AutoModelForCausalLM.from_pretrained(
            run.model_dir,
            dtype=torch.bfloat16 if run.settings.precision == "bf16" else torch.float32,
            attn_implementation=attention_of(run.settings, device),
            trust_remote_code=run.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{run.model_dir}: can't be loaded: {' '.join(str(error).split())}") from None
    finally:
        del partitioned
    return model.to(device)


def make_engine(run: Run, world: int, device: str, universal: bool = False) -> Any:
    """A DeepSpeed engine around the model, with what `tuning` adds to it and torch's fused AdamW.

    `universal`: it will load a checkpoint of another number of processes.
    """
    import deepspeed

    config = engine_config(run, world, universal)
    model = load_model(run, config, device)
    if isinstance(run.tuning, Lora):
        tuning.adapt(model, run.tuning, run.seed)
        model.to(device)
    if run.settings.activation_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    matrices: list[Any] = []
    others: list[Any] = []  # norms and biases, which are not decayed
    for parameter in model.parameters():
        if parameter.requires_grad:
            (matrices if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": run.settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = tuning.optimizer([group for group in groups if group["params"]], run.tuning)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints memory figures
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    if world == 1 and engine.zero_optimization_stage() == 0:
        engine.enable_backward_allreduce = False  # with nobody to add them to, it would copy all gradients twice
    engine.train()
    return engine


def make_reference(run: Run, world: int, device: str) -> Any:
    """The base model again, to be held on to under `tuning: kl`, divided among ranks as the tuned one is; else None."""
    import deepspeed

    if not isinstance(run.tuning, KL):
        return None
    config = engine_config(run, world)
    model = load_model(run, config, device).eval().requires_grad_(False)
    if run.settings.zero < 3:
        return model
    with contextlib.redirect_stdout(io.StringIO()):
        engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return engine


def summed_loss(model: Any, batch: packing.Rows, device: str) -> Any:
    """The sum of -log p(label) over a micro-batch, a scalar; 0, with a gradient, where no position has a label."""
    return summed_losses(model, batch, device)[0]


def summed_losses(model: Any, batch: packing.Rows, device: str, reference: Any = None) -> tuple[Any, Any]:
    """The sums of -log p(label), and of KL(reference || model) there, over a micro-batch: two scalars.

    The second is None without a reference. The models compute logits for positions with a label in some row only: the
    projection to the vocabulary is the largest matrix of a small model, and prompts are a good part of the tokens.
    Under FlashAttention the rows are laid end to end: transformers finds packed examples in a single row only.
    """
    import torch

    if attention_in(model) == "flash_attention_2":
        batch = packing.end_to_end(batch)
    labels = torch.tensor(batch.labels, device=device)
    wanted = (labels != packing.IGNORE).any(dim=0).nonzero().flatten()
    if not len(wanted):
        wanted = torch.zeros(1, dtype=torch.long, device=device)
    inputs = {
        "input_ids": torch.tensor(batch.input_ids, device=device),
        "position_ids": torch.tensor(batch.position_ids, device=device),
        "use_cache": False,  # with a cache, as with an attention_mask, transformers builds no block-diagonal mask
    }

    def logits_of(asked: Any) -> Any:
        if "logits_to_keep" in inspect.signature(getattr(asked, "module", asked).forward).parameters:
            return asked(**inputs, logits_to_keep=wanted).logits.float().flatten(0, 1)
        return asked(**inputs).logits[:, wanted].float().flatten(0, 1)

    logits, targets = logits_of(model), labels[:, wanted].flatten()
    loss = torch.nn.functional.cross_entropy(logits, targets, ignore_index=packing.IGNORE, reduction="sum")
    if reference is None:
        return loss, None
    with torch.no_grad():
        held = logits_of(reference)
    there = targets != packing.IGNORE
    return loss, tuning.divergence(held[there], logits[there])


def attention_in(model: Any) -> str:
    """The attention that a model, or an engine around it, was loaded with; empty where it doesn't say."""
    config = getattr(getattr(model, "module", model), "config", None)
    return getattr(config, "_attn_implementation", None) or ""


def leak(model: Any, device: str) -> float:
    """How far the logits of a packed example move when the example before it changes: 0 where they are isolated."""
    import torch

    length = 8
    ids = torch.arange(2 * length, device=device)
    other = torch.cat([ids[:length] + 2 * length, ids[length:]])
    positions = torch.arange(length, device=device).repeat(2)[None]
    training = model.training
    model.eval()  # dropout would move them too
    with torch.no_grad():
        first, second = (
            model(input_ids=row[None], position_ids=positions, use_cache=False).logits[0, length:].float()
            for row in (ids, other)
        )
    model.train(training)
    return float((first - second).abs().max())


def fingerprint(run: Run, ranks: Ranks, examples: Sequence[chat.Encoded] = (), order: Any = ()) -> str:
    """What a checkpoint must agree with to be continued: rows, settings, weights, libraries and kind of device.

    `examples` are the rows as tokens and what is trained on of them, `order` how they are packed and put in batches:
    another version of our own code may make others of the same rows.
    """
    import deepspeed
    import torch
    import transformers

    settings = run.settings.model_dump(exclude={"processes", *ELSEWHERE})
    versions = [deepspeed.__version__, torch.__version__, transformers.__version__]
    method = run.tuning.model_dump()
    if isinstance(run.tuning, Lora):
        versions.append(metadata.version("peft"))
    device = "cpu" if ranks.device == "cpu" else "gpu"
    state = hashlib.sha256()
    for part in (settings, method, run.seed, run.identity, run.deepspeed, versions, device, run.rows, order):
        state.update(json.dumps(part, sort_keys=True).encode())
    for example in examples:
        state.update(bytes(array("q", example.ids)) + bytes(example.supervised))
    return state.hexdigest()


def _tell_audit(audit: dict[str, Any], file: Path) -> None:
    """Print the audit, and keep it before the first step: a run that fails at that has one too."""
    records.write_text(file, json.dumps(audit, indent=2, ensure_ascii=False) + "\n")
    say(
        f"train: {audit['rows']} rows, {audit['tokens']} tokens, {audit['supervised_tokens']} of them trained on, "
        f"{audit['truncated_rows']} rows truncated ({audit['truncated_share']:.1%})"
    )
    say(f"train: {audit['sequences']} sequences, {audit['fill']:.1%} full; {audit['steps']} optimiser steps")
    for name, source in audit["sources"].items():
        trained = source["supervised_tokens"]
        say(f"train:   {name}: {source['rows']} rows, {source['tokens']} tokens, {trained} trained on")
    for sample in audit["samples"]:
        say(f"train: row {sample['row_id']}, trained on between ⟦ and ⟧:\n{sample['text']}")


class Curve:
    """The CSV of a run, on rank 0: rows of an earlier part of the run first, then one a step."""

    def __init__(self, path: Path, rows: list[dict[str, Any]], rank: int):
        self.rows, self._file = rows, None
        if rank == 0:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8", newline="")
            self._writer = csv.DictWriter(self._file, COLUMNS, lineterminator="\n")
            self._writer.writeheader()
            self._writer.writerows(rows)
            self._file.flush()

    def add(self, row: dict[str, Any]) -> None:
        """A row more, in the file at once."""
        self.rows.append(row)
        if self._file:
            self._writer.writerow(row)
            self._file.flush()


def optimiser_step(
    engine: Any,
    run: Run,
    ranks: Ranks,
    batch: list[list[chat.Encoded]],
    step: int,
    steps: int,
    pad_id: int,
    reference: Any = None,
) -> dict[str, Any]:
    """One step on a global batch of sequences; its row of the CSV. Every rank calls it with the same batch.

    The loss is the mean over the supervised tokens of the whole global batch, without what `tuning` adds to it. Each
    micro-batch gives its sum divided by their number; DeepSpeed adds micro-batches up and averages over ranks, hence
    the factor `world`. No other split of the batch, and no batch that isn't full, gives another loss.
    Raises `UserError` (exit code 5) where the loss or the gradient is not finite.
    """
    import torch

    started = time.perf_counter()
    torch.manual_seed(seed_of(run.seed, "step", step, ranks.rank))  # for dropout, where a model has it
    rate = trainset.learning_rate(step, steps, run.settings)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    sizes = [sum(len(example.ids) for example in sequence) for sequence in batch]
    supervised = sum(sum(example.supervised[1:]) for sequence in batch for example in sequence)
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    rounds = packing.deal(sizes, run.settings.micro_batch, ranks.world)
    for number, shares in enumerate(rounds):
        engine.set_gradient_accumulation_boundary(number == len(rounds) - 1)
        micro_batch = packing.lay_out([batch[index] for index in shares[ranks.rank]], pad_id)
        loss, divergence = summed_losses(engine, micro_batch, ranks.device, reference)
        whole = loss if divergence is None else loss + run.tuning.strength * divergence  # type: ignore[union-attr]
        engine.backward(whole * (ranks.world / supervised), scale_wrt_gas=False)
        total += loss.detach()
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed clips there too but doesn't say by how much
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norm = float(torch.nn.utils.get_total_norm(gradients))  # in fp64 it would cost what AdamW does
    engine.step()
    norm = float(engine.get_global_grad_norm()) if norm is None else norm
    torch.distributed.all_reduce(total)
    mean = float(total) / supervised
    if not (math.isfinite(mean) and math.isfinite(norm)) or engine.skipped_steps:
        raise UserError(
            f"train {run.variant}: at step {step + 1} the loss is {mean:g} and the gradient's norm {norm:g}; "
            "lower train.learning_rate or look at the training set's rows",
            QUALITY,
        )
    return {
        "step": step + 1,
        "loss": round(mean, 6),
        "learning_rate": float(f"{rate:.6e}"),
        "grad_norm": round(norm, 6),
        "supervised_tokens": supervised,
        "tokens_per_s": round(sum(sizes) / (time.perf_counter() - started), 1),
    }


def summary(run: Run, audit: dict[str, Any], curve: list[dict[str, Any]]) -> dict[str, Any]:
    """What `training.json` says besides the change of the weights; nothing in it depends on time or place."""
    return {
        "variant": run.variant,
        "base": run.identity,
        "seed": run.seed,
        "settings": run.settings.model_dump(exclude=ELSEWHERE),
        "tuning": run.tuning.model_dump(),
        "steps": len(curve),
        "tokens": audit["tokens"] * run.settings.epochs,
        "supervised_tokens": sum(row["supervised_tokens"] for row in curve),
        "first_loss": curve[0]["loss"],
        "last_loss": curve[-1]["loss"],
        "audit": audit,
    }


def train(run: Run) -> None:
    """Fine-tune, from the start or from the last checkpoint, and write the model and its curve; every rank calls it.

    After SIGTERM it ends with the step that it is at, saves a checkpoint and raises `SystemExit` (exit code 75).
    Raises `UserError` for rows that can't be trained on, a model whose attention can't be packed, a loss that is not
    finite, a full disk, and a run that changed nothing.
    """
    with process_group() as ranks:
        settings = run.settings
        if settings.global_batch % (settings.micro_batch * ranks.world):
            raise UserError(
                f"train.global_batch ({settings.global_batch}) is not a multiple of train.micro_batch x processes "
                f"({settings.micro_batch} x {ranks.world})"
            )
        memory.check(run, ranks)
        tokenizer = chat.tokenizer_of(run.model_dir, run.trust_remote_code)
        examples, audit = trainset.encode_rows(tokenizer, run.rows, settings.sequence_length)
        sequences = trainset.sequences_of(examples, settings)
        batches = trainset.batches_of(len(sequences), settings, run.seed)
        audit |= {
            "sequences": len(sequences),
            "fill": round(audit["tokens"] / (len(sequences) * settings.sequence_length), 6),
            "steps": len(batches),
        }
        if ranks.rank == 0:
            with room_for(str(AUDITS)):
                _tell_audit(audit, AUDITS / f"train-{run.checkpoints.name}.json")
            if settings.precision == "bf16" and ranks.device == "cpu" and not multiplies_bf16():
                say("train: this CPU has no bf16 instructions: train.precision: fp32 is several times faster here")
        key = fingerprint(run, ranks, examples, [sequences, batches])
        zero, minutes = footprint.stage_of(settings), settings.checkpoint_minutes
        divisible = not isinstance(run.tuning, L2SP)
        checkpoints = Checkpoints(run.checkpoints, key, ranks.rank, ranks.world, zero, minutes, divisible)
        engine = make_engine(run, ranks.world, ranks.device, checkpoints.universal)
        reference = make_reference(run, ranks.world, ranks.device)
        if settings.packing and (moved := leak(engine.module, ranks.device)) > LEAK_TOLERANCE:
            raise UserError(
                f"{run.model_dir}: packed examples see each other in this model's attention (logits move by "
                f"{moved:.3g}); set train.packing: false"
            )
        done = checkpoints.resume(engine)
        with room_for(str(run.curve)):
            curve = Curve(run.curve, done, ranks.rank)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        bar = Progress(f"train {run.variant}", len(batches), "steps")
        about = {"variant": run.variant, "seed": run.seed, "base": run.identity, "tuning": run.tuning.model_dump()}
        about |= {"rows": len(run.rows), "steps": len(batches), "train": settings.model_dump(exclude=ELSEWHERE)}
        live = Trackers(settings.trackers if ranks.rank == 0 else [], run.curve.stem, key, about, curve.rows)
        with bar if ranks.rank == 0 else contextlib.nullcontext(), live, Preemption() as preemption:
            bar.done = len(curve.rows)
            for step in range(len(curve.rows), len(batches)):
                batch = [[examples[index] for index in sequences[sequence]] for sequence in batches[step]]
                row = optimiser_step(engine, run, ranks, batch, step, len(batches), pad_id, reference)
                with room_for(str(run.curve)):
                    curve.add(row)
                live.log(row)
                if ranks.rank == 0:
                    bar.advance(1, f"loss {row['loss']:.4f}, {row['tokens_per_s']:.0f} tokens/s")
                if checkpoints.any_of(checkpoints.due() or preemption.asked) and step + 1 < len(batches):
                    stop = checkpoints.any_of(preemption.asked)
                    checkpoints.save(engine, curve.rows, ended_early=stop)
                    if stop:
                        _end_early(run, ranks, step + 1)
        weights = export.master_weights(engine, ranks.rank)
        if ranks.rank == 0:
            if isinstance(run.tuning, Lora):
                weights = tuning.merged(weights, run.tuning)
                tuning.remove_adapters(engine.module)
            report = summary(run, audit, curve.rows)
            base = run.base or cards.load_card(run.model_dir)
            with room_for(str(run.tuned_dir)):
                measured = export.write(
                    engine.module, weights, tokenizer, run.model_dir, run.tuned_dir, report, base, run.rows
                )
            say(f"train: {run.tuned_dir}: max|w - w0| {measured['max_abs_change']:.3g}")
        checkpoints.clear()


def _end_early(run: Run, ranks: Ranks, step: int) -> NoReturn:
    """End after SIGTERM, once a checkpoint is saved."""
    if ranks.rank == 0:
        say(f"train {run.variant}: ended by SIGTERM after step {step}; the checkpoint is saved, `dvc repro` goes on")
    raise SystemExit(PREEMPTED)
