"""Suite: the sha256 of every evaluation file that params.yaml names, so that only new contents are measured again.

In: data/own, the folder evaluate.data_dir.
Out: data/suite.json ({name: sha256}; empty for suites without files).
Run: python -m stages.suite
"""

import json

from anamnesis import params as settings
from anamnesis import records
from anamnesis.errors import run
from anamnesis.own import note_unwatched
from anamnesis.suites import digests, paths


def main() -> None:
    """Read every file once and write what it is."""
    evaluate = settings.load().evaluate
    for path in paths(evaluate).values():
        note_unwatched(path, "suite")
    records.write_text("data/suite.json", json.dumps(digests(evaluate), indent=2) + "\n")


if __name__ == "__main__":
    run(main)
