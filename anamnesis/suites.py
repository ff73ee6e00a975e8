"""Which files the suites of params.yaml read, and whether they are there: cheap enough to ask before any work.

In: section evaluate. `check` raises where a run would end later on; `digests` says what the files hold.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from anamnesis import benchmarks, domain_sets
from anamnesis.errors import UserError
from anamnesis.sections import Evaluate

SUITE = "data/suite.json"


def paths(settings: Evaluate) -> dict[str, Path]:
    """Every file that evaluation reads, by the measure it is for. Raises `UserError` where one is missing."""
    found = {}
    if names := settings.chosen("local"):
        assert settings.data_dir
        found = benchmarks.files(settings.data_dir, names)
    for name, path in settings.domain_sets.items():
        if not Path(path).is_file():
            raise UserError(
                f"evaluate.domain_sets.{name}: {path}: no such file; paths start at the project's root, {Path.cwd()}"
            )
        found[f"domain-{name}"] = Path(path)
    return found


def check(settings: Evaluate) -> None:
    """Raise `UserError` for a file that is missing or no domain set, or a package that a task needs."""
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


def digests(settings: Evaluate) -> dict[str, str]:
    """The sha256 of every file, by measure."""
    return {name: benchmarks.sha256(path) for name, path in sorted(paths(settings).items())}


def unchanged(settings: Evaluate, recorded: Mapping[str, str]) -> dict[str, str]:
    """`digests`, which must be those that stage suite recorded. Raises `UserError` where a file has changed since."""
    found = digests(settings)
    if changed := sorted(name for name in found.keys() | recorded.keys() if found.get(name) != recorded.get(name)):
        raise UserError(
            f"{', '.join(changed)}: the file is not the one that {SUITE} names: it changed since; "
            "run `dvc repro -f suite`, then `dvc repro`"
        )
    return found
