"""Our trainer beside TRL's, beside a bare loop and beside padding: tokens a second of CPU time, and memory.

Run: python -m bench.train [--json] [--turns N] [--steps N] [--bf16]     (after `dvc repro`; 15 minutes on two cores)

The target, `train` and the training set data/mixed/<--variant>.parquet are those of params.yaml, but in fp32 and one
process, and the set as many times over as the steps need. Each way is a process of its own on all cores, and they take
turns. What is measured is CPU time from the end of the first optimiser step to the end of the last, so loading and
export count for none; tokens are those of conversations, never padding. Memory is the greatest resident size up to the
last step.

- ours: anamnesis/training.py, as stage train calls it
- trl: SFTTrainer without DeepSpeed on our packed sequences, in our order and at our learning rates, with its own
  collator, loss, clipping and fused AdamW
- bare: forward, backward and step of the same fused AdamW on the same micro-batches, and nothing else: no clipping
- all logits: bare with the logits of every position, as a model gives them if it isn't asked otherwise
- padded: ours with `packing: false` and as many rows a step as packing has on average; rows of like length share a
  pass and are padded to the longer one
- full width: padded, but each row to `sequence_length`, as where all shapes must be the same
- bf16 (with --bf16; slow on processors without such instructions): ours with `precision: bf16`
"""

import argparse
import contextlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from anamnesis import chat, packing, ranks, records, training, trainset
from anamnesis import params as settings_file
from anamnesis.hardware import cores
from anamnesis.sections import Train
from bench import finish, tell

ROOT = Path(__file__).resolve().parent.parent
STEPS = 8
TURNS = 3
SAME_LOSS = 1e-3  # of the first step, between ways that see the same batches
PACKED = ("ours", "trl", "bare", "all logits")

Task = dict[str, Any]  # model: a folder; rows; settings: of `train`; seed; width: of every row, or None
Batches = list[list[list[chat.Encoded]]]  # an optimiser step, a sequence, an example


def batches_of(rows: Sequence[dict[str, Any]], tokenizer: Any, settings: Train, seed: int) -> Batches:
    """The batches of a run as stage train makes them."""
    examples, _ = trainset.encode_rows(tokenizer, rows, settings.sequence_length)
    sequences = trainset.sequences_of(examples, settings)
    return [
        [[examples[index] for index in sequences[sequence]] for sequence in batch]
        for batch in trainset.batches_of(len(sequences), settings, seed)
    ]


def rows_for(steps: int, mix: Sequence[dict[str, Any]], tokenizer: Any, settings: Train) -> list[dict[str, Any]]:
    """As much of a training set, over and over, as fills so many global batches of packed sequences exactly."""
    rows: list[dict[str, Any]] = []
    lengths: list[int] = []
    known = [min(settings.sequence_length, len(chat.encode(tokenizer, row["messages"]).ids)) for row in mix]
    wanted = steps * settings.global_batch
    while True:
        place = len(rows) % len(mix)
        if len(packing.pack([*lengths, known[place]], settings.sequence_length)) > wanted:
            return rows
        rows.append(mix[place] | {"row_id": f"{len(rows)}-{mix[place]['row_id']}"})
        lengths.append(known[place])


# --- one way, in a process of its own ---


