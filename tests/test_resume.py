"""`make repro PRESET=…` after a kill: the same command goes on from the stage that was cut off. A toy with real DVC."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DVC_YAML = """
stages:
  train:
    matrix: {variant: "${variants}"}
    cmd: python step.py ${item.variant} models/tuned/${item.variant}
    deps: [step.py]
    outs: ["models/tuned/${item.variant}"]
  train-seed:
    matrix: {variant: "${train.seeded}", seed: "${train.seeds}"}
    cmd: python step.py ${item.variant} models/reseeded/${item.variant}-${item.seed}
    deps: ["models/tuned/${item.variant}"]
    outs: ["models/reseeded/${item.variant}-${item.seed}"]
  interpolate:
    foreach: ${interpolations}
    do:
      cmd: python step.py ${key} models/interpolated/${key}
      deps: ["models/tuned/${item.variant}"]
      params: ["interpolations.${key}"]
      outs: ["models/interpolated/${key}"]
"""
STEP = """
import sys, time
from pathlib import Path
name, out = sys.argv[1:]
with open("ran.txt", "a") as ran:
    print(out, file=ran)
time.sleep(0.3)
Path(out).parent.mkdir(parents=True, exist_ok=True)
Path(out).write_text(name)
"""
PARAMS = """
variants: {one: {}, two: {}}
train: {seeds: [%s], seeded: [%s]}
interpolations: {%s}
"""
DEFAULT = PARAMS % ("", "", "")
PRESET = PARAMS % ("3, 5", "two", "half: {variant: one, alpha: 0.5}")
OUTPUTS = [
    "models/tuned/one",
    "models/tuned/two",
    "models/reseeded/two-3",
    "models/reseeded/two-5",
    "models/interpolated/half",
]


@pytest.fixture
def toy(tmp_path: Path) -> Path:
    """The Makefile's recipe for repro around a pipeline whose stages write a word; `make` itself makes no .venv."""
    folder = tmp_path / "toy"
    (folder / "presets").mkdir(parents=True)
    (folder / "scripts").mkdir()
    for name in ("preset.sh", "mend.py"):
        shutil.copy(ROOT / "scripts" / name, folder / "scripts" / name)
    (folder / "dvc.yaml").write_text(DVC_YAML, encoding="utf-8")
    (folder / "step.py").write_text(STEP, encoding="utf-8")
    (folder / "params.yaml").write_text(DEFAULT, encoding="utf-8")
    (folder / "presets/many.yaml").write_text(PRESET, encoding="utf-8")
    (folder / ".gitignore").write_text("models\nran.txt\n*.partial\n", encoding="utf-8")
    environment = os.environ | {"HOME": str(tmp_path)}
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.com"]
    for command in (
        ["git", "init", "-q"],
        [sys.executable, "-m", "dvc", "init", "-q"],
        ["git", "add", "-A"],
        ["git", *identity, "commit", "-q", "-m", "start"],
    ):
        subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return folder


def repro(folder: Path, **kwargs: object) -> subprocess.Popen[str]:
    """What `make repro PRESET=presets/many.yaml` runs, in a process group of its own."""
    python = str(Path(sys.executable).parent)
    environment = os.environ | {"HOME": str(folder.parent), "PATH": f"{python}:{os.environ['PATH']}"}
    return subprocess.Popen(
        ["bash", "-c", "scripts/preset.sh presets/many.yaml && python scripts/mend.py && python -m dvc repro"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ran(folder: Path) -> list[str]:
    file = folder / "ran.txt"
    return file.read_text(encoding="utf-8").split() if file.exists() else []


@pytest.mark.slow
@pytest.mark.parametrize("stages", [0, 1, 3, 5])
def test_killed_after_some_stages_and_called_again(stages: int, toy: Path) -> None:
    """All of it is killed at once with -9 while stage `stages` runs; then every stage is there, and none ran twice but
    the one that was cut off."""
    process = repro(toy)
    deadline = time.monotonic() + 60
    while len(ran(toy)) < stages and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.5))
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = ran(toy)

    again = repro(toy)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert "would be lost" not in said
    after = ran(toy)
    assert after[: len(before)] == before
    assert sorted(set(after)) == sorted(OUTPUTS)
    assert len(after) <= len(OUTPUTS) + 2, f"more than the stages that were cut off ran twice: {after}"
    assert (toy / "params.yaml").read_text(encoding="utf-8") == PRESET
    assert [(toy / path).read_text(encoding="utf-8") for path in OUTPUTS] == ["one", "two", "two", "two", "half"]

    third = repro(toy)
    said, _ = third.communicate()
    assert third.returncode == 0
    assert ran(toy) == after, "a run that was complete runs nothing again"


def test_what_a_kill_leaves_of_dvc_s_own_files_is_mended(toy: Path) -> None:
    """Cut off in the moment of writing, which the test above meets by chance: DVC alone would fail for good."""
    process = repro(toy)
    process.communicate()
    assert process.returncode == 0
    complete = ran(toy)
    whole = (toy / "dvc.lock").read_text(encoding="utf-8")
    for path, text in ((".dvc/tmp/rwlock", ""), (".dvc/tmp/rwlock", '{"/a": {'), ("dvc.lock", whole[:5] + "\n -")):
        (toy / path).write_text(text, encoding="utf-8")
        again = repro(toy)
        said, _ = again.communicate()
        assert again.returncode == 0, said
        assert f"mend: {path} was cut off by a kill" in said
        assert ran(toy) == complete, "ended stages come back from the run cache"
    assert (toy / "dvc.lock").read_text(encoding="utf-8") == whole


def test_whole_files_are_left_alone(toy: Path) -> None:
    process = repro(toy)
    said, _ = process.communicate()
    assert "mend:" not in said
    (toy / ".dvc/tmp/rwlock").write_text("{}", encoding="utf-8")
    again = repro(toy)
    said, _ = again.communicate()
    assert again.returncode == 0
    assert "mend:" not in said
