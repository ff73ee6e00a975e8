"""Checkpoints: SIGTERM, another number of processes, a damaged one, a full disk."""

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from trainings import change, deterministic, finished, losses, signalled, stage, written

from anamnesis import ranks, training
from anamnesis.checkpoints import Preemption, room_for
from anamnesis.errors import ENDED, PREEMPTED, UserError
from anamnesis.sections import Train

HOSTS = "# two machines\nnode-a slots=2\nnode-b slots=2\n"


# --- without a run ---


def test_sigterm_is_a_wish_as_long_as_the_block_lasts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Preemption() as preemption:
        assert not preemption.asked
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert preemption.asked
    assert signal.getsignal(signal.SIGTERM) is before


FULL_DISKS = {
    "python": "open('/dev/full', 'wb').write(b'0' * 100_000)",
    "torch": "import torch; torch.save(torch.zeros(10_000), '/dev/full')",
    "safetensors": "import torch; from safetensors.torch import save_file; save_file({'a': torch.zeros(10_000)}, FILE)",
}


@pytest.mark.parametrize("writer", FULL_DISKS)
def test_a_full_disk_is_told_from_other_errors(writer: str, tmp_path: Path) -> None:
    """Each library words it in its own way: the words of the ones that are installed are tried."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    script = f"""
from anamnesis.checkpoints import room_for
from anamnesis.errors import UserError
FILE = {str(tmp_path / "f")!r}
try:
    with room_for("here"):
        {FULL_DISKS[writer]}
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        cwd=training.__file__[:-22],
        preexec_fn=limit,
    )
    assert done.stdout == "here: the disk is full; make room and run again\n", done.stderr


def test_another_error_is_left_as_it_is() -> None:
    with pytest.raises(RuntimeError, match="sizes differ"), room_for("here"):
        raise RuntimeError("sizes differ")
    with pytest.raises(OSError, match="denied"), room_for("here"):
        raise PermissionError(13, "denied")


IMPOSSIBLE = [
    ({"offload": "optimizer"}, "offload: optimizer needs zero: 1 or more, and zero is 0"),
    ({"offload": "all", "zero": 2}, "offload: all needs zero: 3 or more, and zero is 2"),
    ({"hostfile": "hosts"}, "`hostfile` is read by launch: deepspeed only, and launch is auto"),
    ({"attention": "flash_attention_2", "precision": "fp32"}, "flash_attention_2 computes in bf16 only"),
]


@pytest.mark.parametrize(("settings", "words"), IMPOSSIBLE)
def test_settings_that_contradict_each_other(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Train(learning_rate=1e-4, **settings)


def test_flash_attention_is_asked_for_where_it_is_not() -> None:
    settings = Train(learning_rate=1e-4, attention="flash_attention_2")
    with pytest.raises(UserError, match="needs a GPU and the package flash-attn"):
        training.attention_of(settings, "cpu")
    assert training.attention_of(Train(learning_rate=1e-4), "cpu") == "sdpa"


def test_a_hostfile(tmp_path: Path) -> None:
    file = tmp_path / "hosts"
    file.write_text(HOSTS)
    settings = Train(learning_rate=1e-4, launch="deepspeed", hostfile=str(file), processes=2)
    assert ranks.hosts_of(settings.model_copy(update={"processes": 4})) == {"node-a": 2, "node-b": 2}
    with pytest.raises(UserError, match=r"train.processes is 2 and .*hosts has 4 slots; make them equal"):
        ranks.launch(settings, "stages.train", ["committee"])
    file.write_text("node-a: 2\n")
    with pytest.raises(UserError, match="a line is <host> slots=<processes>"):
        ranks.hosts_of(settings)
    file.unlink()
    with pytest.raises(UserError, match=r"no file .*hosts; write a line <host> slots=<processes> for each machine"):
        ranks.hosts_of(settings)
    assert ranks.hosts_of(Train(learning_rate=1e-4)) == {}


# --- runs ---


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"zero": 2, "processes": 2},
        {"zero": 2, "processes": 2, "launch": "deepspeed"},
    ],
    ids=["alone", "torchrun", "deepspeed"],
)
def test_sigterm_saves_and_ends_with_a_code_of_its_own(
    settings: dict[str, Any], training_project: Callable[..., Path]
) -> None:
    folder = training_project(global_batch=2, checkpoint_minutes=60, **settings)
    finished(folder)
    wanted, curve = written(folder), deterministic(folder / "metrics/train/committee.csv")
    code, err = signalled(folder, 3, signal.SIGTERM)
    assert code == PREEMPTED, err[-3000:]
    step = int(err.split("ended by SIGTERM after step ")[1].split(";")[0])
    assert 3 <= step < len(curve) - 1
    assert "Traceback" not in err
    err = finished(folder)
    assert f"step-{step:06d}: resumed" in err
    assert written(folder) == wanted
    assert deterministic(folder / "metrics/train/committee.csv") == curve


