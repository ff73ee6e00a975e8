"""Live metrics: what the trackers wrote, read back with their own readers, is the CSV; a killed run goes on as one."""

import importlib.util
import json
import os
import random
import resource
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from anamnesis import trackers
from anamnesis.errors import UserError
from anamnesis.sections import Train
from anamnesis.trackers import Trackers

ROOT = Path(__file__).resolve().parent.parent
NAMES = list(trackers.PACKAGES)
SETTINGS = {"variant": "committee", "seed": 17, "train": {"learning_rate": 1e-4, "schedule": "cosine"}}
Run = dict[int, dict[str, float]]  # what was logged, by step


def row_of(step: int) -> dict[str, Any]:
    """A row as training writes it."""
    return {
        "step": step,
        "loss": round(3 / step, 6),
        "learning_rate": 1e-4 * step,
        "grad_norm": 0.5 + step,
        "supervised_tokens": 100 * step,
        "tokens_per_s": 31.4,
    }


def values_of(steps: int) -> Run:
    rows = [row_of(step) for step in range(1, steps + 1)]
    return {row["step"]: {key: float(value) for key, value in row.items() if key != "step"} for row in rows}


@pytest.fixture(autouse=True)
def nobody_elses_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(("WANDB_", "MLFLOW_")):
            monkeypatch.delenv(name)
    monkeypatch.delitem(sys.modules, "openai", raising=False)  # of another test; wandb would advertise where it sees it


def is_there(name: str) -> bool:
    return all(importlib.util.find_spec(module) for module in trackers.PACKAGES[name])


def needs(*names: str) -> Any:
    missing = [name for name in names if not is_there(name)]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


each = pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in NAMES])


# --- reading back, each with its package's own reader; all runs by name of their folder or id ---


def read_tensorboard(folder: Path) -> dict[str, Run]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[str, Run] = {}
    for place in sorted((folder / "tensorboard").iterdir()):
        events = EventAccumulator(str(place), size_guidance={"scalars": 0}).Reload()
        run: Run = {}
        for tag in events.Tags()["scalars"]:
            for point in events.Scalars(tag):
                assert tag not in run.setdefault(point.step, {}), f"step {point.step} is there twice"
                run[point.step][tag] = pytest.approx(point.value, rel=1e-6)  # it keeps fp32
        found[place.name] = run
    return found


def wandb_records(file: Path) -> Iterator[Any]:
    """The records of a .wandb file: a log of LevelDB's form, 7 bytes first, in blocks of 32 KiB; each a protobuf."""
    from wandb.proto import wandb_internal_pb2

    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        part = data[at + 7 : at + 7 + length]
        whole = part if kind in (1, 2) else whole + part  # a whole record, or its first part
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(whole)
            yield record


def read_wandb(folder: Path) -> dict[str, Run]:
    found: dict[str, Run] = {}
    for file in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
        run: Run = {}
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                name = record.run.run_id
            if record.WhichOneof("record_type") == "history":
                items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
                step = int(items["_step"])
                assert step not in run, f"step {step} is there twice"
                run[step] = {key: value for key, value in items.items() if not key.startswith("_")}
        assert name not in found, "a run has two folders"
        found[name] = run
    return found


def mlflow_runs(folder: Path) -> tuple[Any, list[Any]]:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("anamnesis")
    return client, list(client.search_runs([experiment.experiment_id]))


def read_mlflow(folder: Path) -> dict[str, Run]:
    found: dict[str, Run] = {}
    client, runs = mlflow_runs(folder)
    for one in runs:
        run: Run = {}
        for key in one.data.metrics:
            for point in client.get_metric_history(one.info.run_id, key):
                assert key not in run.setdefault(point.step, {}), f"step {point.step} is there twice"
                run[point.step][key] = point.value
        found[one.data.tags["anamnesis_run"]] = run
    return found


READERS: dict[str, Callable[[Path], dict[str, Run]]] = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "mlflow": read_mlflow,
}


def log(folder: Path, names: list[str], steps: range, before: int = 0, key: str = "k") -> str:
    """Log steps of a run that had `before` of them in its checkpoint; returns its id."""
    rows = [row_of(step) for step in range(1, before + 1)]
    with Trackers(names, "committee", key, SETTINGS, rows, folder) as live:
        for step in steps:
            live.log(row_of(step))
    return live.run


@each
def test_what_is_read_back_are_the_rows(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = log(tmp_path / "logs", [name], range(1, 6))
    assert READERS[name](tmp_path / "logs") == {run: values_of(5)}
    assert capsys.readouterr().err == ""
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]


