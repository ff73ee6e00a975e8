"""Who starts the ranks: torchrun's agent, DeepSpeed's launcher, two launcher groups as on two machines."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from trainings import change, finished, losses, stage, written

from anamnesis.hardware import free_port

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
def test_every_launcher_gives_the_same_bytes(training_project: Callable[..., Path]) -> None:
    """torchrun's agent, DeepSpeed's launcher on this machine, and its two groups for the two machines of a hostfile."""
    folder = training_project(global_batch=4, zero=2, processes=2)
    finished(folder)
    wanted, curve = written(folder), losses(folder)

    change(folder, launch="deepspeed")
    err = finished(folder)
    assert err.count("rows truncated") == 1
    assert written(folder) == wanted

    (folder / "hosts").write_text("first slots=1\nsecond slots=1\n", encoding="utf-8")
    command = [sys.executable, "-m", "deepspeed.launcher.runner", "--hostfile", "hosts", "--no_ssh"]
    command += ["--master_addr", "127.0.0.1", "--master_port", str(free_port()), "--no_local_rank", "--module"]
    # As on machines with as many cores: other numbers of threads add in another order.
    env = os.environ | {"PYTHONPATH": str(folder), "LOCAL_WORLD_SIZE": "2"}
    groups = [
        subprocess.Popen(
            [*command, "--node_rank", str(rank), "stages.train", "committee"],
            cwd=folder,
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    said = [group.communicate()[1] for group in groups]
    assert [group.returncode for group in groups] == [0, 0], said[0][-2000:] + said[1][-2000:]
    assert sum(words.count("rows truncated") for words in said) == 1, "rank 0 of all speaks"
    assert losses(folder) == curve
    assert written(folder) == wanted


def ranks_below(process: psutil.Process) -> list[psutil.Process]:
    found: list[psutil.Process] = []
    for child in process.children(recursive=True):
        try:
            if child.environ().get("RANK") and "stages.train" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
@pytest.mark.parametrize("launch", ["torchrun", "deepspeed"])
def test_ranks_end_with_the_stage_that_is_killed(launch: str, training_project: Callable[..., Path]) -> None:
    """kill -9 of the stage alone: its ranks are in other sessions, and must not train on beside the next run's."""
    folder = training_project(global_batch=4, zero=1, processes=2, launch=launch)
    curve = folder / "metrics/train/committee.csv"
    process = stage(folder, alone=True)
    while process.poll() is None and not curve.exists():
        time.sleep(0.01)
    started = ranks_below(psutil.Process(process.pid))
    assert len(started) == 2
    process.send_signal(signal.SIGKILL)
    process.communicate()
    _, alive = psutil.wait_procs(started, timeout=30)
    assert not alive


ALONE = """
import sys
import torch
from anamnesis import errors, ranks

def main():
    with ranks.process_group() as joined:
        torch.distributed.barrier()
        if str(joined.rank) in sys.argv[1]:
            raise errors.UserError("the disk of this one is full")
        torch.distributed.barrier()

errors.run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("who", ["0", "1", "01"])
def test_a_mistake_of_one_rank_is_one_line_and_no_traceback(who: str, tmp_path: Path) -> None:
    """Of rank 0 alone, of another one alone, of all of them."""
    script = tmp_path / "alone.py"
    script.write_text(ALONE, encoding="utf-8")
    launcher = "import sys; from anamnesis import ranks; ranks.launch_by_torchrun(2, sys.argv[1:])"
    command = [sys.executable, "-c", launcher, str(script), who]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if "full" in line]
    assert told == [
        "error: rank 1: the disk of this one is full" if who == "1" else "error: the disk of this one is full"
    ]
    assert "Traceback" not in done.stderr
    assert "interrupted" not in done.stderr


@pytest.mark.slow
def test_a_mistake_under_deepspeeds_launcher_has_its_exit_code_and_one_line(
    training_project: Callable[..., Path],
) -> None:
    settings: dict[str, Any] = {"global_batch": 4, "processes": 2, "sequence_length": 32, "launch": "deepspeed"}
    err = finished(training_project(**settings), code=2)
    errors = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1
    assert "raise train.sequence_length" in errors[0]
    assert "Traceback" not in err
