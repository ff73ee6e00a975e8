"""Runs of stage train in a folder of their own: rows, starting one, killing one, what it wrote."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from warm import Stage

from anamnesis import training

ROOT = Path(__file__).resolve().parent.parent
CURVE = Path("metrics/train/committee.csv")
WORDS = "green heron water stands still and looks for small fish under leaves while the river goes by".split()


def rows_of(count: int) -> list[dict[str, Any]]:
    """Conversations of different lengths from two sources."""
    rows = []
    for index in range(count):
        draw = random.Random(index)
        rows.append(
            {
                "row_id": f"row-{index:03d}",
                "messages": [
                    {"role": "user", "content": " ".join(draw.choices(WORDS, k=draw.randint(3, 15)))},
                    {"role": "assistant", "content": " ".join(draw.choices(WORDS, k=draw.randint(1, 40)))},
                ],
                "source": "domain" if index % 3 == 0 else "reconstructed",
                "member": None,
                "licence": "none",
                "tokens": 0,
            }
        )
    return rows


def change(folder: Path, **settings: Any) -> None:
    """Set keys of section train in the folder's params.yaml."""
    file = folder / "params.yaml"
    params = yaml.safe_load(file.read_text(encoding="utf-8"))
    params["train"] |= settings
    file.write_text(yaml.safe_dump(params, sort_keys=False), encoding="utf-8")


def stage(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, alone: bool = False, cores: Iterable[int] = ()
) -> Stage:
    """Stage train, started: of variant committee where nothing else is said; `alone` in a session of its own.

    `cores`: those it may use, where not all.
    """
    env = os.environ | {"PYTHONPATH": str(folder)} | dict(env or {})
    return Stage("stages.train", arguments or ["committee"], folder, env, alone, cores)


def finished(folder: Path, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
    """What stage train says until it ends with `code`."""
    process = stage(folder, *arguments, env=env)
    _, err = process.communicate()
    assert process.returncode == code, err[-3000:]
    return err


def steps_in(folder: Path) -> int:
    """Steps in the curve so far."""
    if not (folder / CURVE).exists():
        return 0
    return len((folder / CURVE).read_text(encoding="utf-8").splitlines()) - 1


def wait_for(process: Stage, folder: Path, steps: int) -> None:
    """Until the curve has so many steps, or the stage has ended."""
    while process.poll() is None and steps_in(folder) < steps:
        time.sleep(0.002)


def signalled(folder: Path, after: int, number: signal.Signals, *arguments: str) -> tuple[int, str]:
    """Stage train, with a signal once the curve has `after` steps: its exit code and what it said.

    SIGKILL goes to the whole process group, as when a machine ends; any other to the stage alone.
    """
    (folder / CURVE).unlink(missing_ok=True)
    process = stage(folder, *arguments, alone=True)
    wait_for(process, folder, after)
    assert process.poll() is None, f"it had ended before step {after}"
    if number == signal.SIGKILL:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    _, err = process.communicate()
    time.sleep(2)  # ranks in sessions of their own see within half a second that it is gone
    return process.returncode, err


def written(folder: Path) -> dict[str, bytes]:
    """The files of the trained model, by name."""
    return {file.name: file.read_bytes() for file in (folder / "models/tuned/committee").iterdir()}


def deterministic(curve: Path) -> list[list[str]]:
    """The CSV without its last column, tokens_per_s."""
    with curve.open(encoding="utf-8", newline="") as file:
        lines = list(csv.reader(file))
    assert lines[0] == list(training.COLUMNS)
    return [line[:-1] for line in lines]


def run_steps(
    model: Path, configs: Sequence[Any], tuning: Any = None, launched: bool = False, rows: int = 14
) -> list[dict[str, Any]]:
    """What tests/steps.py says of each of `configs`, with one `tuning` or in pairs; `launched`: in two processes."""
    pairs = [[tuning, config] for config in configs] if tuning else configs
    arguments = [str(Path(__file__).with_name("steps.py")), json.dumps([str(model), rows_of(rows), pairs])]
    launcher = "import sys; from anamnesis import ranks; ranks.launch_by_torchrun(2, sys.argv[1:])"
    with tempfile.TemporaryDirectory() as extensions:
        env = os.environ | {"PYTHONPATH": str(ROOT), "TORCH_EXTENSIONS_DIR": extensions}
        command = [sys.executable, *(["-c", launcher] if launched else []), *arguments]
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        assert not list(Path(extensions).iterdir()), "DeepSpeed compiled something"
    return list(json.loads(done.stdout.splitlines()[-1]))


def same_weights(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    """`tolerance`: of a tensor's norm."""
    assert one["weights"].keys() == other["weights"].keys()
    for name, (norm, waves) in one["weights"].items():
        assert other["weights"][name] == pytest.approx([norm, waves], abs=tolerance * norm), name


def losses(folder: Path) -> list[float]:
    """The loss of each step, from the CSV."""
    return [float(line[1]) for line in deterministic(folder / CURVE)[1:]]