@pytest.mark.slow
def test_before_the_first_step_sigterm_ends_without_a_checkpoint(training_project: Callable[..., Path]) -> None:
    folder = training_project(global_batch=2)
    process = stage(folder)
    assert process.stderr is not None
    said = ""
    while "trained on" not in said:
        said += process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == ENDED
    assert not list((folder / "checkpoints").glob("*/step-*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("zero", "precision", "first", "then", "tuning"),
    [
        (0, "fp32", 1, 2, "full"),
        (1, "fp32", 2, 1, "full"),
        (2, "fp32", 1, 2, "full"),
        (2, "bf16", 2, 1, "full"),
        (3, "fp32", 2, 1, "full"),
        (3, "bf16", 1, 2, "full"),
        (2, "fp32", 2, 1, "lora"),
        (3, "fp32", 1, 2, "lora"),
    ],
)
def test_another_number_of_processes_goes_on(
    zero: int, precision: str, first: int, then: int, tuning: str, training_project: Callable[..., Path]
) -> None:
    """The losses of a run that was never interrupted, to what the order of additions leaves."""
    settings = {"global_batch": 2, "epochs": 3, "checkpoint_minutes": 0, "weight_decay": 5.0}
    folder = training_project(tuning, zero=zero, precision=precision, processes=first, **settings)
    finished(folder)
    wanted = losses(folder)
    code, _ = signalled(folder, 3, signal.SIGKILL)
    assert code == -signal.SIGKILL
    change(folder, processes=then)
    err = finished(folder)
    assert f"written by {first} processes; going on with {then}" in err
    assert "resumed" in err
    assert losses(folder) == pytest.approx(wanted, abs=1e-5 if precision == "fp32" else 2e-3)


@pytest.mark.slow
def test_what_can_not_be_divided_anew_is_refused_in_one_line(training_project: Callable[..., Path]) -> None:
    """L2-SP's start is in the optimiser's state, which DeepSpeed's universal checkpoints don't take along."""
    folder = training_project({"method": "l2-sp"}, global_batch=2, epochs=3, checkpoint_minutes=0, zero=2, processes=2)
    signalled(folder, 3, signal.SIGKILL)
    change(folder, processes=1)
    err = finished(folder, code=2)
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert len(lines) == 1
    assert "written by 2 processes, and can't be divided among 1 (its optimiser has more states" in lines[0]
    assert "run with 2 again, or delete" in lines[0]
    change(folder, processes=2)
    assert "resumed" in finished(folder), "nothing was lost by the attempt"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_not_the_last(training_project: Callable[..., Path]) -> None:
    folder = training_project(global_batch=2, checkpoint_minutes=0)
    finished(folder)
    wanted = written(folder)
    signalled(folder, 5, signal.SIGTERM)  # so that two are whole: while a third is written there may be one
    latest = json.loads((folder / "checkpoints/committee/latest.json").read_text(encoding="utf-8"))
    newest, older = latest["checkpoints"]
    file = next((folder / "checkpoints/committee" / newest).glob("*.pt"))
    file.write_bytes(file.read_bytes()[:1000])
    err = finished(folder)
    assert f"{newest}: not whole; going back to {older}" in err
    assert f"{older}: resumed" in err
    assert written(folder) == wanted


@pytest.mark.slow
def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(
    training_project: Callable[..., Path], tmp_path: Path
) -> None:
    """A disk of its own, with room for two checkpoints and no third."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small disk")
    try:
        folder = training_project(global_batch=2, checkpoint_minutes=0)
        finished(folder)
        wanted = written(folder)
        env = {"ANAMNESIS_CHECKPOINTS": str(disk)}
        size = 0
        process = stage(folder, env=env, alone=True)
        while not (disk / "committee/latest.json").exists():
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        one = next((disk / "committee").glob("step-*"))
        size = sum(file.stat().st_size for file in one.rglob("*"))
        filler = disk / "filler"
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize
        filler.write_bytes(bytes(max(0, free - size // 2)))
        err = finished(folder, code=2, env=env)
        lines = [line for line in err.splitlines() if line.startswith("error:")]
        assert len(lines) == 1
        assert "is not written; the one before it, step-" in lines[0]
        assert "the disk is full" in lines[0]
        assert "Traceback" not in err
        filler.unlink()
        assert "resumed" in finished(folder, env=env)
        assert written(folder) == wanted
    finally:
        subprocess.run(["umount", disk], check=False)
