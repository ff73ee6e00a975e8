"""Training killed by SIGKILL at seeded moments: the bytes of a run that was left alone, whenever that was."""

import contextlib
import queue
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from trainings import CURVE, change, deterministic, rows_of, stage, wait_for

from anamnesis import records
from anamnesis.cards import sha256_of
from anamnesis.hardware import cores

SEEDS = 10
STAGES = (0, 1, 2, 3)


def another(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy of a project's folder with other settings of section train."""
    shutil.copytree(folder, to, symlinks=True)
    change(to, **settings)
    return to


def run(folder: Path, core: int | None = None, kill: tuple[int, float] | None = None) -> tuple[int, str]:
    """Stage train, on one core if it is named: its exit code and what it said.

    `kill`: once the curve has so many steps, and so many seconds later, the stage and its ranks are killed.
    """
    process = stage(folder, alone=True, cores=() if core is None else (core,))
    if kill:
        steps, delay = kill
        wait_for(process, folder, steps)
        time.sleep(delay)
        for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):  # a helper of the stage that has just ended
                one.kill()
    _, err = process.communicate()
    return process.returncode, err


def result(folder: Path) -> tuple[dict[str, str], list[list[str]]]:
    """The sha256 of each file that the stage wrote, and the curve without its times."""
    tuned = folder / "models/tuned/committee"
    return {file.name: sha256_of(file) for file in sorted(tuned.iterdir())}, deterministic(folder / CURVE)


@pytest.mark.slow
def test_ten_kills_of_a_small_model(training_project: Callable[..., Path], tmp_path: Path) -> None:
    """A checkpoint after every step, so that many a kill falls into one; every ZeRO stage. Each core has its runs."""
    base = training_project(global_batch=2, checkpoint_minutes=0)
    free: queue.SimpleQueue[int] = queue.SimpleQueue()
    for core in cores():
        free.put(core)
    mine = threading.local()

    def take_a_core() -> None:
        mine.core = free.get()

    def left_alone(zero: int) -> tuple[dict[str, str], list[list[str]]]:
        folder = another(base, tmp_path / f"zero{zero}", zero=zero)
        code, err = run(folder, mine.core)
        assert code == 0, err[-3000:]
        return result(folder)

    def killed(seed: int) -> bool:
        """Whether the second run had something to go on from."""
        zero, draw = STAGES[seed % len(STAGES)], random.Random(seed)
        wanted = references[zero]
        folder = another(base, tmp_path / f"seed{seed}", zero=zero)
        step, delay = draw.randint(1, len(wanted[1]) - 4), draw.uniform(0, 0.2)
        code, err = run(folder, mine.core, kill=(step, delay))
        assert code == -signal.SIGKILL, err[-3000:]
        there = (folder / "checkpoints/committee/latest.json").exists()
        code, err = run(folder, mine.core)
        assert code == 0, err[-3000:]
        assert ("resumed" in err) == there
        assert result(folder) == wanted, f"seed {seed}: killed {delay:.3f} s after step {step}"
        assert not (folder / "checkpoints/committee").exists()
        return there

    with ThreadPoolExecutor(len(cores()), initializer=take_a_core) as pool:
        references = dict(zip(STAGES, pool.map(left_alone, STAGES), strict=True))
        resumed = list(pool.map(killed, range(SEEDS)))
    assert sum(resumed) >= SEEDS // 2


@pytest.mark.slow
def test_a_kill_of_smollm2_under_zero_3_in_two_processes(
    project: Callable[..., Path], default_params: dict[str, Any], smollm2_dir: Path, tmp_path: Path
) -> None:
    default_params["train"] |= {"learning_rate": 1e-4, "epochs": 1, "sequence_length": 96, "global_batch": 2}
    default_params["train"] |= {"precision": "fp32", "zero": 3, "processes": 2, "checkpoint_minutes": 0}
    base = project(default_params, smollm2=smollm2_dir)
    records.write(base / "data/mixed/committee.parquet", rows_of(12), records.MIXED, ["row_id"])
    alone = another(base, tmp_path / "alone", checkpoint_minutes=60)
    code, err = run(alone)
    assert code == 0, err[-3000:]
    wanted = result(alone)
    steps = len(wanted[1]) - 1
    assert steps > 4
    step, delay = random.randint(2, steps - 2), random.uniform(0, 2)
    code, err = run(base, kill=(step, delay))
    assert code == -signal.SIGKILL, err[-3000:]
    code, err = run(base)
    assert code == 0, err[-3000:]
    assert "resumed" in err
    assert result(base) == wanted, f"killed {delay:.2f} s after step {step}"
