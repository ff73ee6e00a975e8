"""Live metrics: the rows of a run's CSV for TensorBoard, Weights & Biases and MLflow, as `train.trackers` asks.

In: rows of the CSV, one a step. Out, below logs/ and never in an output of DVC: tensorboard/<run>/ (event files),
wandb/offline-run-<time>-<run>/, mlflow.db; trackers/<name>.json says which run it is. Nothing leaves this machine
unless the environment says so (WANDB_MODE, WANDB_API_KEY, MLFLOW_TRACKING_URI). A tracker that fails says so once, and
training goes on without it.
"""

import importlib.util
import json
import logging
import os
import secrets
import shutil
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

from anamnesis import records
from anamnesis.errors import UserError
from anamnesis.progress import say

FOLDER = Path("logs")
PROJECT = "anamnesis"  # of wandb, and MLflow's experiment
FINISH_S = 300  # how long wandb may go on uploading when a run has ended
PACKAGES = {  # what each imports, and what pip calls it; MLflow's files can't be written any more, so it needs SQLite
    "tensorboard": {"tensorboard": "tensorboard"},
    "wandb": {"wandb": "wandb"},
    "mlflow": {"mlflow": "mlflow-skinny", "sqlalchemy": "sqlalchemy", "alembic": "alembic"},
}

Row = Mapping[str, int | float]
Status = Literal["finished", "failed", "killed"]


class Tracker(Protocol):
    """Where a run's rows go. It is opened with the run's name, id and settings; any error may come out of it."""

    def log(self, row: Row) -> None:
        """Keep a row of the CSV at its step; one that is there already stays as it is."""

    def close(self, status: Status) -> None:
        """End the run."""


def check(names: Iterable[str]) -> None:
    """Raise `UserError` where a package of a tracker that params name is not installed."""
    for name in names:
        missing = [pip for module, pip in PACKAGES[name].items() if importlib.util.find_spec(module) is None]
        if missing:
            raise UserError(
                f"train.trackers: {name} needs what is not installed; run `pip install {' '.join(missing)}` in .venv, "
                "or take it off the list"
            )


class Trackers:
    """The trackers of one run; use as a context manager around its steps. Without names it does nothing at all.

    `name` is the variant, with its seed where that is a further one; `key` says which weights the run will end with;
    `rows` are those of an earlier part of the run, before it was killed. A run that goes on keeps its id.
    """

    def __init__(
        self,
        names: Sequence[str],
        name: str,
        key: str,
        settings: Mapping[str, Any],
        rows: Sequence[Row],
        folder: Path = FOLDER,
    ):
        self._names, self._name, self._key, self._settings, self._rows = names, name, key, settings, list(rows)
        self._folder, self._state = folder, folder / "trackers" / f"{name}.json"
        self._open: dict[str, Tracker] = {}
        self.run = ""

    def __enter__(self) -> "Trackers":
        if not self._names:
            return self
        self.run = self._id()
        self._note(ended=False)
        for name in self._names:

            def start(name: str = name) -> None:
                self._open[name] = OPENERS[name](self._folder, self._name, self.run, self._settings)
                for row in self._rows:
                    self._open[name].log(row)

            self._try(name, start)
        return self

    def log(self, row: Row) -> None:
        """Hand a row of the CSV to every tracker that still works."""
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.log(row))  # type: ignore[misc]

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        status: Status = "finished"
        if kind is not None:
            status = "failed" if issubclass(kind, Exception) else "killed"  # Ctrl-C and SIGTERM are no `Exception`
        for name, tracker in list(self._open.items()):
            self._try(name, lambda tracker=tracker: tracker.close(status))  # type: ignore[misc]
        if self._names and status == "finished":
            self._note(ended=True)

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:
            self._open.pop(name, None)
            reason = textwrap.shorten(str(error) or type(error).__name__, 300, placeholder=" …")
            say(f"train: tracker {name}: {reason}; training goes on without it")

    def _id(self) -> str:
        """The id of this run: that of the one it goes on with, or a new one."""
        try:
            known = json.loads(self._state.read_text(encoding="utf-8"))
            if known["key"] == self._key and (self._rows or not known["ended"]):
                return str(known["run"])
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return f"{self._name}-{secrets.token_hex(4)}"

    def _note(self, ended: bool) -> None:
        state = {"key": self._key, "run": self.run, "ended": ended}
        try:
            records.write_text(self._state, json.dumps(state) + "\n")
        except OSError as error:
            say(
                f"train: trackers: {self._state}: {error.strerror}; should the run be killed, it goes on as another one"
            )


def _values(row: Row) -> dict[str, float]:
    """The numbers of a row but its step, by the names of the CSV's columns."""
    return {name: float(value) for name, value in row.items() if name != "step"}


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Settings as dotted keys and values."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


