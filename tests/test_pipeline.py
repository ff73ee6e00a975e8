"""dvc.yaml says what the code does: each stage's code dependencies are the modules it imports, and so on."""

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from anamnesis.sections import Train

ROOT = Path(__file__).resolve().parent.parent
RAW: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
STAGES: dict[str, Any] = {name: entry.get("do", entry) for name, entry in RAW.items()}


def _module_file(module: str) -> Path | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    package = path.with_suffix("") / "__init__.py"
    return path if path.exists() else package if "." in module and package.exists() else None


def _imports(file: Path) -> set[Path]:
    """Files of ours that a file imports anywhere in it, the top `__init__` left out."""
    found: set[Path] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] in ("anamnesis", "stages") and (path := _module_file(name)):
                found.add(path)
    return found


def _closure(file: Path) -> set[Path]:
    seen, todo = {file}, [file]
    while todo:
        for path in _imports(todo.pop()) - seen:
            seen.add(path)
            todo.append(path)
    return seen


def _script(stage: str) -> Path:
    """What a stage runs: several run the same script."""
    found = re.match(r"python -m stages\.(\w+)", STAGES[stage]["cmd"])
    assert found, stage
    return ROOT / "stages" / f"{found[1]}.py"


def _code_of(stage: str) -> set[str]:
    """Code that a stage runs: its script, what that imports, and the files its modules read beside them."""
    files = _closure(_script(stage))
    text = "".join(file.read_text(encoding="utf-8") for file in files)
    named = re.findall(r"[\"'](stages/sql/[\w./]+|conf/[\w./]+|prompts/[\w./]+)[\"']", text)
    beside = {name for name in named if (ROOT / name).is_file()}
    return {str(file.relative_to(ROOT)) for file in files} | beside


def _is_code(dependency: str) -> bool:
    return dependency.startswith(("stages/", "anamnesis/", "conf/", "prompts/"))


@pytest.mark.parametrize("stage", STAGES)
def test_code_dependencies_are_the_imports(stage: str) -> None:
    declared = {dependency for dependency in STAGES[stage]["deps"] if _is_code(dependency)}
    folders = {dependency for dependency in declared if (ROOT / dependency).is_dir()}
    needed = _code_of(stage)
    covered = {name for name in needed if any(name.startswith(f"{folder}/") for folder in folders)}
    assert declared - folders == needed - covered, f"python -m tests.test_pipeline prints the list for {stage}"


