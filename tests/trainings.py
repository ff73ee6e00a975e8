"""Runs of stage train in a folder of their own: rows, starting one, killing one, what it wrote."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from anamnesis import training

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


def stage(folder: Path, *arguments: str, **kwargs: Any) -> subprocess.Popen[str]:
    """Stage train, started: of variant committee where nothing else is said."""
    env = os.environ | {"PYTHONPATH": str(folder)} | kwargs.pop("env", {})
    command = [sys.executable, "-m", "stages.train", *(arguments or ["committee"])]
    return subprocess.Popen(command, cwd=folder, env=env, stderr=subprocess.PIPE, text=True, **kwargs)


def finished(folder: Path, *arguments: str, code: int = 0, **kwargs: Any) -> str:
    """What stage train says until it ends with `code`."""
    process = stage(folder, *arguments, **kwargs)
    _, err = process.communicate()
    assert process.returncode == code, err[-3000:]
    return err


def signalled(folder: Path, after: int, number: signal.Signals, *arguments: str) -> tuple[int, str]:
    """Stage train, with a signal once the curve has `after` steps: its exit code and what it said.

    SIGKILL goes to the whole process group, as when a machine ends; any other to the stage alone.
    """
    curve = folder / "metrics/train/committee.csv"
    curve.unlink(missing_ok=True)
    process = stage(folder, *arguments, start_new_session=True)
    while process.poll() is None and not (curve.exists() and len(curve.read_text().splitlines()) > after):
        time.sleep(0.002)
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


def losses(folder: Path) -> list[float]:
    """The loss of each step, from the CSV."""
    return [float(line[1]) for line in deterministic(folder / "metrics/train/committee.csv")[1:]]