class TensorBoard:
    """An event file in tensorboard/<run>/, which a run that goes on writes anew.

    It also declares void what it wrote before, for a TensorBoard that has read that. Events are written here and not by
    a thread, as torch's SummaryWriter has it: what fails then fails where it can be caught.
    """

    def __init__(self, folder: Path, name: str, run: str, settings: Mapping[str, Any]):
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar, text

        self._event, self._scalar = Event, scalar
        place = folder / "tensorboard" / run
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        file = place / f"events.out.tfevents.{int(time.time())}.{os.getpid()}"  # by these names they are found
        self._file = RecordWriter(file.open("wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=0, session_log=SessionLog(status=SessionLog.START))
        lines = [f"| {key} | {value} |" for key, value in _flat(settings)]
        self._write(step=0, summary=text("settings", "\n".join(["| key | value |", "| --- | --- |", *lines])))

    def _write(self, **event: Any) -> None:
        self._file.write(self._event(wall_time=time.time(), **event).SerializeToString())
        self._file.flush()

    def log(self, row: Row) -> None:
        """Keep a row at its step, once."""
        for name, value in _values(row).items():
            self._write(step=int(row["step"]), summary=self._scalar(name, value))

    def close(self, status: Status) -> None:
        """End the run, with all its rows written."""
        self._file.close()


class Wandb:
    """A run of Weights & Biases: offline in wandb/ unless the environment has a mode or a key.

    Offline, a run that goes on is a new folder under the same id with all its rows, and takes the place of the older
    one, whose last rows a kill may have lost. Online the server says which steps it has.
    """

    def __init__(self, folder: Path, name: str, run: str, settings: Mapping[str, Any]):
        import wandb

        self._teardown = wandb.teardown
        mode: Any = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        ours: dict[str, Any] = {"console": "off", "silent": True, "disable_git": True, "save_code": False}
        if "WANDB_FINISH_TIMEOUT" not in os.environ:
            ours["finish_timeout"] = FINISH_S
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or PROJECT,
            id=run,
            name=name,
            dir=str(folder),
            mode=mode,
            resume="allow" if mode == "online" else None,
            config=dict(settings),
            settings=wandb.Settings(**ours),
        )
        if mode == "online":
            say(f"train: wandb: {self._run.url}")
        if mode == "offline":
            for other in (folder / "wandb").glob(f"offline-run-*-{run}"):
                if other.resolve() != Path(self._run.dir).resolve().parent:
                    shutil.rmtree(other, ignore_errors=True)

    def log(self, row: Row) -> None:
        """Keep a row at its step, once."""
        if row["step"] >= self._run.step:
            self._run.log(_values(row), step=int(row["step"]), commit=True)

    def close(self, status: Status) -> None:
        """End the run, with all its rows written."""
        self._run.finish(exit_code=0 if status == "finished" else 1)
        self._teardown()  # a run is finished before its file is written: wandb's own process has to end for that


class MLflow:
    """A run of MLflow, in mlflow.db unless the environment names a server; it is asked which steps it has."""

    def __init__(self, folder: Path, name: str, run: str, settings: Mapping[str, Any]):
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # its errors come as exceptions too: one line is ours
        logging.getLogger("alembic").setLevel(logging.WARNING)
        self._metric, self._steps = Metric, set[int]()
        address, artifacts = os.environ.get("MLFLOW_TRACKING_URI"), None
        if not address:
            folder.mkdir(parents=True, exist_ok=True)
            address = f"sqlite:///{(folder / 'mlflow.db').resolve()}"
            artifacts = (folder / "mlflow-artifacts").resolve().as_uri()
        self._client = MlflowClient(tracking_uri=address)
        title = os.environ.get("MLFLOW_EXPERIMENT_NAME") or PROJECT
        found = self._client.get_experiment_by_name(title)
        experiment = found.experiment_id if found else self._client.create_experiment(title, artifacts)
        if runs := self._client.search_runs([experiment], f"tags.anamnesis_run = '{run}'", max_results=1):
            self._id = runs[0].info.run_id
            self._client.update_run(self._id, status="RUNNING")
            self._steps = {point.step for point in self._client.get_metric_history(self._id, "loss")}
        else:
            self._id = self._client.create_run(experiment, run_name=name, tags={"anamnesis_run": run}).info.run_id
            self._client.log_batch(self._id, params=[Param(key, str(value)) for key, value in _flat(settings)])

    def log(self, row: Row) -> None:
        """Keep a row at its step, once."""
        step = int(row["step"])
        if step not in self._steps:
            now = int(time.time() * 1000)
            points = [self._metric(name, value, now, step) for name, value in _values(row).items()]
            self._client.log_batch(self._id, metrics=points)
            self._steps.add(step)

    def close(self, status: Status) -> None:
        """End the run, with all its rows written."""
        self._client.set_terminated(self._id, status.upper())


OPENERS: dict[str, Callable[[Path, str, str, Mapping[str, Any]], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "mlflow": MLflow,
}
