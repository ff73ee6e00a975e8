"""Stage evaluate beside bare lm-eval: the same tasks, rows and model in one run; are scores identical, and how long?

Run: python -m bench.evaluate [--json] [--items N] [--backends]     (after `dvc repro models`; minutes on two cores)
Bare is lm-eval's own command over the same rows, handed to it as JSONL files, with the same batch size, fp32 and chat
template. Both are whole processes, in turns, on the target of params.yaml; `ratio_bare` is the stage's wall time over
bare's. Above 1 the stage costs more than what it wraps. With --backends the stage with backend vllm stands in for bare:
for questions with options and for written answers apart, how long, and on how many items the two differ.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from anamnesis import benchmarks, items, records, suites
from anamnesis import params as settings
from bench import finish, tell

ROOT = Path(__file__).resolve().parent.parent
TASKS = {"medqa": 1.0, "arc_challenge": 1.0, "hellaswag": 1.0, "gsm8k": 0.1}  # and which part of the items each gets
METRICS = {"medqa": "acc,none", "arc_challenge": "acc_norm,none", "hellaswag": "acc_norm,none"}
METRICS["gsm8k"] = "exact_match,flexible-extract"
BATCH = 8


def timed(command: list[str], folder: Path) -> float:
    """Seconds that a command takes; it must succeed."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    return time.perf_counter() - start


def write_rows(data: Path, folder: Path, count: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of each task: as files for the stage, and in the form of lm-eval's own sets for bare."""
    chosen = {}
    for name, path in suites.files(data, list(TASKS)).items():
        lines = path.read_text(encoding="utf-8").split("\n")
        raw = [json.loads(line) for line in lines if line.strip()]
        wanted = max(2, round(count * TASKS[name]))
        rows = items.pick(benchmarks.load(name, path), "item_id", wanted, seed)
        ids = {row["item_id"] for row in rows}
        target = folder / "files" / name / "test.jsonl"
        target.parent.mkdir(parents=True)
        kept = [row for row in raw if str(row.get("id", row.get("key"))) in ids]
        target.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
        bare = folder / "bare" / f"{name}.jsonl"
        bare.parent.mkdir(exist_ok=True)
        bare.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        chosen[name] = rows
    return chosen


def bare(folder: Path, model: Path, out: Path) -> tuple[float, dict[str, float]]:
    """Run lm-eval's command; its wall time and score by measure."""
    official = {name: benchmarks.LOCAL[name] for name in TASKS}
    group = {
        "group": "bare",
        "task": [
            {
                "task": one.tasks[0],
                "dataset_path": "json",
                "dataset_name": None,
                "dataset_kwargs": {"data_files": {one.split: str(folder / "bare" / f"{name}.jsonl")}},
                "training_split": None,
                "fewshot_split": None,
                **({} if one.split == "validation" else {"validation_split": None}),
            }
            for name, one in official.items()
        ],
    }
    (folder / "include").mkdir(exist_ok=True)
    (folder / "include/bare.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
    command = [sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args"]
    command += [f"pretrained={model},dtype=float32", "--tasks", "bare", "--include_path", str(folder / "include")]
    command += [
        "--apply_chat_template",
        "--fewshot_as_multiturn",
        "true",
        "--batch_size",
        str(BATCH),
        "--device",
        "cpu",
    ]
    wall = timed([*command, "--output_path", str(out), "--log_samples"], folder)
    (found,) = out.rglob("results_*.json")
    results = json.loads(found.read_text(encoding="utf-8"))["results"]
    return wall, {name: results[one.tasks[0]][METRICS[name]] for name, one in official.items()}


def ours(
    folder: Path, model: Path, tasks: Sequence[str] = tuple(TASKS), backend: str = "hf"
) -> tuple[float, dict[str, float], dict[tuple[str, str], Any]]:
    """Run stage evaluate in a folder of its own; its wall time, score by measure and value by item."""
    raw = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    raw["evaluate"] |= {"suite": "local", "data_dir": str(folder / "files"), "tasks": list(tasks)}
    raw["evaluate"] |= {"items": None, "domain_sets": {}, "backend": backend, "batch_size": BATCH}
    project = folder / "project"
    for name in ("anamnesis", "stages"):
        (project / name).parent.mkdir(exist_ok=True)
        if not (project / name).exists():
            (project / name).symlink_to(ROOT / name)
    (project / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False), encoding="utf-8")
    place = project / "models/pretrained" / raw["target"]
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        place.symlink_to(model)
    timed([sys.executable, "-m", "stages.suite"], project)
    wall = timed([sys.executable, "-m", "stages.evaluate", "base"], project)
    metrics = json.loads((project / "metrics/eval/base.json").read_text(encoding="utf-8"))
    rows = records.read(project / "data/samples/base.parquet", records.SAMPLES)
    values = {(row["measure"], row["item_id"]): (row["value"], row["output"]) for row in rows}
    return wall, {name: metrics[name] for name in tasks}, values


def backends(folder: Path, model: Path, turns: int) -> dict[str, Any]:
    """Backend hf and backend vllm on the same rows: seconds of the best turn, and how many items come out otherwise."""
    figures: dict[str, Any] = {}
    for kind, tasks in {"choice": ("medqa", "arc_challenge", "hellaswag"), "text": ("gsm8k",)}.items():
        found = {
            backend: min((ours(folder, model, tasks, backend) for _ in range(turns)), key=lambda one: one[0])
            for backend in ("hf", "vllm")
        }
        hf, vllm = found["hf"], found["vllm"]
        figures[f"{kind}_items"] = len(hf[2])
        figures[f"{kind}_seconds_hf"], figures[f"{kind}_seconds_vllm"] = hf[0], vllm[0]
        figures[f"{kind}_other_value"] = sum(hf[2][item][0] != vllm[2][item][0] for item in hf[2])
        figures[f"{kind}_other_answer"] = sum(hf[2][item][1] != vllm[2][item][1] for item in hf[2])
    return figures


def main() -> None:
    """Measure both in turns and print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--items", type=int, default=100)
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--backends", action="store_true")
    parser.add_argument("--data", default=os.environ.get("SHARED_DATA", str(ROOT.parent / "shared/data")))
    given = parser.parse_args()
    params = settings.load()
    model = (Path("models/pretrained") / params.target).resolve()
    walls: dict[str, list[float]] = {"ours": [], "bare": []}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rows = write_rows(Path(given.data), folder, given.items, params.seed)
        if given.backends:
            finish(backends(folder, model, given.turns))
            return
        for turn in range(given.turns):
            wall, mine, _ = ours(folder, model)
            walls["ours"].append(wall)
            wall, theirs = bare(folder, model, folder / f"out{turn}")
            walls["bare"].append(wall)
    seconds = {way: min(each) for way, each in walls.items()}
    table = [(name, len(rows[name]), mine[name], theirs[name]) for name in TASKS]
    tell("scores on the same rows", ["task", "items", "stage", "bare lm-eval"], table)
    finish(
        {
            "items": sum(map(len, rows.values())),
            "identical": all(abs(mine[name] - theirs[name]) < 1e-6 for name in TASKS),
            "seconds_ours": seconds["ours"],
            "seconds_bare": seconds["bare"],
            "ratio_bare": seconds["ours"] / seconds["bare"],
        }
    )


if __name__ == "__main__":
    main()