EVALUATES = ["evaluate-base", "evaluate", "evaluate-seed", "evaluate-continued", "evaluate-interpolation"]
TRAINS = ["train", "train-continued", "train-seed"]
FOLDERS = {
    "clean": {"anamnesis/shipped"},
    **{stage: {"conf/deepspeed"} for stage in TRAINS},
    **{stage: {"anamnesis/shipped", "anamnesis/tasks"} for stage in EVALUATES},
    "report": {"anamnesis/templates"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_folders_of_files_that_code_reads_are_dependencies(stage: str) -> None:
    declared = {dependency for dependency in STAGES[stage]["deps"] if _is_code(dependency)}
    assert {dependency for dependency in declared if (ROOT / dependency).is_dir()} == FOLDERS.get(stage, set())


METHODS = {
    "members": {"committee", "models"},
    "enabled_judges": {"judges", "models"},
    "requests": set(),
    "load": set(),
    "rehearsal_sources": {"variants", "continued"},
    "tuned_variants": {"variants", "continued"},
    "key_of": {"continued"},
    "fractions_of": {"mix", "continued"},
    "named": {"train"},
    "evaluated": {"variants", "continued", "interpolations"},
    "reseeded": {"train"},
}
IN_DATA = {  # what a stage reads of these sections is in the files it depends on
    "respond": {"committee", "models"},
    "judge": {"judges", "models"},
    "converse": {"models"},
    "probe": {"models"},
    "select": {"models"},
    "agree": {"committee", "models"},
    "mix": {"domain", "probe"},  # for the advice in an error only
    **{stage: {"models", "variants", "continued"} for stage in TRAINS},  # its own entry alone is declared
    "train-seed": {"models", "continued", "seed"},  # the stage's own seed is in its command
    **{stage: {"models", "variants", "continued", "interpolations", "train"} for stage in EVALUATES},  # in the command
    "models": {"models"},
    "distribution": {"models"},
}


@pytest.mark.parametrize("stage", STAGES)
def test_params_that_the_script_reads_are_declared(stage: str) -> None:
    script = _script(stage).read_text(encoding="utf-8")
    read: set[str] = set()
    for name in re.findall(r"\bparams\.(?!yaml)(\w+)", script):
        read |= METHODS.get(name, {name})
    declared = {key.split(".")[0] for key in STAGES[stage]["params"]}
    assert read - declared <= IN_DATA.get(stage, set()), f"{stage} reads {sorted(read - declared)} unknown to DVC"


@pytest.mark.parametrize("stage", STAGES)
def test_rules_that_dvc_imposes(stage: str) -> None:
    entry = STAGES[stage]
    assert re.fullmatch(r"python -m stages\.\w+( .+)?", entry["cmd"])
    assert "always_changed" not in entry
    assert len(entry["deps"]) == len(set(entry["deps"]))
    for output in entry.get("outs", []):
        options = next(iter(output.values())) if isinstance(output, dict) else {}
        assert "cache" not in options, "cache: false on an out turns the run cache off"
        assert "persist" not in options
    for axis in [*entry.get("matrix", {}).values(), RAW[stage].get("foreach", "")]:
        assert isinstance(axis, str), "matrix over a mapping in params, or a list of plain values"
    assert entry.get("desc")


def test_a_further_seed_reruns_no_training() -> None:
    """Stage train depends on the keys of its section one by one, but those that say which runs there are."""
    keys = {f"train.{key}" for key in Train.model_fields} - {"train.seeds", "train.seeded"}
    for stage in TRAINS:
        assert {key for key in STAGES[stage]["params"] if key.startswith("train")} == keys
    assert set(STAGES["train"]["params"]) - set(STAGES["train-seed"]["params"]) == {"seed"}


def test_a_variant_reruns_its_own_training_alone() -> None:
    """Whatever reads all variants reads the continued ones as well; training reads one entry and its init."""
    for stage, entry in STAGES.items():
        assert ("variants" in entry["params"]) == ("continued" in entry["params"]), stage
    own = {stage: [key for key in STAGES[stage]["params"] if "${" in key] for stage in TRAINS}
    assert own == {
        "train": ["variants.${item.variant}"],
        "train-continued": ["continued.${key}"],
        "train-seed": ["variants.${item.variant}"],
    }
    assert "models/tuned/${item.init}" in STAGES["train-continued"]["deps"]


def test_labels_rerun_the_report_alone() -> None:
    dependent = {name for name, entry in STAGES.items() if {"report", "report.labels"} & set(entry["params"])}
    assert dependent == {"report"}


def test_stages_of_one_script_depend_on_the_same_code() -> None:
    for stages in (EVALUATES, TRAINS):
        assert len({tuple(sorted(filter(_is_code, STAGES[stage]["deps"]))) for stage in stages}) == 1


def test_the_library_never_imports_stages() -> None:
    for file in (ROOT / "anamnesis").rglob("*.py"):
        assert not any("stages" in path.relative_to(ROOT).parts for path in _imports(file)), file


def test_the_library_has_no_circles() -> None:
    for file in (ROOT / "anamnesis").rglob("*.py"):
        for imported in _imports(file):
            assert file not in _closure(imported), f"{file.name} and {imported.name} import each other"


def _at_the_top(file: Path) -> set[str]:
    """Names of the modules that a file imports outside functions."""
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_heavy_packages_are_imported_where_they_are_used() -> None:
    """No stage pays for torch before it needs it; a module that can't do without is itself imported late."""
    heavy = {"torch", "deepspeed", "vllm", "lm_eval", "transformers", "matplotlib"}
    files = [*(ROOT / "anamnesis").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]
    late = {file for file in files if heavy & {name.split(".")[0] for name in _at_the_top(file)}}
    names = {f"anamnesis.{file.stem}" for file in late}
    assert all(file.parent.name == "anamnesis" for file in late)
    for file in files:
        assert not names & _at_the_top(file), file


def test_paths_in_a_stage_are_those_in_dvc_yaml() -> None:
    """Every data path that a stage's script names is declared for it."""
    for stage in STAGES:
        same = [entry for name, entry in STAGES.items() if _script(name) == _script(stage)]
        kinds = ("deps", "outs", "metrics", "plots")
        declared = str([path for entry in same for kind in kinds for path in entry.get(kind, [])])
        declared = re.sub(r"\$\{[^}]*\}", "{}", declared)
        text = _script(stage).read_text(encoding="utf-8")
        body = text.split('"""', 2)[2]
        for path in re.findall(r"[\"']((?:data|models|metrics)/[\w./{}\[\]()-]+)[\"']", body):
            bare = re.sub(r"\{[^}]*\}", "{}", path)
            assert bare.rstrip("/") in declared or any(
                bare.startswith(d)
                for d in re.findall(r"[\w./{}-]+", declared)
                if d.startswith(("data/", "metrics/train"))
            ), f"{stage}: {path}"


if __name__ == "__main__":
    for name in STAGES:
        print(name, *sorted(_code_of(name)), sep="\n  - ")
