"""Checkpoints of a training run: a killed run goes on from the newest that is whole, whenever it was killed.

In `<folder>`: `step-<n>/`, the engine's state after n steps, the newest two of them; `latest.json`, which names those
that are complete, their files, and the number of processes that wrote each; `universal/` while a run of another number
begins.
"""

import contextlib
import errno
import io
import json
import os
import pickle
import shutil
import signal
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

from anamnesis import records
from anamnesis.errors import UserError
from anamnesis.progress import say

LATEST = "latest.json"
UNIVERSAL = "universal"
KEPT = 2
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, KeyError, AssertionError, pickle.UnpicklingError)


@contextlib.contextmanager
def room_for(what: str) -> Iterator[None]:
    """Raise `UserError` where the block finds the disk full; any other error is left as it is.

    torch and safetensors put the system's error into words of their own, and drop its number.
    """
    try:
        yield
    except Exception as error:
        words = (*(os.strerror(number) for number in FULL_DISK), "PytorchStreamWriter failed", "unexpected pos")
        if getattr(error, "errno", None) in FULL_DISK or any(part in str(error) for part in words):
            raise UserError(f"{what}: the disk is full; make room and run again") from None
        raise


class Preemption:
    """Turns SIGTERM into a wish, `asked`, for as long as the block lasts; more of them change nothing."""

    asked = False

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


