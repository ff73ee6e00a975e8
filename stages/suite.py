"""Suite: the sha256 of every evaluation file that params.yaml names, so that only new contents are measured again.

In: data/own, the folder evaluate.data_dir.
Out: data/suite.json ({name: sha256}; empty for suites without files).
Run: python -m stages.suite
"""

import json
import sys
from pathlib import Path

from anamnesis import params as settings
from anamnesis import records
from anamnesis.errors import run
from anamnesis.suites import digests, paths

WATCHED = Path("data/own")  # a dependency of this stage: a changed file in it is seen by `dvc repro`


def main() -> None:
    """Read every file once and write what it is."""
    evaluate = settings.load().evaluate
    for name, path in paths(evaluate).items():
        if WATCHED.resolve() not in path.resolve().parents:
            print(
                f"note: {name}: {path} is outside {WATCHED}/: after a change in it run `dvc repro -f suite`, then "
                "`dvc repro`",
                file=sys.stderr,
            )
    records.write_text("data/suite.json", json.dumps(digests(evaluate), indent=2) + "\n")


if __name__ == "__main__":
    run(main)