class Watch:
    """What a way did: a row for each optimiser step, with CPU and wall time at its end, and the memory by then."""

    def __init__(self, batches: Batches):
        self.rows: list[dict[str, float]] = []
        self._batches = batches

    def step(self, **told: float) -> None:
        """Note the end of an optimiser step, with what the way says of it."""
        sizes = [(len(e.ids), sum(e.supervised[1:])) for s in self._batches[len(self.rows)] for e in s]
        tokens, supervised = (sum(column) for column in zip(*sizes, strict=True))
        clocks = {"cpu_s": time.process_time(), "wall_s": time.perf_counter()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.rows.append(told | clocks | {"tokens": tokens, "supervised": supervised, "peak_mib": peak})

    def finished(self) -> bool:
        """Whether that was the last one."""
        return len(self.rows) == len(self._batches)


class Finished(Exception):
    """Raised after the last step: the export is not measured."""


def ours(task: Task, settings: Train, watch: Watch) -> None:
    """Stage train's own function, watched at the end of each step."""
    one_step, lay_out, width = training.optimiser_step, packing.lay_out, task.get("width") or 0

    def watched(*arguments: Any, **named: Any) -> dict[str, Any]:
        row = one_step(*arguments, **named)
        watch.step(**{key: row[key] for key in ("loss", "learning_rate", "grad_norm")})
        if watch.finished():
            raise Finished
        return row

    def widened(sequences: Any, pad_id: int) -> packing.Rows:
        rows = lay_out(sequences, pad_id)
        missing = width - len(rows.input_ids[0])
        return packing.Rows(
            [row + [pad_id] * missing for row in rows.input_ids],
            [row + list(range(missing)) for row in rows.position_ids],
            [row + [packing.IGNORE] * missing for row in rows.labels],
        )

    training.optimiser_step = watched
    if width:
        packing.lay_out = widened
    conf = json.loads((ROOT / f"conf/deepspeed/zero{settings.zero}.json").read_text(encoding="utf-8"))
    with contextlib.suppress(Finished):
        training.train(
            training.Run(
                variant="bench",
                settings=settings,
                seed=task["seed"],
                rows=task["rows"],
                model_dir=Path(task["model"]),
                identity="bench",
                trust_remote_code=False,
                deepspeed=conf,
                tuned_dir=Path("tuned"),
                curve=Path("curve.csv"),
                checkpoints=Path("checkpoints"),
            )
        )


def in_turn(batches: Batches, settings: Train) -> Iterator[tuple[int, list[list[list[chat.Encoded]]]]]:
    """The number of each step and its micro-batches, as one process has them."""
    for step, batch in enumerate(batches):
        sizes = [sum(len(example.ids) for example in sequence) for sequence in batch]
        rounds = packing.deal(sizes, settings.micro_batch, 1)
        yield step, [[batch[index] for index in shares[0]] for shares in rounds]


def bare(task: Task, settings: Train, watch: Watch, batches: Batches, loss_of: Callable[..., Any]) -> None:
    """Forward, backward, step; in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(len(cores()))
    model = AutoModelForCausalLM.from_pretrained(
        task["model"], dtype=torch.float32, attn_implementation="sdpa", use_safetensors=True
    ).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=settings.weight_decay, fused=True)
    for step, micro_batches in in_turn(batches, settings):
        rate = trainset.learning_rate(step, len(batches), settings)
        for group in optimizer.param_groups:
            group["lr"] = rate
        supervised = sum(sum(e.supervised[1:]) for sequence in batches[step] for e in sequence)
        total = 0.0
        for micro_batch in micro_batches:
            loss = loss_of(model, packing.lay_out(micro_batch, 0), "cpu") / supervised
            loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        watch.step(loss=total, learning_rate=rate)


def all_logits(model: Any, batch: packing.Rows, device: str) -> Any:
    """`training.summed_loss` without its choice of positions."""
    import torch

    inputs = {"input_ids": torch.tensor(batch.input_ids), "position_ids": torch.tensor(batch.position_ids)}
    logits = model(**inputs, use_cache=False).logits.float().flatten(0, 1)
    labels = torch.tensor(batch.labels).flatten()
    return torch.nn.functional.cross_entropy(logits, labels, ignore_index=packing.IGNORE, reduction="sum")


def trl(task: Task, settings: Train, watch: Watch, batches: Batches) -> None:
    """TRL's trainer on our packed sequences; `seq_lengths` is what its collator makes position ids from.

    Its dataset is made ready here, so that its labels are on the same tokens as ours: SmolLM2's template has no marks
    from which TRL could tell the answers. Its schedule would begin at a rate of 0, hence ours.
    """
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(len(cores()))
    packed = [
        {
            "input_ids": [token for example in sequence for token in example.ids],
            "labels": [
                token if target and place else packing.IGNORE
                for example in sequence
                for place, (token, target) in enumerate(zip(example.ids, example.supervised, strict=True))
            ],
            "seq_lengths": [len(example.ids) for example in sequence],
        }
        for _, micro_batches in in_turn(batches, settings)
        for micro_batch in micro_batches
        for sequence in micro_batch
    ]
    passes = settings.global_batch // settings.micro_batch
    config = SFTConfig(
        output_dir="trl",
        use_cpu=True,
        bf16=settings.precision == "bf16",
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=passes,
        num_train_epochs=1,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        optim="adamw_torch_fused",
        packing=True,
        max_length=settings.sequence_length,
        dataset_kwargs={"skip_prepare_dataset": True},
        train_sampling_strategy="sequential",
        gradient_checkpointing=settings.activation_checkpointing,
        model_init_kwargs={"dtype": "float32", "attn_implementation": "sdpa"},
        logging_steps=1,
        disable_tqdm=True,
        report_to="none",
        save_strategy="no",
        seed=task["seed"],
    )

    class Watcher(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if "grad_norm" in logs:  # the log of a step, not the one at the end
                watch.step(**{key: float(logs[key]) for key in ("loss", "learning_rate", "grad_norm")})

    trainer = SFTTrainer(
        model=task["model"],
        args=config,
        train_dataset=Dataset.from_list(packed),
        processing_class=chat.tokenizer_of(task["model"]),
        callbacks=[Watcher()],
    )
    trainer.create_optimizer()
    shares = [
        trainset.learning_rate(step, len(batches), settings) / settings.learning_rate for step in range(len(batches))
    ]
    trainer.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
        trainer.optimizer, lambda step: shares[min(step, len(shares) - 1)]
    )
    trainer.train()


def run_here(way: str, task: Task) -> list[dict[str, float]]:
    """One way in this process; a row a step."""
    settings = Train.model_validate(task["settings"])
    batches = batches_of(task["rows"], chat.tokenizer_of(task["model"]), settings, task["seed"])
    watch = Watch(batches)
    if way == "trl":
        trl(task, settings, watch, batches)
    elif way in ("bare", "all logits"):
        bare(task, settings, watch, batches, training.summed_loss if way == "bare" else all_logits)
    else:
        ours(task, settings, watch)
    if not watch.finished():
        raise SystemExit(f"{way}: {len(watch.rows)} steps of {len(batches)}")
    return watch.rows


# --- all of them ---


def environment() -> dict[str, str]:
    """A way's environment: this code, the CPU, no network."""
    fixed = {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return os.environ | fixed | {"DS_ACCELERATOR": "cpu", "TOKENIZERS_PARALLELISM": "false"}


def start(way: str, task: Task, folder: Path) -> subprocess.Popen[str]:
    """One way in a process and a folder of its own."""
    folder.mkdir(parents=True)
    (folder / "task.json").write_text(json.dumps(task), encoding="utf-8")
    command = [sys.executable, "-m", "bench.train", "--way", way]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment(), stdout=pipe, stderr=pipe, text=True)


def result(way: str, process: subprocess.Popen[str]) -> list[dict[str, float]]:
    """The steps that a way told, a row each; it must succeed."""
    out, err = process.communicate()
    if process.returncode:
        raise SystemExit(f"{way}: exit code {process.returncode}\n{err[-3000:]}")
    return list(json.loads(out.splitlines()[-1]))


def has_trl() -> bool:
    """Whether there is anything to compare with."""
    return importlib.util.find_spec("trl") is not None


def rate(steps: Sequence[dict[str, float]], clock: str = "cpu_s", what: str = "tokens") -> float:
    """Tokens a second from the end of the first step to the end of the last, or the supervised ones among them.

    Those by their share of all steps: which rows are in the first step depends on the way, the rows as a whole don't.
    """
    share = sum(step[what] for step in steps) / sum(step["tokens"] for step in steps)
    return share * sum(step["tokens"] for step in steps[1:]) / (steps[-1][clock] - steps[0][clock])


def tasks_of(options: argparse.Namespace) -> dict[str, Task]:
    """What each way is given."""
    params = settings_file.load()
    model = (Path("models/pretrained") / params.target).resolve()
    data = Path(f"data/mixed/{options.variant}.parquet")
    if not (model.exists() and data.exists()):
        raise SystemExit(f"bench.train needs {model} and {data}: run `dvc repro mix` first")
    one_process = {"processes": 1, "launch": "auto", "hostfile": None, "trackers": [], "checkpoint_minutes": 1e6}
    train = params.train.model_copy(update=one_process | {"epochs": 1, "precision": "fp32", "packing": True})
    mix, tokenizer = records.read(data, records.MIXED), chat.tokenizer_of(model)
    rows = rows_for(options.steps, mix, tokenizer, train)
    passes = train.global_batch // train.micro_batch
    together = round(len(rows) / (options.steps * passes))
    padded = train.model_copy(update={"packing": False, "micro_batch": together, "global_batch": together * passes})

    def task(settings: Train, **more: Any) -> Task:
        return {"model": str(model), "rows": rows, "seed": params.seed, "settings": settings.model_dump(), **more}

    tasks = {way: task(train) for way in PACKED if way != "trl" or has_trl()}
    tasks |= {"padded": task(padded), "full width": task(padded, width=train.sequence_length)}
    if options.bf16:
        tasks["bf16"] = task(train.model_copy(update={"precision": "bf16"}))
    return tasks


def main() -> None:
    """Measure all ways in turns and print the figures; or, with --way, one of them in this process."""
    parser = argparse.ArgumentParser(description="Our trainer beside TRL's, a bare loop, and padding")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--turns", type=int, default=TURNS)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--variant", default="committee")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--way", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        ranks.choose_accelerator()
        print(json.dumps(run_here(options.way, json.loads(Path("task.json").read_text(encoding="utf-8")))))
        return
    tasks = tasks_of(options)
    if "trl" not in tasks:
        print("trl is not installed: ratio_trl is left out", file=sys.stderr)
    found: dict[str, list[list[dict[str, float]]]] = {way: [] for way in tasks}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(options.turns):
            for way in list(tasks)[:: -1 if turn % 2 else 1]:
                steps = result(way, start(way, tasks[way], Path(place) / f"{turn}-{way}"))
                found[way].append(steps)
                print(f"{way}: {rate(steps):.1f} tokens a CPU second", file=sys.stderr, flush=True)
    firsts = {way: found[way][0][0]["loss"] for way in PACKED if way in found}
    if max(firsts.values()) - min(firsts.values()) > SAME_LOSS:
        raise SystemExit(f"the ways don't train on the same: losses of the first step are {firsts}")

    def ratio(one: str, other: str, what: str = "tokens") -> dict[str, float]:
        """`one` over `other`: of their medians, and the least and greatest of a turn."""
        rates = {way: [rate(steps, what=what) for steps in found[way]] for way in (one, other)}
        turns = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        return {"": median(rates[one]) / median(rates[other]), "_from": min(turns), "_to": max(turns)}

    pairs = {"trl": ("ours", "trl", "tokens"), "packing": ("ours", "full width", "supervised")}
    pairs |= {"packing_longest": ("ours", "padded", "supervised"), "bare": ("ours", "bare", "tokens")}
    pairs |= {"logits": ("bare", "all logits", "tokens"), "bf16": ("bf16", "ours", "tokens")}
    figures: dict[str, Any] = {}
    for name, (one, other, what) in pairs.items():
        if one in found and other in found:
            figures |= {f"ratio_{name}{end}": value for end, value in ratio(one, other, what).items()}
        else:
            figures[f"ratio_{name}"] = None
    peaks = {way: round(median(steps[-1]["peak_mib"] for steps in some)) for way, some in found.items()}
    rates = {way: [rate(steps) for steps in some] for way, some in found.items()}
    tell(
        f"{options.steps} steps, {len(tasks['ours']['rows'])} rows",
        ["way", "tokens/CPU s", "from", "to", "supervised/CPU s", "tokens/s", "peak MiB"],
        [
            [
                way,
                median(rates[way]),
                min(rates[way]),
                max(rates[way]),
                median(rate(steps, what="supervised") for steps in some),
                median(rate(steps, clock="wall_s") for steps in some),
                peaks[way],
            ]
            for way, some in found.items()
        ],
    )
    figures["peak_mib"] = peaks
    figures["tokens_per_cpu_s"] = {way: round(median(some), 1) for way, some in rates.items()}
    figures["rows"] = len(tasks["ours"]["rows"])
    finish(figures)


if __name__ == "__main__":
    main()