class Checkpoints:
    """The checkpoints in one folder. Every rank makes one of these, and calls its methods together with the others.

    `latest.json` is replaced in one move after all ranks have written, so a run that is killed at any moment finds a
    whole checkpoint or none. `universal` says that the engine must be made for DeepSpeed's universal checkpoints: the
    newest was written by another number of processes, and ZeRO has divided its state among them. These take
    AdamW's own states along and no more: `divisible` says that the optimiser has no other. Rank 0 reads and chooses for
    all: on a file system of several machines each might see another state.
    """

    def __init__(
        self, folder: Path, key: str, rank: int, world: int, zero: int, minutes: float, divisible: bool = True
    ):
        self.folder, self.key, self.rank, self._world, self._divisible = folder, key, rank, world, divisible
        self._period_s, self._saved_at = 60 * minutes, time.monotonic()
        import torch

        found: list[Any] = [None, None]
        if rank == 0:
            try:
                found[0] = self._read()
            except UserError as error:
                found[1] = str(error)
        torch.distributed.broadcast_object_list(found)
        self._latest, mistake = found
        if mistake:
            raise UserError(mistake)
        self._name = self._latest["name"] if self._latest else ""
        self._wrote = self._latest["checkpoints"][self._name]["world"] if self._latest else world
        self.universal = zero > 0 and self._wrote != world
        if self._wrote != world and rank == 0:
            say(f"train: {folder}: written by {self._wrote} processes; going on with {world}")

    def _read(self) -> dict[str, Any] | None:
        """What latest.json says where this run can go on from it, and the `name` of the newest that is whole.

        A folder of another run is emptied. Raises `UserError` where the file is there and says nothing.
        """
        file = self.folder / LATEST
        if not file.exists():  # or the first one was being written
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        try:
            latest = json.loads(file.read_text(encoding="utf-8"))
            whole = {name: one["files"] == _sizes(self.folder / name) for name, one in latest["checkpoints"].items()}
            newest, own = next(iter(whole)), latest["fingerprint"] == self.key and bool(latest["curve"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError, StopIteration):
            raise UserError(f"{file}: can't be read; delete {self.folder} and run again: it starts anew") from None
        if not own:
            say(f"train: {self.folder}: of other data, settings, model or libraries; starting anew")
            shutil.rmtree(self.folder, ignore_errors=True)
            return None
        name = next((name for name, is_whole in whole.items() if is_whole), newest)
        if name != newest:
            say(f"train: {self.folder}/{newest}: not whole; going back to {name}")
        return dict(latest) | {"name": name}

    def resume(self, engine: Any) -> list[dict[str, Any]]:
        """Bring the engine to the newest checkpoint that is whole; returns the CSV rows up to there, or none.

        Raises `UserError` where there is one and none can be read, or be divided among this number of processes.
        """
        import torch

        if self._latest is None:
            return []
        name, tag = self._name, self._divide_anew(self._name) if self.universal else self._name
        groups = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
        loaded, why = None, ""
        try:
            loaded, _ = engine.load_checkpoint(str(self.folder), tag=tag)
        except torch.OutOfMemoryError:
            raise
        except UNREADABLE as error:
            why = f" ({_short(error)})"
        if loaded is None:
            raise UserError(f"{self.folder}/{name}: can't be read{why}; delete {self.folder} and run again")
        if self.universal and engine.zero_optimization_stage() == 3:
            _set_apart(engine.optimizer, groups)
        if self.rank == 0:
            say(f"train: {self.folder}/{name}: resumed")
            with room_for(f"{self.folder}/{LATEST}"):
                records.write_text(self.folder / LATEST, json.dumps(self._latest | {"ended_early": False}))
            for other in [self.folder / UNIVERSAL, *self.folder.glob("step-*")]:
                if other.name != name:  # begun when the run was killed, or damaged
                    shutil.rmtree(other, ignore_errors=True)
        return list(self._latest["curve"][: _step(name)])

    def _divide_anew(self, name: str) -> str:
        """Write a checkpoint again in the form that any number of processes can read; returns its tag."""
        import torch
        from deepspeed.checkpoint import ds_to_universal

        why = "" if self._divisible else " (its optimiser has more states than AdamW's)"
        if self.rank == 0 and not why:
            shutil.rmtree(self.folder / UNIVERSAL, ignore_errors=True)
            wanted = SimpleNamespace(
                input_folder=str(self.folder / name),
                output_folder=str(self.folder / UNIVERSAL),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,
            )
            try:
                with room_for(f"{self.folder}/{UNIVERSAL}"), contextlib.redirect_stdout(io.StringIO()):
                    ds_to_universal.main(wanted)
            except torch.OutOfMemoryError:
                raise
            except UNREADABLE as error:
                why = f" ({_short(error)})"
        if self.any_of(bool(why)):
            raise UserError(
                f"{self.folder}/{name}: written by {self._wrote} processes, and can't be divided among "
                f"{self._world}{why}; run with {self._wrote} again, or delete {self.folder} and start anew"
            )
        return UNIVERSAL

    def due(self) -> bool:
        """Whether `minutes` have passed since the last one. Rank 0's clock counts: on other ranks never."""
        return self.rank == 0 and time.monotonic() - self._saved_at >= self._period_s

    def save(self, engine: Any, curve: list[dict[str, Any]], ended_early: bool = False) -> None:
        """Write the engine's state after `len(curve)` steps; every rank calls it. The oldest one makes room first.

        `ended_early` is kept beside it, for whoever started the ranks: the run is about to end after SIGTERM.

        Raises `UserError` where the disk is full; the checkpoint before it stays.
        """
        name = f"step-{len(curve):06d}"
        before = sorted(path for path in self.folder.glob("step-*") if path.name < name)
        if self.rank == 0:
            for old in before[: 1 - KEPT]:
                shutil.rmtree(old, ignore_errors=True)
        what = f"checkpoint {self.folder}/{name} is not written"
        what += f"; the one before it, {before[-1].name}, stays" if before else ", and there is none before it"
        try:
            with room_for(what):
                need = sum(_sizes(before[-1]).values()) if before else 0
                if self.any_of(self.rank == 0 and bool(need) and shutil.disk_usage(self.folder).free < need):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                engine.save_checkpoint(str(self.folder), tag=name, save_latest=False)
                self._barrier()
                if self.rank == 0:
                    os.sync()
                    whole = {path.name: {"world": self._world, "files": _sizes(path)} for path in [self.folder / name]}
                    older = self._latest["checkpoints"] if self._latest else {}
                    whole |= {path.name: older[path.name] for path in before[-1:] if path.name in older}
                    latest = {"fingerprint": self.key, "checkpoints": whole, "curve": curve}
                    self._latest = latest
                    records.write_text(self.folder / LATEST, json.dumps(latest | {"ended_early": ended_early}))
                    os.sync()
        except UserError as error:
            if self.rank > 0:  # rank 0 speaks for all where all find the same; here one may find it alone
                say(f"error: {error}")
            shutil.rmtree(self.folder / name, ignore_errors=True)
            raise
        self._saved_at = time.monotonic()

    def clear(self) -> None:
        """Remove them all: the run ended well, or they are of no use."""
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._barrier()

    @staticmethod
    def any_of(wish: bool) -> bool:
        """Whether any rank wishes it; every rank calls it and gets the same answer."""
        import torch

        device = torch.cuda.current_device() if torch.cuda.is_available() else "cpu"
        wishes = torch.tensor(int(wish), device=device)
        torch.distributed.all_reduce(wishes)
        return bool(wishes)

    @staticmethod
    def _barrier() -> None:
        import torch

        torch.distributed.barrier()


def ended_early(folder: Path) -> bool:
    """Whether the run whose checkpoints are in a folder ended after SIGTERM, with a checkpoint of its last step."""
    try:
        return bool(json.loads((folder / LATEST).read_text(encoding="utf-8"))["ended_early"])
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _set_apart(optimizer: Any, groups: list[dict[str, Any]]) -> None:
    """What DeepSpeed 0.19.8 runs together when stage 3 loads a universal checkpoint, with several groups of weights.

    All of them get one step counter, which each then moves on, and the settings of the first.
    """
    for state in optimizer.optimizer.state.values():
        state["step"] = state["step"].clone()
    for group, own in zip(optimizer.param_groups, groups, strict=True):
        group.update(own)


def _short(error: BaseException) -> str:
    return textwrap.shorten(str(error) or type(error).__name__, 200, placeholder=" …")


def _step(name: str) -> int:
    return int(name.removeprefix("step-"))


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file below a folder, by its path in it."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in folder.rglob("*") if path.is_file()}
