"""Full fine-tuning of a chat model on conversations: our own loop around a DeepSpeed engine, ZeRO 0 to 3.

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
import os
import pickle
import random
import shutil
import sys
import threading
import time
import warnings
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anamnesis import chat, packing
from anamnesis.errors import QUALITY, UserError
from anamnesis.hardware import cores, multiplies_bf16
from anamnesis.params import Train
from anamnesis.progress import Progress
from anamnesis.records import seed_of

COLUMNS = ("step", "loss", "learning_rate", "grad_norm", "supervised_tokens", "tokens_per_s")
REPORT = "training.json"
LATEST = "latest.json"
KEPT_CHECKPOINTS = 2
AUDITED_ROWS = 3
SHOWN_CHARACTERS = 600  # of an audited row, at each end
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


@dataclass(frozen=True)
class Ranks:
    """Where this process stands among those of the run."""

    rank: int
    world: int
    device: str


# --- data ------------------------------------------------------------------------------------------------------------


def encode_rows(
    tokenizer: Any, rows: Sequence[dict[str, Any]], sequence_length: int
) -> tuple[list[chat.Encoded], dict[str, Any]]:
    """Tokenize rows, cut them to `sequence_length`, and count what happened: `(examples, audit)`.

    Raises `UserError` where a row has no token left to train on.
    """
    examples: list[chat.Encoded] = []
    sources: dict[str, dict[str, int]] = {}
    truncated = 0
    empty: list[str] = []
    without_answer: list[str] = []
    for row in rows:
        whole = chat.encode(tokenizer, row["messages"])
        example = chat.Encoded(
            array("i", whole.ids[:sequence_length]),  # a twentieth of the memory of lists
            bytes(whole.supervised[:sequence_length]),
        )
        truncated += len(whole.ids) > sequence_length
        if not any(example.supervised[1:]):
            (empty if any(whole.supervised) else without_answer).append(row["row_id"])
        source = sources.setdefault(row["source"], {"rows": 0, "tokens": 0, "supervised_tokens": 0})
        source["rows"] += 1
        source["tokens"] += len(example.ids)
        source["supervised_tokens"] += sum(example.supervised[1:])
        examples.append(example)
    if without_answer:
        raise UserError(f"{_some(without_answer)}: no assistant turn to train on; correct the rows' messages")
    if empty:
        raise UserError(
            f"{_some(empty)}: no assistant token is left in the first {sequence_length} tokens; "
            "raise train.sequence_length or shorten the prompts"
        )
    if not examples:
        raise UserError("the training set has no rows; look at mix.total and the stage mix")
    firsts = {row["source"]: index for index, row in reversed(list(enumerate(rows)))}
    shown = list(dict.fromkeys([*sorted(firsts.values()), *range(len(rows))]))[:AUDITED_ROWS]
    audit = {
        "rows": len(examples),
        "tokens": sum(len(example.ids) for example in examples),
        "supervised_tokens": sum(source["supervised_tokens"] for source in sources.values()),
        "truncated_rows": truncated,
        "truncated_share": round(truncated / len(examples), 6),
        "rows_without_supervised_tokens": 0,  # it would have been an error
        "sources": dict(sorted(sources.items())),
        "samples": [{"row_id": rows[index]["row_id"], "text": marked(tokenizer, examples[index])} for index in shown],
    }
    return examples, audit


def _some(row_ids: list[str]) -> str:
    shown = ", ".join(row_ids[:3])
    return f"row {shown}" if len(row_ids) == 1 else f"{len(row_ids)} rows ({shown}{', …' if len(row_ids) > 3 else ''})"


def marked(tokenizer: Any, example: chat.Encoded) -> str:
    """An example as text, what is trained on between ⟦ and ⟧; the middle of a long one is left out."""
    parts: list[str] = []
    start = 0
    while start < len(example.ids):
        end = start
        while end < len(example.ids) and bool(example.supervised[end]) == bool(example.supervised[start]):
            end += 1
        text = tokenizer.decode(list(example.ids[start:end]), skip_special_tokens=False)
        parts.append(f"⟦{text}⟧" if example.supervised[start] else text)
        start = end
    text = "".join(parts)
    if len(text) > 2 * SHOWN_CHARACTERS:
        text = f"{text[:SHOWN_CHARACTERS]} […] {text[-SHOWN_CHARACTERS:]}"
    return text


def sequences_of(examples: Sequence[chat.Encoded], settings: Train) -> list[list[int]]:
    """Indices of examples, a list a sequence: packed, or one example each."""
    if settings.packing:
        return packing.pack([len(example.ids) for example in examples], settings.sequence_length)
    return [[index] for index in range(len(examples))]


def batches_of(count: int, settings: Train, seed: int) -> list[list[int]]:
    """The global batch of every optimiser step: indices of sequences, each exactly once an epoch.

    The order is drawn anew for each epoch from its own seed. An epoch's last batch is smaller where the numbers don't
    divide; no batch mixes two epochs.
    """
    batches = []
    for epoch in range(settings.epochs):
        order = list(range(count))
        random.Random(seed_of(seed, "epoch", epoch)).shuffle(order)
        batches += [order[start : start + settings.global_batch] for start in range(0, count, settings.global_batch)]
    return batches


def learning_rate(step: int, steps: int, settings: Train) -> float:
    """The learning rate of optimiser step `step`, counted from 0, of `steps`.

    A linear warm-up over W = ceil(warmup_fraction * steps) steps, peak * (step + 1) / W; then the peak, or its half
    cosine peak / 2 * (1 + cos(pi * (step - W) / (steps - W))).
    """
    warmup = math.ceil(settings.warmup_fraction * steps)
    if step < warmup:
        return settings.learning_rate * (step + 1) / warmup
    if settings.schedule == "constant":
        return settings.learning_rate
    return settings.learning_rate / 2 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


# --- processes -------------------------------------------------------------------------------------------------------


def choose_accelerator() -> None:
    """Tell DeepSpeed to use the CPU where there is no GPU; to be called before transformers is imported."""
    import torch

    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def in_launched_process() -> bool:
    """Whether torchrun, or another launcher that sets its variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def launch(processes: int, arguments: Sequence[str]) -> None:
    """Run `python <arguments>` as `processes` ranks on this machine with torchrun's agent, and wait.

    Raises `SystemExit` with the exit code of the first rank that failed.
    """
    import logging

    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the ranks' own words are enough
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        run_id=str(os.getpid()),
        max_restarts=0,
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(_threads(processes)))
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise SystemExit(failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode) from None
    except SignalException as error:
        raise SystemExit(128 + error.sigval) from None