@needs("mlflow")
def test_mlflow_has_the_settings(tmp_path: Path) -> None:
    log(tmp_path, ["mlflow"], range(1, 2))
    _, (run,) = mlflow_runs(tmp_path)
    assert run.data.params == {
        "variant": "committee",
        "seed": "17",
        "train.learning_rate": "0.0001",
        "train.schedule": "cosine",
    }
    assert run.info.run_name == "committee"


@needs("wandb")
def test_wandb_has_the_settings(tmp_path: Path) -> None:
    log(tmp_path, ["wandb"], range(1, 2))
    (file,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    (run,) = [record.run for record in wandb_records(file) if record.WhichOneof("record_type") == "run"]
    config = {item.key: json.loads(item.value_json) for item in run.config.update if item.key != "_wandb"}
    assert config == SETTINGS
    assert (run.project, run.display_name) == ("anamnesis", "committee")


@needs("tensorboard")
def test_tensorboard_has_the_settings(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = log(tmp_path, ["tensorboard"], range(1, 2))
    events = EventAccumulator(str(tmp_path / "tensorboard" / run)).Reload()
    (text,) = events.Tensors("settings/text_summary")
    assert b"| train.learning_rate | 0.0001 |" in text.tensor_proto.string_val[0]


# --- runs that end early, and go on ---

KILLED = """
import os, signal, sys
from pathlib import Path
from tests.test_trackers import SETTINGS, row_of
from anamnesis.trackers import Trackers
names, folder, until = sys.argv[1].split(","), Path(sys.argv[2]), int(sys.argv[3])
with Trackers(names, "committee", "k", SETTINGS, [], folder) as live:
    for step in range(1, until + 1):
        live.log(row_of(step))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def killed(names: list[str], folder: Path, until: int) -> None:
    command = [sys.executable, "-c", KILLED, ",".join(names), str(folder), str(until)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr


@each
@pytest.mark.parametrize("before", [0, 3])
def test_a_killed_run_goes_on_as_the_same_and_no_step_is_there_twice(name: str, before: int, tmp_path: Path) -> None:
    """Its checkpoint is of step `before`; by the kill five steps had been logged."""
    killed([name], tmp_path, 5)
    first = json.loads((tmp_path / "trackers/committee.json").read_text(encoding="utf-8"))["run"]
    assert log(tmp_path, [name], range(before + 1, 9), before) == first
    assert READERS[name](tmp_path) == {first: values_of(8)}


@each
def test_a_run_from_the_start_is_another_one(name: str, tmp_path: Path) -> None:
    runs = [log(tmp_path, [name], range(1, 3)) for _ in range(2)]
    assert READERS[name](tmp_path) == {run: values_of(2) for run in runs}
    assert len(set(runs)) == 2


def test_which_runs_are_one(tmp_path: Path) -> None:
    def opened(key: str, before: int, error: type[BaseException] | None = None) -> str:
        rows = [row_of(step) for step in range(1, before + 1)]
        live = Trackers(["none"], "committee", key, SETTINGS, rows, tmp_path)
        live._try = lambda name, act: None  # type: ignore[method-assign]
        live.__enter__()
        live.__exit__(error, None, None)
        return live.run

    first = opened("k", 0, KeyboardInterrupt)
    assert opened("k", 0, KeyboardInterrupt) == first, "it was killed before its first checkpoint"
    assert opened("k", 4, RuntimeError) == first
    assert opened("k", 4) == first
    assert opened("k", 4) == first, "killed after its last step, with the last checkpoint still there"
    second = opened("k", 0, KeyboardInterrupt)
    assert second != first, "it had ended, and is run again"
    third = opened("other rows", 0, KeyboardInterrupt)
    assert third not in (first, second)
    (tmp_path / "trackers/committee.json").write_text("{")
    assert opened("other rows", 4) != third


@needs("mlflow")
@pytest.mark.parametrize(
    ("error", "status"),
    [(None, "FINISHED"), (RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED"), (SystemExit, "KILLED")],
)
def test_how_a_run_ended(error: type[BaseException] | None, status: str, tmp_path: Path) -> None:
    def run() -> None:
        with Trackers(["mlflow"], "committee", "k", SETTINGS, [], tmp_path) as live:
            live.log(row_of(1))
            if error:
                raise error

    if error:
        with pytest.raises(error):
            run()
    else:
        run()
    _, (found,) = mlflow_runs(tmp_path)
    assert found.info.status == status
    log(tmp_path, ["mlflow"], range(2, 3), before=1)
    assert {one.info.status for one in mlflow_runs(tmp_path)[1]} == {"FINISHED"}


# --- what fails, and what is missing ---


@needs("mlflow", "tensorboard")
def test_a_tracker_that_fails_says_so_once_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Trackers(["mlflow", "tensorboard"], "committee", "k", SETTINGS, [], tmp_path) as live:
        live.log(row_of(1))
        with sqlite3.connect(tmp_path / "mlflow.db") as database:
            database.execute("DROP TABLE metrics")
        for step in range(2, 5):
            live.log(row_of(step))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train: tracker mlflow: ")
    assert lines[0].endswith("; training goes on without it")
    assert read_tensorboard(tmp_path) == {live.run: values_of(4)}


FULL = """
import resource, signal, sys
from pathlib import Path
from tests.test_trackers import SETTINGS, row_of
from anamnesis.trackers import Trackers
with Trackers(["tensorboard"], "committee", "k", SETTINGS, [], Path(sys.argv[1])) as live:
    live.log(row_of(1))
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    for step in range(2, 200):
        live.log(row_of(step))
print("went on")
"""


@needs("tensorboard")
def test_a_disk_that_is_full(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path), "4096"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert done.stdout == "went on\n", done.stderr
    assert done.stderr == "train: tracker tensorboard: [Errno 27] File too large; training goes on without it\n"
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


ONLINE = """
import sys
from pathlib import Path
from tests.test_trackers import log
log(Path(sys.argv[1]), ["wandb"], range(1, 3))
print("went on")
"""


@needs("wandb")
def test_no_network(tmp_path: Path) -> None:
    """A key in the environment means online; where nobody answers, training goes on after a while, without it."""
    key = "".join(random.choices("0123456789abcdef", k=40))
    env = os.environ | {"WANDB_API_KEY": key, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "3"}
    command = [sys.executable, "-c", ONLINE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=False)
    assert done.stdout == "went on\n", done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("train: ")]
    assert len(said) == 1
    assert said[0].startswith("train: tracker wandb: ")
    assert said[0].endswith("; training goes on without it")
    assert all(key not in path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())


@needs("wandb")
def test_offline_in_spite_of_a_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = "".join(random.choices("0123456789abcdef", k=40))
    monkeypatch.setenv("WANDB_API_KEY", key)
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = log(tmp_path, ["wandb"], range(1, 3))
    assert read_wandb(tmp_path) == {run: values_of(2)}
    assert all(key not in path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file())


@needs("mlflow")
def test_mlflow_goes_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/elsewhere/mlflow.db")
    run = log(tmp_path / "logs", ["mlflow"], range(1, 3))
    assert read_mlflow(tmp_path / "elsewhere") == {run: values_of(2)}
    assert not list(tmp_path.glob("logs/mlflow*"))


def test_nothing_is_written_where_nothing_is_asked(tmp_path: Path) -> None:
    assert log(tmp_path, [], range(1, 4)) == ""
    assert list(tmp_path.iterdir()) == []
    assert Train(learning_rate=1e-4).trackers == []


MISSING = [
    ("tensorboard", "tensorboard", "tensorboard"),
    ("wandb", "wandb", "wandb"),
    ("mlflow", "mlflow", "mlflow-skinny"),
    ("mlflow", "alembic", "alembic"),
]


@pytest.mark.parametrize(("name", "module", "pip"), MISSING)
def test_a_missing_package(name: str, module: str, pip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=rf"^train\.trackers: {name} needs .* run `pip install [^`]*{pip}") as raised:
        trackers.check([name])
    assert raised.value.code == 2
    trackers.check([])


WITHOUT = """
import runpy, sys
sys.modules["wandb"] = None
module, *sys.argv[1:] = sys.argv[1:]
runpy.run_module(module, run_name="__main__")
"""


@pytest.mark.parametrize("command", [["stages.train", "committee"], ["stages.check"]])  # what `make repro` calls first
def test_a_missing_package_ends_a_run_before_any_work(
    command: list[str], project: Callable[..., Path], default_params: dict[str, Any]
) -> None:
    default_params["train"]["trackers"] = ["wandb"]
    folder = project(default_params)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, *command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: train.trackers: wandb needs what is not installed; run `pip install wandb` in .venv, or take it off "
        "the list\n"
    )
    assert not (folder / "logs").exists()


def test_names() -> None:
    with pytest.raises(ValidationError, match="trackers"):
        Train(learning_rate=1e-4, trackers=["comet"])
    with pytest.raises(ValidationError, match="`trackers` names one twice: wandb, wandb"):
        Train(learning_rate=1e-4, trackers=["wandb", "wandb"])
