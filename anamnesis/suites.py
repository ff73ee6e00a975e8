"""Which files the suites of params.yaml read, and whether they are there: cheap enough to ask before any work.

In: section evaluate. `check` raises where a run would end later on; `digests` says what the files hold.
"""

import hashlib
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from anamnesis import domain_sets
from anamnesis.errors import UserError
from anamnesis.sections import Evaluate

SUITE = "data/suite.json"
FOLDERS = ("", "eval", "domain")  # of data_dir, where a task's folder may be
PATTERNS = ("test*.jsonl", "val*.jsonl", "*.zip")


def find(data_dir: str | Path, name: str) -> Path | None:
    """The file of a task: the first of test*.jsonl, val*.jsonl, *.zip in <name>, eval/<name> or domain/<name>."""
    for folder in FOLDERS:
        for pattern in PATTERNS:
            if found := sorted((Path(data_dir) / folder / name).glob(pattern)):
                return found[0]
    return None


def files(data_dir: str | Path, names: Sequence[str]) -> dict[str, Path]:
    """The files of tasks of suite local. Raises `UserError` that names every task without one."""
    if not Path(data_dir).is_dir():
        raise UserError(
            f"evaluate.data_dir: {data_dir}: no such folder; paths start at the project's root, {Path.cwd()}"
        )
    found = {name: find(data_dir, name) for name in names}
    if missing := [name for name, path in found.items() if path is None]:
        raise UserError(
            f"evaluate.data_dir: {data_dir}: no file for {', '.join(missing)}; put each in a folder of its name as "
            "test.jsonl (docs/evaluation.md), or name in evaluate.tasks those that you have"
        )
    return {name: path for name, path in found.items() if path is not None}


def paths(settings: Evaluate) -> dict[str, Path]:
    """Every file that evaluation reads, by the measure it is for. Raises `UserError` where one is missing."""
    found = {}
    if names := settings.chosen("local"):
        assert settings.data_dir
        found = files(settings.data_dir, names)
    for name, path in settings.domain_sets.items():
        if not Path(path).is_file():
            raise UserError(
                f"evaluate.domain_sets.{name}: {path}: no such file; paths start at the project's root, {Path.cwd()}"
            )
        found[f"domain-{name}"] = Path(path)
    return found


def check(settings: Evaluate) -> None:
    """Raise `UserError` for a file that is missing or no domain set, or a package or NLTK data that a task needs.

    What local IFEval and IFBench files need of NLTK depends on their rows: `constraints.rehearse` finds out.
    """
    paths(settings)
    for name, path in settings.domain_sets.items():
        domain_sets.read(name, path)
    needed = {"ifbench": ("if_verifiable", "emoji", "syllapy"), "math_lvl5": ("math_verify",)}
    for name in settings.chosen("local"):
        for package in needed.get(name, ()):
            if find_spec(package) is None:
                raise UserError(
                    f"evaluate.tasks: {name} needs the package {package.replace('_', '-')}, which is not installed "
                    f"(docs/evaluation.md); install it in .venv, or leave {name} out"
                )

    if "leaderboard_ifeval" in settings.chosen("leaderboard"):
        import nltk

        try:
            nltk.data.find("tokenizers/punkt_tab")
        except LookupError:
            raise UserError(
                "evaluate.tasks: leaderboard_ifeval needs NLTK's punkt_tab; `python -m nltk.downloader punkt_tab`, or "
                "unzip it into a folder that NLTK_DATA names (docs/evaluation.md)"
            ) from None


def digests(settings: Evaluate) -> dict[str, str]:
    """The sha256 of every file, by measure."""
    return {name: sha256(path) for name, path in sorted(paths(settings).items())}


def unchanged(settings: Evaluate, recorded: Mapping[str, str]) -> dict[str, str]:
    """`digests`, which must be those that stage suite recorded. Raises `UserError` where a file has changed since."""
    found = digests(settings)
    if changed := sorted(name for name in found.keys() | recorded.keys() if found.get(name) != recorded.get(name)):
        raise UserError(
            f"{', '.join(changed)}: the file is not the one that {SUITE} names: it changed since; "
            "run `dvc repro -f suite`, then `dvc repro`"
        )
    return found


def sha256(path: str | Path) -> str:
    """The sha256 of a file, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