def _threads(processes: int) -> int:
    return max(1, len(cores()) // processes)


def _end_with_the_launcher() -> None:
    """End this rank when its launcher is gone: torchrun puts ranks in sessions of their own, and they would go on."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextlib.contextmanager
def process_group() -> Iterator[Ranks]:
    """Join the run's processes, or be the only one; a `Ranks` for as long as the block lasts."""
    choose_accelerator()
    import logging

    import deepspeed
    import torch
    from transformers.utils import logging as transformers_logging

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # its warnings are about choices made here on purpose
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")
    transformers_logging.disable_progress_bar()
    on_gpu = torch.cuda.is_available()
    rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_world = int(os.environ.get("LOCAL_WORLD_SIZE", str(world)))
    if on_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    else:
        torch.set_num_threads(_threads(local_world))
        # Otherwise DeepSpeed compiles a C++ extension on first use (minutes, needs g++). The name is not public: the
        # version is pinned and a test watches it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if on_gpu else "gloo"
    if in_launched_process():
        _end_with_the_launcher()
        torch.distributed.init_process_group(backend)
    else:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed asks for it
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    try:
        yield Ranks(rank, world, f"cuda:{torch.cuda.current_device()}" if on_gpu else "cpu")
    except UserError as error:
        if rank == 0:
            raise
        time.sleep(10)  # every rank finds the same mistake; the launcher ends this one when rank 0 has told it
        raise SystemExit(error.code) from None
    torch.distributed.destroy_process_group()


# --- model and engine ------------------------------------------------------------------------------------------------


def engine_config(run: Run, world: int) -> dict[str, Any]:
    """DeepSpeed's settings: the file for the ZeRO stage, with our batch, clipping and precision filled in.

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
    if settings.precision == "bf16":
        zero = {**config["zero_optimization"], "stage": max(1, settings.zero)}
        config |= {"bf16": {"enabled": True}, "data_types": {"grad_accum_dtype": "fp32"}, "zero_optimization": zero}
    return config


def make_engine(run: Run, world: int, device: str) -> Any:
    """A DeepSpeed engine around the model, in the dtype of `precision`, with torch's fused AdamW.

    Under ZeRO-3 each rank holds only its part of the weights from the start.
    """
    import deepspeed
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.integrations import HfDeepSpeedConfig

    config = engine_config(run, world)
    partitioned = HfDeepSpeedConfig(config) if run.settings.zero == 3 else None  # in force while it is referenced
    try:
        model = AutoModelForCausalLM.from_pretrained(
            run.model_dir,
            dtype=torch.bfloat16 if run.settings.precision == "bf16" else torch.float32,
            attn_implementation="sdpa",
            trust_remote_code=run.trust_remote_code,
            use_safetensors=True,
        )
    except (OSError, ValueError) as error:
        raise UserError(f"{run.model_dir}: can't be loaded: {' '.join(str(error).split())}") from None
    finally:
        del partitioned
    model.to(device)
    matrices: list[Any] = []
    others: list[Any] = []  # norms and biases, which are not decayed
    for parameter in model.parameters():
        (matrices if len(getattr(parameter, "ds_shape", parameter.shape)) > 1 else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": run.settings.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, fused=True)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints memory figures
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    engine.train()
    return engine


def summed_loss(model: Any, batch: packing.Rows, device: str) -> Any:
    """The sum of -log p(label) over a micro-batch, a scalar; 0, with a gradient, where no position has a label.

    The model computes logits for positions with a label in some row only: the projection to the vocabulary is the
    largest matrix of a small model, and prompts are a good part of the tokens.
    """
    import torch

    labels = torch.tensor(batch.labels, device=device)
    wanted = (labels != packing.IGNORE).any(dim=0).nonzero().flatten()
    if not len(wanted):
        wanted = torch.zeros(1, dtype=torch.long, device=device)
    inputs = {
        "input_ids": torch.tensor(batch.input_ids, device=device),
        "position_ids": torch.tensor(batch.position_ids, device=device),
        "use_cache": False,  # with a cache, as with an attention_mask, transformers builds no block-diagonal mask
    }
    if "logits_to_keep" in inspect.signature(getattr(model, "module", model).forward).parameters:
        logits = model(**inputs, logits_to_keep=wanted).logits
    else:
        logits = model(**inputs).logits[:, wanted]
    return torch.nn.functional.cross_entropy(
        logits.float().flatten(0, 1), labels[:, wanted].flatten(), ignore_index=packing.IGNORE, reduction="sum"
    )


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


# --- checkpoints -----------------------------------------------------------------------------------------------------


def fingerprint(run: Run, ranks: Ranks) -> str:
    """What a checkpoint must agree with to be continued: rows, settings, weights, libraries, processes and device."""
    import deepspeed
    import torch
    import transformers

    settings = run.settings.model_dump(exclude={"checkpoint_steps"})
    versions = [deepspeed.__version__, torch.__version__, transformers.__version__]
    device = "cpu" if ranks.device == "cpu" else "gpu"
    state = hashlib.sha256()
    for part in (settings, run.seed, run.identity, run.deepspeed, versions, ranks.world, device, run.rows):
        state.update(json.dumps(part, sort_keys=True).encode())
    return state.hexdigest()


class Checkpoints:
    """The engine's state in `<folder>/step-<n>/`, and `latest.json`, which names the newest one that is complete.

    The newest two are kept. The file is replaced in one move after all ranks have written, so a run that is killed at
    any moment finds a whole checkpoint or none.
    """

    def __init__(self, folder: Path, key: str, rank: int):
        self.folder, self.key, self.rank = folder, key, rank

    def resume(self, engine: Any) -> list[dict[str, Any]]:
        """Bring the engine to the newest checkpoint; returns the CSV rows up to there, none where there is none."""
        try:
            latest = json.loads((self.folder / LATEST).read_text(encoding="utf-8"))
            usable = latest["fingerprint"] == self.key
        except (OSError, ValueError, KeyError, TypeError):
            latest, usable = None, False
        if not usable:
            if latest and self.rank == 0:
                _say(f"{self.folder}: of other data, settings, model or libraries; starting anew")
            self._barrier()
            self.clear()
            return []
        try:
            loaded, _ = engine.load_checkpoint(str(self.folder), tag=latest["checkpoint"])
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
            loaded = None
        if loaded is None:
            raise UserError(f"{self.folder}/{latest['checkpoint']}: can't be read; delete {self.folder} and run again")
        if self.rank == 0:
            _say(f"{self.folder}/{latest['checkpoint']}: resumed")
        return latest["curve"]

    def save(self, engine: Any, curve: list[dict[str, Any]]) -> None:
        """Write the engine's state after `len(curve)` steps; every rank calls it."""
        name = f"step-{len(curve):06d}"
        engine.save_checkpoint(str(self.folder), tag=name, save_latest=False)
        self._barrier()
        if self.rank == 0:
            os.sync()
            partial = self.folder / (LATEST + ".partial")
            text = json.dumps({"fingerprint": self.key, "checkpoint": name, "curve": curve})
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, self.folder / LATEST)
            steps = sorted(path for path in self.folder.glob("step-*") if path.name <= name)
            for old in steps[:-KEPT_CHECKPOINTS]:
                shutil.rmtree(old, ignore_errors=True)

    def clear(self) -> None:
        """Remove them all: the run ended well, or they are of no use."""
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._barrier()

    @staticmethod
    def _barrier() -> None:
        import torch

        torch.distributed.barrier()


