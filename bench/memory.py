"""What training takes in memory beside what was estimated: real steps in processes of their own.

Run: python -m bench.memory --json          (after `dvc repro models`; a quarter of an hour on two cores)
Every case is a process that loads the model, takes one step on short rows (so that AdamW has its states) and one on
full rows, in two micro-batches, and reads its peak resident memory off /proc. What it held after a run of a model of a
few thousand weights is taken off: that is libraries. The ratios are estimate ÷ measured.
"""

import argparse
import gc
import itertools
import json
import subprocess
import sys
import tempfile
from array import array
from pathlib import Path
from typing import Any

from anamnesis import chat, footprint, ranks, training
from anamnesis import params as settings
from anamnesis.sections import Train
from anamnesis.variants import FULL

ROOT = Path(__file__).resolve().parent.parent
SHORT = 32


def resident(key: str) -> int:
    """Bytes of VmRSS (now) or VmHWM (the most so far) of this process."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def sequence(length: int) -> list[chat.Encoded]:
    """Two examples that fill a sequence; all but their first tokens are trained on."""
    half = length // 2
    return [chat.Encoded(array("i", range(100, 100 + half)), bytes([0] + [1] * (half - 1)))] * 2


def steps(model: Path, wanted: Train, joined: ranks.Ranks) -> None:
    """A step on short rows and one on full rows."""
    conf = json.loads((ROOT / f"conf/deepspeed/zero{wanted.zero}.json").read_text(encoding="utf-8"))
    nowhere = Path("nowhere")
    run = training.Run("bench", wanted, 1, [], model, "", False, conf, nowhere, nowhere, nowhere)
    engine = training.make_engine(run, joined.world, joined.device)
    for step, length in enumerate((SHORT, wanted.sequence_length)):
        batch = [sequence(length)] * wanted.global_batch
        training.optimiser_step(engine, run, joined, batch, step, 2, 0)


def measure(model: Path, wanted: Train) -> dict[str, int]:
    """In a process of its own: bytes before the model was loaded, and at the peak."""
    with ranks.process_group() as joined, tempfile.TemporaryDirectory() as folder:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 1000}
        LlamaForCausalLM(LlamaConfig(num_hidden_layers=1, **sizes)).save_pretrained(folder)
        steps(Path(folder), wanted.model_copy(update={"sequence_length": SHORT}), joined)
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        before = resident("VmRSS")
        steps(model, wanted, joined)
        return {"before": before, "peak": resident("VmHWM")}


def cases(told: argparse.Namespace) -> list[dict[str, Any]]:
    """Settings of section train, a mapping a case."""
    return [
        {
            "zero": told.zero,
            "precision": told.precision,
            "sequence_length": length,
            "micro_batch": micro_batch,
            "global_batch": 2 * micro_batch,
            "activation_checkpointing": again,
        }
        for again, length, micro_batch in itertools.product((False, True), told.lengths, told.micro_batches)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.memory", description="Memory: estimated beside measured.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--zero", type=int, default=0)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--lengths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--micro-batches", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--case", type=json.loads, help=argparse.SUPPRESS)
    told = parser.parse_args()
    model = told.model or Path("models/pretrained") / settings.load().target
    if told.case:
        print(json.dumps(measure(model, Train(learning_rate=1e-5, **told.case))))
        return
    shape, found = footprint.shape_of(model), []
    for case in cases(told):
        command = [sys.executable, "-m", "bench.memory", "--model", str(model), "--case", json.dumps(case)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        seen = json.loads(done.stdout.splitlines()[-1])
        wanted = Train(learning_rate=1e-5, **case)
        conf = json.loads((ROOT / f"conf/deepspeed/zero{wanted.zero}.json").read_text(encoding="utf-8"))
        estimate = footprint.estimate(shape, wanted, FULL, 1, conf, on_gpu=False)
        taken = seen["peak"] - seen["before"]
        line = {
            **case,
            "imports_gib": round(seen["before"] / 2**30, 3),
            "measured_gib": round(taken / 2**30, 3),
            "sure_gib": round(estimate.sure / 2**30, 3),
            "estimate_gib": round(estimate.total / 2**30, 3),
            "ratio": round(estimate.total / taken, 3),
        }
        found.append(line)
        kind = "again" if case["activation_checkpointing"] else "kept"
        print(
            f"length {case['sequence_length']}, micro-batch {case['micro_batch']}, activations {kind}: "
            f"{line['measured_gib']:.2f} GiB measured, {line['estimate_gib']:.2f} estimated, ratio {line['ratio']:.2f}",
            file=sys.stderr if told.json else sys.stdout,
            flush=True,
        )
    if told.json:
        ratios = [line["ratio"] for line in found]
        print(json.dumps({"ratio_least": min(ratios), "ratio_most": max(ratios), "cases": found}))


if __name__ == "__main__":
    main()
