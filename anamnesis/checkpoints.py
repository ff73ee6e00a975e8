"""Checkpoints of a training run: a killed run goes on from the newest that is whole, whenever it was killed."""

import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

from anamnesis import records
from anamnesis.errors import UserError
from anamnesis.progress import say

LATEST = "latest.json"
KEPT = 2


class Checkpoints:
    """The engine's state in `<folder>/step-<n>/`, and `latest.json`, which names the newest one that is complete.

    The newest two are kept. The file is replaced in one move after all ranks have written, so a run that is killed at
    any moment finds a whole checkpoint or none.
    """

    def __init__(self, folder: Path, key: str, rank: int):
        self.folder, self.key, self.rank = folder, key, rank

    def resume(self, engine: Any) -> list[dict[str, Any]]:
        """Bring the engine to the newest checkpoint; returns the CSV rows up to there, none where there is none."""
        try:
            latest = json.loads((self.folder / LATEST).read_text(encoding="utf-8"))
            usable = latest["fingerprint"] == self.key
        except (OSError, ValueError, KeyError, TypeError):
            latest, usable = None, False
        if not usable:
            if latest and self.rank == 0:
                say(f"train: {self.folder}: of other data, settings, model or libraries; starting anew")
            self._barrier()
            self.clear()
            return []
        try:
            loaded, _ = engine.load_checkpoint(str(self.folder), tag=latest["checkpoint"])
        except (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError):
            loaded = None
        if loaded is None:
            raise UserError(f"{self.folder}/{latest['checkpoint']}: can't be read; delete {self.folder} and run again")
        if self.rank == 0:
            say(f"train: {self.folder}/{latest['checkpoint']}: resumed")
        return latest["curve"]

    def save(self, engine: Any, curve: list[dict[str, Any]]) -> None:
        """Write the engine's state after `len(curve)` steps; every rank calls it."""
        name = f"step-{len(curve):06d}"
        engine.save_checkpoint(str(self.folder), tag=name, save_latest=False)
        self._barrier()
        if self.rank == 0:
            os.sync()
            latest = {"fingerprint": self.key, "checkpoint": name, "curve": curve}
            records.write_text(self.folder / LATEST, json.dumps(latest))
            steps = sorted(path for path in self.folder.glob("step-*") if path.name <= name)
            for old in steps[:-KEPT]:
                shutil.rmtree(old, ignore_errors=True)

    def clear(self) -> None:
        """Remove them all: the run ended well, or they are of no use."""
        if self.rank == 0:
            shutil.rmtree(self.folder, ignore_errors=True)
        self._barrier()

    @staticmethod
    def _barrier() -> None:
        import torch

        torch.distributed.barrier()