# --- the result ------------------------------------------------------------------------------------------------------


def master_weights(engine: Any, rank: int) -> dict[str, Any]:
    """The trained weights in fp32 on the CPU, by name; on ranks but 0 an empty dict. Every rank calls it."""
    from deepspeed.utils import safe_get_full_fp32_param

    weights = {}
    for name, parameter in engine.module.named_parameters():
        whole = parameter.detach() if engine.zero_optimization_stage() == 0 else safe_get_full_fp32_param(parameter)
        if rank == 0:
            weights[name] = whole.float().cpu().clone().contiguous()
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


def export(run: Run, model: Any, weights: dict[str, Any], tokenizer: Any, report: dict[str, Any]) -> dict[str, Any]:
    """Write the Hugging Face directory and `training.json`, in one move; returns what `change` measured.

    Raises `UserError` (exit code 5) where no weight has changed.
    """
    import torch

    partial = run.tuned_dir.with_name(run.tuned_dir.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    model.save_pretrained(partial, state_dict=weights)
    model.config.dtype = torch.float32  # what the file holds: transformers loads a model in the dtype its config names
    model.config.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    measured = change(run.model_dir, partial)
    if not measured["max_abs_change"]:
        raise UserError(
            f"train {run.variant}: training changed no weight; raise train.learning_rate "
            f"({run.settings.learning_rate:g}) or the number of steps ({report['steps']})",
            QUALITY,
        )
    text = json.dumps(report | {"change": measured}, indent=2, ensure_ascii=False) + "\n"
    (partial / REPORT).write_text(text, encoding="utf-8")
    shutil.rmtree(run.tuned_dir, ignore_errors=True)
    os.replace(partial, run.tuned_dir)
    return measured


# --- the run ---------------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(f"train: {line}", file=sys.stderr, flush=True)


def _print_audit(audit: dict[str, Any]) -> None:
    _say(
        f"{audit['rows']} rows, {audit['tokens']} tokens, {audit['supervised_tokens']} of them trained on, "
        f"{audit['truncated_rows']} rows truncated ({audit['truncated_share']:.1%})"
    )
    _say(f"{audit['sequences']} sequences, {audit['fill']:.1%} full; {audit['steps']} optimiser steps")
    for name, source in audit["sources"].items():
        _say(f"  {name}: {source['rows']} rows, {source['tokens']} tokens, {source['supervised_tokens']} trained on")
    for sample in audit["samples"]:
        _say(f"row {sample['row_id']}, trained on between ⟦ and ⟧:\n{sample['text']}")


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
        self.rows.append(row)
        if self._file:
            self._writer.writerow(row)
            self._file.flush()


def optimiser_step(
    engine: Any, run: Run, ranks: Ranks, batch: list[list[chat.Encoded]], step: int, steps: int, pad_id: int
) -> dict[str, Any]:
    """One step on a global batch of sequences; its row of the CSV. Every rank calls it with the same batch.

    The loss is the mean over the supervised tokens of the whole global batch. Each micro-batch gives its sum divided by
    their number; DeepSpeed adds micro-batches up and averages over ranks, hence the factor `world`. No other
    split of the batch, and no batch that isn't full, gives another loss.
    Raises `UserError` (exit code 5) where the loss or the gradient is not finite.
    """
    import torch

    started = time.perf_counter()
    torch.manual_seed(seed_of(run.seed, "step", step, ranks.rank))  # for dropout, where a model has it
    rate = learning_rate(step, steps, run.settings)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    sizes = [sum(len(example.ids) for example in sequence) for sequence in batch]
    supervised = sum(sum(example.supervised[1:]) for sequence in batch for example in sequence)
    total = torch.zeros((), dtype=torch.float64, device=ranks.device)
    rounds = packing.deal(sizes, run.settings.micro_batch, ranks.world)
    for number, shares in enumerate(rounds):
        engine.set_gradient_accumulation_boundary(number == len(rounds) - 1)
        micro_batch = packing.lay_out([batch[index] for index in shares[ranks.rank]], pad_id)
        loss = summed_loss(engine, micro_batch, ranks.device)
        engine.backward(loss * (ranks.world / supervised), scale_wrt_gas=False)
        total += loss.detach()
    norm = None
    if engine.zero_optimization_stage() == 0:  # DeepSpeed clips there too but doesn't say by how much
        gradients = [parameter.grad for parameter in engine.module.parameters() if parameter.grad is not None]
        norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
        norm = float(torch.stack(norms).norm())
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
        "settings": run.settings.model_dump(),
        "steps": len(curve),
        "tokens": audit["tokens"] * run.settings.epochs,
        "supervised_tokens": sum(row["supervised_tokens"] for row in curve),
        "first_loss": curve[0]["loss"],
        "last_loss": curve[-1]["loss"],
        "audit": audit,
    }


