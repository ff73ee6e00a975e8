"""Mend what a kill can leave of DVC's own files, so that the next `dvc repro` goes on. `make repro` runs it first.

DVC writes .dvc/tmp/rwlock and dvc.lock in place: killed in that very moment it leaves them cut off, and every command
after it fails. A cut-off rwlock is removed: it says who reads and writes what, and nobody does. A cut-off dvc.lock is
replaced by git's, or removed where git has none; stages that had ended come back from DVC's run cache. Files that are
whole are left alone, and so is everything while another DVC command holds its lock.

Run: python scripts/mend.py
"""

import fcntl
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import yaml

SETTLE_S = 1.0  # a file that is being written at this moment is whole a moment later


def is_cut_off(path: Path, read: Callable[[str], object]) -> bool:
    """Whether a file is there, holds no mapping, and still holds none a moment later."""
    for last in (False, True):
        try:
            if isinstance(read(path.read_text(encoding="utf-8")), dict):
                return False
        except FileNotFoundError:
            return False
        except (ValueError, yaml.YAMLError):
            pass
        if not last:
            time.sleep(SETTLE_S)
    return True


def is_idle(folder: Path) -> bool:
    """Whether no DVC command holds the repository's lock."""
    try:
        with (folder / "lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def main() -> None:
    rwlock, lock = Path(".dvc/tmp/rwlock"), Path("dvc.lock")
    if is_cut_off(rwlock, json.loads) and is_idle(rwlock.parent):
        rwlock.unlink(missing_ok=True)
        print(f"mend: {rwlock} was cut off by a kill; removed")
    if is_cut_off(lock, yaml.safe_load) and is_idle(rwlock.parent):
        kept = subprocess.run(["git", "show", f"HEAD:./{lock}"], capture_output=True, check=False)
        lock.unlink(missing_ok=True)
        if kept.returncode == 0:
            lock.write_bytes(kept.stdout)
        print(f"mend: {lock} was cut off by a kill; {'git has a whole one' if kept.returncode == 0 else 'removed'}")


if __name__ == "__main__":
    main()
