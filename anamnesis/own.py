"""data/own, the folder for a user's files: a dependency of the stages that read such, so DVC sees a change there."""

from pathlib import Path

from anamnesis.progress import say

WATCHED = Path("data/own")


def note_unwatched(path: Path, stage: str) -> None:
    """Say so where DVC won't see a change in a file that `stage` reads."""
    if WATCHED.resolve() not in path.resolve().parents:
        then = f"`dvc repro -sf {stage} && dvc repro`"  # without -s whatever comes before the stage is forced too
        say(f"note: {path} is outside {WATCHED}/, so a change in it reruns nothing; after one: {then}")