def train(run: Run) -> None:
    """Fine-tune, from the start or from the last checkpoint, and write the model and its curve; every rank calls it.

    Raises `UserError` for rows that can't be trained on, a model whose attention can't be packed, a loss that is not
    finite, and a run that changed nothing.
    """
    with process_group() as ranks:
        from transformers import AutoTokenizer

        settings = run.settings
        if settings.global_batch % (settings.micro_batch * ranks.world):
            raise UserError(
                f"train.global_batch ({settings.global_batch}) is not a multiple of train.micro_batch x processes "
                f"({settings.micro_batch} x {ranks.world})"
            )
        tokenizer = AutoTokenizer.from_pretrained(run.model_dir, trust_remote_code=run.trust_remote_code)
        examples, audit = encode_rows(tokenizer, run.rows, settings.sequence_length)
        sequences = sequences_of(examples, settings)
        batches = batches_of(len(sequences), settings, run.seed)
        audit |= {
            "sequences": len(sequences),
            "fill": round(audit["tokens"] / (len(sequences) * settings.sequence_length), 6),
            "steps": len(batches),
        }
        if ranks.rank == 0:
            _print_audit(audit)
            if settings.precision == "bf16" and ranks.device == "cpu" and not multiplies_bf16():
                _say("this CPU has no bf16 instructions: train.precision: fp32 is several times faster here")
        engine = make_engine(run, ranks.world, ranks.device)
        if settings.packing and (moved := leak(engine.module, ranks.device)) > LEAK_TOLERANCE:
            raise UserError(
                f"{run.model_dir}: packed examples see each other in this model's attention (logits move by "
                f"{moved:.3g}); set train.packing: false"
            )
        checkpoints = Checkpoints(run.checkpoints, fingerprint(run, ranks), ranks.rank)
        curve = Curve(run.curve, checkpoints.resume(engine), ranks.rank)
        pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0
        bar = Progress(f"train {run.variant}", len(batches), "steps")
        with bar if ranks.rank == 0 else contextlib.nullcontext():
            bar.done = len(curve.rows)
            for step in range(len(curve.rows), len(batches)):
                batch = [[examples[index] for index in sequences[sequence]] for sequence in batches[step]]
                row = optimiser_step(engine, run, ranks, batch, step, len(batches), pad_id)
                curve.add(row)
                if ranks.rank == 0:
                    bar.advance(1, f"loss {row['loss']:.4f}, {row['tokens_per_s']:.0f} tokens/s")
                if (step + 1) % settings.checkpoint_steps == 0 and step + 1 < len(batches):
                    checkpoints.save(engine, curve.rows)
        weights = master_weights(engine, ranks.rank)
        if ranks.rank == 0:
            report = summary(run, audit, curve.rows)
            measured = export(run, engine.module, weights, tokenizer, report)
            _say(f"{run.tuned_dir}: max|w - w0| {measured['max_abs_change']:.3g}")
        checkpoints.clear()
